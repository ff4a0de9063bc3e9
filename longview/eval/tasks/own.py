"""A user's own questions, in forms that other evaluators read, too."""

from __future__ import annotations

from longview.eval import parsers, prompts, prompts_videos
from longview.eval.items import Item, Protocol, Verdict
from longview.eval.metrics import rouge_l
from longview.eval.readers import several, tsv
from longview.eval.readers.files import Form
from longview.eval.scoring import ROUGE
from longview.eval.tasks.several import parse
from longview.eval.tasks.task import Task, same

_LINES = "*.jsonl | *.tsv"


def nearest(item: Item, verdict: Verdict) -> float:
    """A letter right or wrong; else Rouge-L with the nearest of the right answers."""
    if item.options:
        return same(item, verdict)
    truths = item.answer if isinstance(item.answer, list) else [item.answer]
    return max((rouge_l(str(verdict.value), str(truth)) for truth in truths), default=0.0)


TASKS = (
    Task(
        name="choices",
        title="Multiple choices of your own",
        about="VLMEvalKit's TSV, or evalscope's VMCQ: lines or TSV of question (with <image 1>, …), options, image_1, "
        "…, answer; or of OpenAI's messages with a letter as the answer.",
        protocols={"plain": Protocol(prompts.own_choice, 1024)},
        parse=parsers.letter,
        citation="yours",
        forms=(
            Form(several.read_vmcq, ("*.jsonl",), "evalscope's VMCQ"),
            Form(tsv.read_choices, ("*.tsv",), "VLMEvalKit's TSV"),
        ),
        get="your own file",
    ),
    Task(
        name="messages",
        title="Questions of your own",
        about="Lines or TSV of OpenAI's messages with a column answer, or of LLaVA's question files with one; a letter "
        "is right or wrong, other answers count by Rouge-L.",
        protocols={"plain": Protocol(prompts.own_parts, 1024)},
        parse=parse,
        grade=nearest,
        citation="yours",
        forms=(Form(several.read_messages, (_LINES,), "lines or TSV of messages, or of questions"),),
        get="your own file",
        metric=ROUGE,
        free=True,
    ),
    Task(
        name="video_choices",
        title="Multiple choices about videos of your own",
        about="JSON, JSONL or Parquet of video, question, options (or candidates), answer (a letter, a number from 0, "
        "or the option's words; a number is words where the options are numbers), and start and end in seconds.",
        protocols={"plain": Protocol(prompts_videos.videomme, 16)},
        parse=parsers.letter,
        citation="yours",
        forms=(Form(several.read_video_choices, ("*.jsonl | *.json | *.parquet",), "rows", split="test"),),
        get="your own file",
        shows="video",
    ),
)
