"""Hugging Face datasets by name, and by folders laid out as the hub has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import SAMPLES, Sample, put

from longview.errors import LongviewError, RequestError
from longview.eval.readers.files import Found, find_form
from longview.eval.readers.pictures import MMMU
from longview.eval.tasks import TASKS, Options, find_task

NAMED = {
    "ai2d": "lmms-lab/ai2d",
    "mme": "lmms-lab/MME",
    "pope": "lmms-lab/POPE",
    "textvqa": "lmms-lab/textvqa",
    "mmmu": "MMMU/MMMU",
    "mathvista": "AI4Math/MathVista",
    "nlvr2": "lmms-lab/NLVR2",
    "qbench2": "q-future/Q-Bench2-HF",
    "vqav2": "lmms-lab/VQAv2",
    "okvqa": "lmms-lab/OK-VQA",
    "vizwiz": "lmms-lab/VizWiz-VQA",
    "docvqa": "lmms-lab/DocVQA",
    "infovqa": "lmms-lab/DocVQA",
    "video_choices": "me/mine",
}
BESIDE = ("videomme", "videomme_subtitles", "mvbench", "nextqa", "longvideobench", "mlvu", "mantis", "blink")


def sample_of(task: str) -> Sample:
    return next(each for each in SAMPLES if each.task == task and each.kind == "parquet")


def card(subsets: dict[str, str], split: str) -> bytes:
    """The head of a dataset's README, which says where its subsets are."""
    lines = ["---", "configs:"]
    for name, path in subsets.items():
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {path}"]
    return "\n".join([*lines, "---", ""]).encode()


@pytest.mark.parametrize(("task", "name"), NAMED.items())
def test_a_name_is_a_form_with_its_split_and_ends_in_one_line_without_a_network(task, name):
    form, found = find_form(task, find_task(task).forms, Path(name))
    assert (found.table, found.split) == (name, form.split)
    with pytest.raises(LongviewError) as refused:
        find_task(task).items(Options(Path(name)))
    assert f"there is no folder {name} here; dataset {name}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_task_that_takes_a_name_is_named_here():
    assert set(NAMED) == {task.name for task in TASKS.values() if any(form.split for form in task.forms)}


@pytest.mark.parametrize("task", BESIDE)
def test_where_a_name_is_not_enough_it_is_said_how_to_fetch_the_files(task):
    with pytest.raises(RequestError, match=r"\(from the hub: hf download some/name --repo-type dataset"):
        find_task(task).items(Options(Path("some/name")))


def test_a_missing_file_is_no_name():
    with pytest.raises(RequestError, match=r"there is no folder/rows.jsonl; give the folder of pope's files"):
        find_task("pope").items(Options(Path("folder/rows.jsonl")))


@pytest.mark.parametrize("task", [name for name in NAMED if name not in ("mmmu", "docvqa", "infovqa", "video_choices")])
def test_rows_of_a_dataset_are_the_questions_of_its_files(tmp_path, task):
    sample = sample_of(task)
    expected = find_task(task).items(Options(sample.write(tmp_path / "files")))
    form, found = find_form(task, find_task(task).forms, Path(NAMED[task]))
    put(tmp_path / "hub" / "data" / f"{found.split}-00000-of-00001.parquet", sample.encoded(sample.row))
    assert list(form.items(Found(Path(), (), str(tmp_path / "hub"), found.split, found.subsets))) == expected


def test_mmmu_by_its_name_is_all_its_subjects_and_with_a_subject_that_one(tmp_path):
    sample = sample_of("mmmu")
    put(tmp_path / "README.md", card({name: f"{name}/validation-*.parquet" for name in ("Art", "Math")}, "validation"))
    for name in ("Art", "Math"):
        row = {**sample.row, "id": f"validation_{name}_1"}
        put(tmp_path / name / "validation-00000-of-00001.parquet", sample.encoded(row))
    forms = find_task("mmmu").forms
    form, every = find_form("mmmu", forms, Path("MMMU/MMMU"))
    assert (every.subsets, len(set(MMMU))) == (MMMU, 30)
    some = form.items(Found(Path(), (), str(tmp_path), every.split, ("Art", "Math")))
    assert [item.labels["subject"] for item in some] == ["Art", "Math"]
    form, one = find_form("mmmu", forms, Path("MMMU/MMMU:Art"))
    assert (one.table, one.subsets) == ("MMMU/MMMU:Art", ())
    assert len(list(form.items(Found(Path(), (), f"{tmp_path}:Art", one.split)))) == 1
    assert len(find_task("mmmu").items(Options(tmp_path))) == 2


def test_documents_are_a_subset_of_their_dataset(tmp_path):
    sample = sample_of("infovqa")
    put(tmp_path / "README.md", card({"DocVQA": "D/*", "InfographicVQA": "I/*"}, "validation"))
    put(tmp_path / "I" / "0.parquet", sample.encoded({**sample.row, "question": "Infographic?"}))
    put(tmp_path / "D" / "0.parquet", sample.encoded({**sample.row, "question": "Document?"}))
    for task, question in (("docvqa", "Document?"), ("infovqa", "Infographic?")):
        form, found = find_form(task, find_task(task).forms, Path("lmms-lab/DocVQA"))
        (item,) = form.items(Found(Path(), (), str(tmp_path), found.split, found.subsets))
        assert item.question == question
