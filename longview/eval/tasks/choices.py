"""Multiple choices about single pictures."""

from __future__ import annotations

from longview.eval import parsers, prompts
from longview.eval.circular import circular
from longview.eval.items import Protocol
from longview.eval.readers import tsv
from longview.eval.readers.files import Form
from longview.eval.scoring import CIRCULAR
from longview.eval.tasks.task import Task

_MMBENCH = {
    "owl3": Protocol(prompts.owl3_mmbench, 100, "high"),
    "ovis2": Protocol(prompts.with_letters, 1024),
    "mgm": Protocol(prompts.with_letters, 1024),
}
_ABOUT = (
    "Multiple choices about single pictures, by CircularEval: each is asked once for each rotation of its options, and "
    "is right where all answers are."
)
_SERVER = "the test split has no truths: it is scored by MMBench's own server, and not here"


def _mmbench(name: str, title: str, *files: str) -> Task:
    return Task(
        name=name,
        title=title,
        about=f"{_ABOUT} Dev split; {_SERVER}.",
        protocols=_MMBENCH,
        parse=parsers.letter,
        citation="MMBench, arXiv 2307.06281",
        forms=(Form(tsv.read_choices, (" | ".join(files),), "VLMEvalKit's or MMBench's TSV"),),
        get="https://github.com/open-compass/MMBench (a TSV)",
        expand=circular,
        metric=CIRCULAR,
    )


TASKS = (
    _mmbench(
        "mmbench_en",
        "MMBench EN, dev",
        "MMBench_DEV_EN.tsv",
        "mmbench_dev_en*.tsv",
        "mmbench_dev_2*.tsv",
        "mmbench/mmbench_dev_2*.tsv",
    ),
    _mmbench(
        "mmbench_cn",
        "MMBench CN, dev",
        "MMBench_DEV_CN.tsv",
        "mmbench_dev_cn*.tsv",
        "mmbench_cn/mmbench_dev_cn*.tsv",
    ),
    _mmbench("mmbench_v11", "MMBench V1.1 EN, dev", "MMBench_DEV_EN_V11.tsv", "mmbench_dev_en_v11*.tsv"),
)
