"""Questions about single pictures with short or free answers: agreement with people, words, distances, judges."""

from __future__ import annotations

from longview.eval import parsers, prompts
from longview.eval.items import Item, Protocol, Verdict
from longview.eval.judge import Judging, mmvet_read, mmvet_request
from longview.eval.metrics import anls, gqa_is_right, ocrbench_is_right
from longview.eval.readers import owl, pictures, vqa
from longview.eval.readers.files import Form
from longview.eval.scoring import ANLS, MMVET, VQA
from longview.eval.tasks.pictures import LARGE, PARTITION_OF_TEXT, SUFFIX, ovis2, people_agree
from longview.eval.tasks.task import Task

_SHORT = {
    "owl3": Protocol(prompts.owl3_short, 100, "high"),
    "mgm": Protocol(prompts.with_short, 128),
    "ovis2": ovis2(prompts.with_short, note=SUFFIX),
}
_TEXT_RICH = {
    "ovis2": ovis2(prompts.with_short, PARTITION_OF_TEXT, note=SUFFIX),
    "owl3": Protocol(prompts.owl3_short, 100, "high"),
    "mgm": Protocol(prompts.with_short, 128),
}
TEST_SERVER = "mPLUG-Owl3's score is of the test split, whose truths only the benchmark's server has; here it is {}."


def one_answer(item: Item) -> str:
    """The truth, where a table may hold it as a list of one."""
    return str(item.answer[0] if isinstance(item.answer, list) else item.answer)


def _distance(item: Item, verdict: Verdict) -> float:
    return anls(str(verdict.value), item.answer)


def _documents(name: str, title: str, citation: str, file: str) -> Task:
    subset = title.split(",")[0]
    return Task(
        name=name,
        title=title,
        about="Questions about the text of pages, scored by how near the answer's letters are to the truth's.",
        protocols=_TEXT_RICH,
        parse=parsers.text,
        citation=citation,
        forms=(
            Form(pictures.read_vqa_tsv, (file,), "VLMEvalKit's TSV"),
            Form(
                pictures.read_vqa_table,
                (f"{subset}/validation-*.parquet",),
                "Parquet",
                split="validation",
                subsets=(subset,),
            ),
        ),
        get=f"lmms-lab/DocVQA on the hub, or {file} of VLMEvalKit",
        grade=_distance,
        metric=ANLS,
        free=True,
    )


