"""Questions about several pictures."""

from __future__ import annotations

from longview.eval import parsers, prompts
from longview.eval.items import Item, Protocol, Verdict
from longview.eval.metrics import rouge_l
from longview.eval.readers import several, tsv
from longview.eval.readers.files import Form
from longview.eval.tasks.task import Task, same

_BENCH = "lmms-lab/LLaVA-NeXT-Interleave-Bench on the hub"
_FOLDERS = ("", "LLaVA-NeXT-Interleave-Bench", "interleave_data")


def letter_or_rouge(item: Item, verdict: Verdict) -> float:
    """A choice is right or wrong, a free answer as near as Rouge-L says."""
    if item.facts.get("choice", True):
        return same(item, verdict)
    return rouge_l(str(verdict.value), str(item.answer))


def parse(item: Item, answer: str) -> Verdict:
    return parsers.letter(item, answer) if item.options else parsers.text(item, answer)


def _interleave(name: str, title: str, about: str, dataset: str, citation: str, *forms: Form) -> Task:
    form = Form(
        several.read_interleave(dataset),
        ("multi_image_out_domain.json", "eval_images_fix/* | Split1/* | Split2/*"),
        "LLaVA-NeXT-Interleave-Bench's JSON",
        _FOLDERS,
    )
    return Task(
        name=name,
        title=title,
        about=f"{about} Free answers count by Rouge-L.",
        protocols={"owl3": Protocol(prompts.owl3_interleave, 100, "low")},
        parse=parse,
        citation=citation,
        forms=(form, *forms),
        get=_BENCH,
        grade=letter_or_rouge,
        pictures=2,
        example={"dataset": dataset, "choice": True},
    )


TASKS = (
    Task(
        name="nlvr2",
        title="NLVR2, test-P",
        about="Is a sentence true of two pictures? Yes or no.",
        protocols={"owl3": Protocol(prompts.owl3_nlvr2, 100, "low")},
        parse=parsers.mme,
        citation="NLVR2, arXiv 1811.00491",
        forms=(
            Form(
                several.read_nlvr2,
                ("data/unbalanced_test_public-*.parquet | data/*test*.parquet | *test*.parquet",),
                "Parquet",
                ("", "NLVR2"),
                "unbalanced_test_public",
            ),
            Form(
                several.read_nlvr2_lines,
                ("test1.json | data/test1.json", "test1/* | images/*"),
                "the authors' lines with pictures",
                ("", "NLVR2"),
            ),
        ),
        get="lmms-lab/NLVR2 on the hub, or https://github.com/lil-lab/nlvr",
        pictures=2,
        free=True,
    ),
    _interleave(
        "mantis",
        "Mantis-Eval",
        "217 questions about two to five pictures, most of them multiple choices.",
        "Mantis",
        "Mantis, arXiv 2405.01483",
    ),
    _interleave(
        "blink",
        "BLINK, val",
        "Multiple choices about what is seen at a glance in one to four pictures.",
        "BLINK",
        "BLINK, arXiv 2404.12390",
        Form(tsv.read_choices, ("BLINK.tsv",), "VLMEvalKit's TSV"),
    ),
    _interleave(
        "mathverse_mv",
        "MathVerse-mv",
        "MathVerse's questions with diagram and text in pictures of their own.",
        "MathVerse",
        "MathVerse, arXiv 2403.14624; LLaVA-NeXT-Interleave, arXiv 2407.07895",
    ),
    _interleave(
        "sciverse_mv",
        "SciVerse-mv",
        "Which of four pictures is the paired scientific diagram?",
        "SciVerse",
        "LLaVA-NeXT-Interleave, arXiv 2407.07895",
    ),
    Task(
        name="qbench2",
        title="Q-Bench2 (A2, pairs), dev",
        about="Multiple choices about the quality of two pictures.",
        protocols={"owl3": Protocol(prompts.owl3_qbench2, 100, "low")},
        parse=parsers.letter,
        citation="Q-Bench2, arXiv 2402.07116",
        forms=(Form(several.read_qbench2, ("data/dev-*.parquet | dev-*.parquet",), "Parquet", ("", "qbench2"), "dev"),),
        get="q-future/Q-Bench2-HF on the hub",
        pictures=2,
    ),
)
