"""Questions about single pictures that are answered in a few words, by yes and no, or with several kinds of answers."""

from __future__ import annotations

from typing import Any

from longview.eval import parsers, prompts
from longview.eval.items import Item, Prompt, Protocol, Verdict
from longview.eval.judge import Judging, mathvista_request
from longview.eval.metrics import mmmu_is_right, vqa_score
from longview.eval.readers import mathvista, mmmu_test, owl, pictures
from longview.eval.readers.files import Form
from longview.eval.scoring import MME, POPE, VQA
from longview.eval.tasks.task import Task, same

GREEDY = "MGM's authors decode MMMU with 5 beams and temperature 1; here it is greedy."
SUFFIX = "Which suffix Ovis2's authors put behind such questions is not published; this is the one of yes/no questions."
UNCOUNTED = "The authors count an answer that is neither yes nor no nowhere; here it is wrong."
OPEN = "Of open questions VLMEvalKit lets a judge say whether the answer is right; here it is by MMMU's own rules."
STEPS = "As the authors ask the sizes {}: in steps, of which the end counts."
LARGE = ("8B", "16B", "34B")
"""Sizes of Ovis2 that are asked for steps."""
_LARGE = ", ".join(LARGE)
PARTITION, PARTITION_OF_TEXT = 9, 12
"""Crops of each picture at most, by Ovis2's authors; where it is full of text."""


def ovis2(prompt: Prompt, max_partition: int = PARTITION, **more: Any) -> Protocol:
    """How Ovis2's authors ask about pictures."""
    return Protocol(prompt, 1024, max_partition=max_partition, **more)


_MMMU = {
    "ovis2": ovis2(prompts.ovis2_mmmu, note=OPEN),
    "ovis2-cot": ovis2(
        prompts.ovis2_mmmu_steps, cut_behind="the answer is", sizes=LARGE, note=f"{STEPS.format(_LARGE)} {OPEN}"
    ),
    "mgm": Protocol(prompts.mgm_mmmu, 128, note=GREEDY),
}
_MMMU_EXAMPLE = {
    "sample": {"question": "{question}", "options": ["{A}", "{B}", "…"], "question_type": "multiple-choice"}
}


def people_agree(item: Item, verdict: Verdict) -> float:
    """VQA's soft accuracy."""
    return vqa_score(str(verdict.value), item.answer)


def mmmu_right(item: Item, verdict: Verdict) -> float:
    if item.options:
        return same(item, verdict)
    return float(mmmu_is_right(str(verdict.value), item.answer))


