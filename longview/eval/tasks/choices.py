"""Multiple choices about single pictures."""

from __future__ import annotations

from collections.abc import Mapping

from longview.eval import parsers, prompts
from longview.eval.circular import circular
from longview.eval.items import Protocol
from longview.eval.readers import choices, tsv
from longview.eval.readers.files import Form
from longview.eval.scoring import CIRCULAR, HALLUSION
from longview.eval.tasks.pictures import LARGE, PARTITION_OF_TEXT, STEPS, ovis2
from longview.eval.tasks.task import Task

_MMBENCH = {
    "owl3": Protocol(prompts.owl3_mmbench, 100, "high"),
    "ovis2": ovis2(prompts.with_letters),
    "mgm": Protocol(prompts.with_letters, 1024),
}
_MMBENCH_CN = _MMBENCH | {"mgm": Protocol(prompts.with_letters_cn, 1024)}
_ABOUT = (
    "Multiple choices about single pictures, by CircularEval: each is asked once for each rotation of its options, and "
    "is right where all answers are."
)
_SERVER = "the test split has no truths: it is scored by MMBench's own server, and not here"


def _mmbench(name: str, title: str, *files: str, protocols: Mapping[str, Protocol] = _MMBENCH) -> Task:
    return Task(
        name=name,
        title=title,
        about=f"{_ABOUT} Dev split; {_SERVER}.",
        protocols=protocols,
        parse=parsers.letter,
        citation="MMBench, arXiv 2307.06281",
        forms=(
            Form(
                tsv.read_choices,
                (" | ".join(files),),
                "VLMEvalKit's or MMBench's TSV",
                ("", "mmbench", "MMB", "mmbench_cn"),
            ),
        ),
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
    ),
    _mmbench(
        "mmbench_cn",
        "MMBench CN, dev",
        "MMBench_DEV_CN.tsv",
        "mmbench_dev_cn*.tsv",
        protocols=_MMBENCH_CN,
    ),
    _mmbench("mmbench_v11", "MMBench V1.1 EN, dev", "MMBench_DEV_EN_V11.tsv", "mmbench_dev_en_v11*.tsv"),
    Task(
        name="ai2d",
        title="AI2D, test",
        about="Multiple choices about diagrams of school books.",
        protocols={
            "owl3": Protocol(prompts.owl3_choice, 100, "high"),
            "ovis2": ovis2(prompts.with_letters),
            "mgm": Protocol(prompts.with_letters, 128),
        },
        parse=parsers.letter,
        citation="AI2D, arXiv 1603.07396",
        forms=(
            Form(tsv.read_choices, ("AI2D_TEST.tsv",), "VLMEvalKit's TSV"),
            Form(choices.read_ai2d, ("data/test-*.parquet | test-*.parquet",), "Parquet", ("", "ai2d"), "test"),
        ),
        get="lmms-lab/ai2d on the hub",
    ),
    Task(
        name="mmstar",
        title="MMStar",
        about="1,500 multiple choices that cannot be answered without their picture.",
        protocols={
            "ovis2": ovis2(prompts.with_letters),
            "ovis2-cot": ovis2(
                prompts.ovis2_mmstar_steps,
                cut_behind="the answer is",
                sizes=("2B", *LARGE),
                note=STEPS.format(", ".join(("2B", *LARGE))),
            ),
        },
        parse=parsers.letter,
        citation="MMStar, arXiv 2403.20330",
        forms=(Form(tsv.read_choices, ("MMStar.tsv",), "VLMEvalKit's TSV"),),
        get="https://github.com/MMStar-Benchmark/MMStar (a TSV)",
    ),
    Task(
        name="hallusionbench",
        title="HallusionBench",
        about="Yes/no questions about figures, some of them altered. The mean of three accuracies: of answers, of "
        "figures with all questions right, and of questions that are right about all their figures.",
        protocols={
            "ovis2": ovis2(prompts.with_short, PARTITION_OF_TEXT),
            "ovis2-34b": ovis2(
                prompts.ovis2_hallusion_34b,
                PARTITION_OF_TEXT,
                sizes=("34B",),
                note="As the authors ask the size 34B.",
            ),
        },
        parse=parsers.yes_or_no,
        citation="HallusionBench, arXiv 2310.14566",
        forms=(
            Form(choices.read_hallusion_tsv, ("HallusionBench.tsv",), "VLMEvalKit's TSV"),
            Form(choices.read_hallusion, ("HallusionBench.json",), "the authors' JSON with hallusion_bench/"),
        ),
        get="https://github.com/tianyi-lab/HallusionBench",
        metric=HALLUSION,
        free=True,
    ),
)