TASKS = (
    Task(
        name="vqav2",
        title="VQAv2, val",
        about="Questions about photographs, scored by how many of ten people gave the answer. "
        + TEST_SERVER.format("val"),
        protocols=_SHORT,
        parse=parsers.text,
        citation="VQAv2, arXiv 1612.00837",
        forms=(
            Form(
                owl.read_owl_vqa,
                ("vqav2_val.json | vqav2_val.jsonl", "v2_mscoco_val2014_annotations.json"),
                "mPLUG-Owl's rows",
                ("", "vqav2"),
            ),
            Form(
                vqa.read_pairs(),
                ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
                "the authors' questions and annotations, with val2014/",
                ("", "vqav2"),
            ),
            Form(pictures.read_vqa_table, ("data/validation-*.parquet",), "Parquet", ("", "vqav2"), "validation"),
        ),
        get="https://visualqa.org/download.html, or lmms-lab/VQAv2 on the hub",
        grade=people_agree,
        metric=VQA,
        free=True,
    ),
    Task(
        name="okvqa",
        title="OK-VQA, val",
        about="Questions that need knowledge besides the photograph, scored as VQAv2.",
        protocols=_SHORT,
        parse=parsers.text,
        citation="OK-VQA, arXiv 1906.00067",
        forms=(
            Form(
                owl.read_owl_vqa,
                ("okvqa_val.json | okvqa_val.jsonl", "mscoco_val2014_annotations.json"),
                "mPLUG-Owl's rows",
                ("", "okvqa"),
            ),
            Form(
                vqa.read_pairs(),
                ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
                "the authors' questions and annotations, with val2014/",
                ("", "okvqa"),
            ),
            Form(pictures.read_vqa_table, ("data/val2014-*.parquet",), "Parquet", ("", "okvqa"), "val2014"),
        ),
        get="https://okvqa.allenai.org/download.html, or lmms-lab/OK-VQA on the hub",
        grade=people_agree,
        metric=VQA,
        free=True,
    ),
    Task(
        name="vizwiz",
        title="VizWiz-VQA, val",
        about="Questions of blind people about their own photographs, some of which cannot be answered; as VQAv2. "
        + TEST_SERVER.format("val"),
        protocols={
            "owl3": Protocol(prompts.owl3_vizwiz, 100, "high", parse=parsers.owl3_vizwiz),
            "mgm": Protocol(prompts.with_unanswerable, 128),
            "ovis2": ovis2(prompts.with_unanswerable, note=SUFFIX),
        },
        parse=parsers.text,
        citation="VizWiz, arXiv 1802.08218",
        forms=(
            Form(vqa.read_vizwiz, ("val.json | Annotations/val.json",), "the authors' JSON with val/", ("", "vizwiz")),
            Form(pictures.read_vqa_table, ("data/val-*.parquet",), "Parquet", ("", "vizwiz"), "val"),
            Form(pictures.read_vqa_tsv, ("VizWiz.tsv",), "VLMEvalKit's TSV"),
        ),
        get="https://vizwiz.org/tasks-and-datasets/vqa, or lmms-lab/VizWiz-VQA on the hub",
        grade=people_agree,
        metric=VQA,
        free=True,
    ),
    Task(
        name="gqa",
        title="GQA, testdev balanced",
        about="Questions composed from scene graphs, right where the words are the truth's.",
        protocols=_SHORT | {"owl3": Protocol(prompts.owl3_short, 100, "high", parse=parsers.owl3_gqa)},
        parse=parsers.text,
        citation="GQA, arXiv 1902.09506",
        forms=(
            Form(vqa.read_gqa, ("testdev_balanced_questions.json",), "the authors' JSON with images/", ("", "gqa")),
            Form(owl.read_owl_gqa, ("testdev_balanced.jsonl",), "mPLUG-Owl's lines", ("", "gqa")),
            Form(pictures.read_vqa_tsv, ("GQA_TestDev_Balanced.tsv",), "VLMEvalKit's TSV"),
        ),
        get="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        grade=lambda item, verdict: float(gqa_is_right(str(verdict.value), one_answer(item))),
        free=True,
    ),
    Task(
        name="ocrbench",
        title="OCRBench",
        about="1,000 questions of ten kinds about text in pictures, right where the truth stands in the answer. "
        "Published as points of 1,000; here per cent.",
        protocols={
            "ovis2": ovis2(prompts.plain, PARTITION_OF_TEXT),
            "owl3": Protocol(prompts.plain, 100, "high", note="Not published."),
            "mgm": Protocol(prompts.plain, 128, note="Not published."),
        },
        parse=parsers.text,
        citation="OCRBench, arXiv 2305.07895",
        forms=(
            Form(pictures.read_vqa_tsv, ("OCRBench.tsv",), "VLMEvalKit's TSV"),
            Form(
                pictures.read_ocrbench, ("OCRBench.json",), "the authors' JSON with OCRBench_Images/", ("", "OCRBench")
            ),
        ),
        get="https://github.com/Yuliang-Liu/MultimodalOCR",
        grade=lambda item, verdict: float(
            ocrbench_is_right(str(verdict.value), item.answer, item.labels.get("category", ""))
        ),
        free=True,
    ),
    _documents("docvqa", "DocVQA, val", "DocVQA, arXiv 2007.00398", "DocVQA_VAL.tsv"),
    _documents("infovqa", "InfographicVQA, val", "InfographicVQA, arXiv 2104.12756", "InfoVQA_VAL.tsv"),
    Task(
        name="mmvet",
        title="MM-Vet",
        about="218 questions that need several capabilities at once, with free answers; a score for each capability "
        "and each combination of them. The authors grade by GPT-4; here by any judge, whose name stands in the result, "
        "and whose scores are comparable with its own alone.",
        protocols={
            "owl3": Protocol(prompts.plain, 100, "high"),
            "mgm": Protocol(prompts.plain, 1024),
            "ovis2": ovis2(prompts.plain),
            "ovis2-cot": ovis2(
                prompts.ovis2_mmvet_steps,
                sizes=("2B", *LARGE),
                note="As the authors ask the sizes 2B, 8B, 16B, 34B; all that is said counts.",
            ),
        },
        parse=parsers.text,
        citation="MM-Vet, arXiv 2308.02490",
        forms=(
            Form(
                vqa.read_mmvet,
                ("mm-vet.json", " | ".join(f"{folder}/*" for folder in vqa.MMVET)),
                "the authors' JSON",
                ("", "mm-vet", "mmvet"),
            ),
            Form(pictures.read_vqa_tsv, ("MMVet.tsv",), "VLMEvalKit's TSV"),
        ),
        get="https://github.com/yuweihao/MM-Vet",
        grade=lambda item, verdict: float(verdict.value or 0.0) if isinstance(verdict.value, float) else 0.0,
        metric=MMVET,
        judging=Judging(mmvet_request, mmvet_read, required=True),
        free=True,
    ),
)