TASKS = (
    Task(
        name="mme",
        title="MME",
        about="Two yes/no questions a picture in 14 categories. Points: of each category the accuracy, and the share "
        "of pictures with both right; perception at most 2000, cognition at most 800.",
        protocols={
            "mgm": Protocol(prompts.mgm_mme, 128),
            "ovis2": ovis2(prompts.with_short, parse=parsers.yes_or_no),
            "owl3": Protocol(prompts.owl3_short, 100, "high", note="Not published; asked as POPE is."),
        },
        parse=parsers.mme,
        citation="MME, arXiv 2306.13394",
        forms=(
            Form(pictures.read_mme_tsv, ("MME.tsv",), "VLMEvalKit's TSV"),
            Form(
                pictures.read_mme,
                ("MME_Benchmark_release_version/**/*.txt",),
                "the authors' release",
                ("", "MME"),
            ),
            Form(pictures.read_mme_table, ("data/test-*.parquet",), "Parquet", ("", "MME"), "test"),
        ),
        get="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation, or lmms-lab/MME on "
        "the hub",
        metric=MME,
        free=True,
    ),
    Task(
        name="pope",
        title="POPE",
        about="Is there such a thing in the picture? Three sets of 3,000 yes/no questions: random, popular, "
        "adversarial. The mean of their F1.",
        protocols={
            "owl3": Protocol(prompts.owl3_short, 100, "high", parse=parsers.owl3_pope, note=UNCOUNTED),
            "mgm": Protocol(prompts.with_short, 128),
            "ovis2": ovis2(prompts.with_short, parse=parsers.yes_or_no),
        },
        parse=parsers.pope,
        citation="POPE, arXiv 2305.10355",
        forms=(
            Form(pictures.read_pope_tsv, ("POPE.tsv",), "VLMEvalKit's TSV"),
            Form(
                pictures.read_pope,
                ("coco_pope_*.json | coco/coco_pope_*.json", "val2014/* | images/* | *.jpg"),
                "the authors' JSON lines with COCO's val2014",
                ("", "pope"),
            ),
            Form(owl.read_owl_pope, ("ImageQA_POPE_*.jsonl",), "mPLUG-Owl's lines", ("", "pope")),
            Form(pictures.read_pope_table, ("data/test-*.parquet | test-*.parquet",), "Parquet", ("", "pope"), "test"),
        ),
        get="https://github.com/AoiDragon/POPE, or lmms-lab/POPE on the hub",
        metric=POPE,
        free=True,
    ),
    Task(
        name="textvqa",
        title="TextVQA, val",
        about="Questions about text in pictures, scored by how many of ten people gave the answer (EvalAI's rules).",
        protocols={
            "owl3": Protocol(prompts.owl3_short, 100, "high"),
            "mgm": Protocol(prompts.mgm_textvqa, 128),
            "ovis2": ovis2(prompts.with_short, PARTITION_OF_TEXT, note=SUFFIX),
        },
        parse=parsers.text,
        citation="TextVQA, arXiv 1904.08920",
        forms=(
            Form(pictures.read_vqa_tsv, ("TextVQA_VAL.tsv",), "VLMEvalKit's TSV"),
            Form(
                pictures.read_textvqa,
                ("TextVQA_0.5.1_val.json", "train_images/* | images/*"),
                "the authors' JSON (llava_textvqa_val_v051_ocr.jsonl beside it has the words of OCR)",
                ("", "textvqa"),
            ),
            Form(
                owl.read_owl_vqa,
                ("textvqa_val.json | textvqa_val.jsonl", "textvqa_val_annotations.json"),
                "mPLUG-Owl's rows",
                ("", "textvqa"),
            ),
            Form(
                pictures.read_vqa_table,
                ("data/validation-*.parquet | validation-*.parquet",),
                "Parquet",
                ("", "textvqa"),
                "validation",
            ),
        ),
        get="https://textvqa.org/dataset, or lmms-lab/textvqa on the hub",
        grade=people_agree,
        metric=VQA,
        free=True,
    ),
    Task(
        name="mmmu",
        title="MMMU, validation",
        about="Questions of 30 college subjects, most of them multiple choices, some with several pictures; an answer "
        "that no rule fits counts as an option by chance, as the authors do.",
        protocols=_MMMU,
        parse=parsers.mmmu,
        citation="MMMU, arXiv 2311.16502",
        forms=(
            Form(pictures.read_mmmu_tsv, ("MMMU_DEV_VAL.tsv",), "VLMEvalKit's TSV"),
            Form(
                pictures.read_mmmu,
                ("*/validation-*.parquet | data/validation-*.parquet",),
                "Parquet",
                ("", "MMMU"),
                "validation",
                pictures.MMMU,
            ),
        ),
        get="MMMU/MMMU on the hub",
        grade=mmmu_right,
        example=_MMMU_EXAMPLE,
    ),
    Task(
        name="mmmu_test",
        title="MMMU, test",
        about="As MMMU's validation split, 10,500 questions, whose truths were published in February 2026.",
        protocols=_MMMU,
        parse=parsers.mmmu,
        citation="MMMU, arXiv 2311.16502",
        forms=(
            Form(
                mmmu_test.read_mmmu_test,
                ("*/test-*.parquet | data/test-*.parquet", "answer_dict_test.json"),
                "Parquet and its truths",
                ("", "MMMU"),
            ),
        ),
        get="MMMU/MMMU on the hub",
        grade=mmmu_right,
        example=_MMMU_EXAMPLE,
    ),
    Task(
        name="mathvista",
        title="MathVista, testmini",
        about="Mathematics in pictures: choices, whole numbers, decimals and lists, after a hint that says which. "
        "Rules find the answer in the text; what they are not sure of is for a judge, where one is given.",
        protocols={
            "ovis2": ovis2(prompts.mathvista),
            "ovis2-cot": ovis2(
                prompts.ovis2_mathvista_steps, cut_behind="the answer is", sizes=LARGE, note=STEPS.format(_LARGE)
            ),
            "mgm": Protocol(prompts.mathvista, 1024),
        },
        parse=parsers.mathvista,
        citation="MathVista, arXiv 2310.02255",
        forms=(
            Form(
                mathvista.read_mathvista, ("testmini.json", "images/*"), "the authors' JSON", ("", "MathVista", "data")
            ),
            Form(
                mathvista.read_mathvista_table,
                ("data/testmini-*.parquet | testmini-*.parquet",),
                "Parquet",
                ("", "MathVista"),
                "testmini",
            ),
            Form(mathvista.read_mathvista_tsv, ("MathVista_MINI.tsv",), "VLMEvalKit's TSV"),
        ),
        get="AI4Math/MathVista on the hub",
        judging=Judging(mathvista_request, parsers.mathvista_judged),
        free=True,
        example={
            "problem": {
                "question": "{question}",
                "unit": None,
                "choices": None,
                "precision": None,
                "question_type": "free_form",
                "answer_type": "integer",
            }
        },
    ),
)
