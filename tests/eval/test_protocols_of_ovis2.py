"""How Ovis2's authors ask: by the size of the model, in steps, and about videos."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from benchmarks import SAMPLES
from evaluations import Scripted, measure, oracle

from longview.eval.items import Item, Shown
from longview.eval.tasks import TASKS, find_task

PICTURE = Shown("image", bytes, "a.png")
VIDEO = Shown("video", bytes, "a.mp4")
LETTER = "Answer with the option's letter from the given choices directly."
SOLUTION = "Provide a step-by-step solution to the problem, and conclude with 'the answer is' followed by the final "
STEPS = f"{SOLUTION}solution."


@pytest.mark.parametrize(
    ("task", "stepwise"),
    [
        ("mmvet", ("2B", "8B", "16B", "34B")),
        ("mmstar", ("2B", "8B", "16B", "34B")),
        ("mmmu", ("8B", "16B", "34B")),
        ("mathvista", ("8B", "16B", "34B")),
    ],
)
def test_the_size_in_a_models_name_says_whether_it_is_asked_for_steps(task, stepwise):
    for size in ("1B", "2B", "4B", "8B", "16B", "34B"):
        name, _ = find_task(task).protocol("ovis2", None, f"AIDC-AI/Ovis2-{size}")
        assert name == ("ovis2-cot" if size in stepwise else "ovis2")
    for folder in ("models/Ovis2-8B-GPTQ-Int4", "models/Ovis2-8B/"):
        assert find_task(task).protocol("ovis2", None, folder)[0] == "ovis2-cot"
    assert find_task(task).protocol("ovis2", "ovis2", "AIDC-AI/Ovis2-8B")[0] == "ovis2"
    assert find_task(task).protocol("ovis2", None, "models/mine")[0] == "ovis2"


def test_a_size_counts_for_models_of_the_family_alone():
    assert find_task("mmvet").protocol("mgm", None, "YanweiLi/MGM-8B")[0] == "mgm"
    assert find_task("mmvet").protocol(None, None, "Qwen-8B")[0] == "owl3"


@pytest.mark.parametrize(
    ("task", "family", "model"),
    [
        ("mmmu", None, "Qwen2-VL-8B"),
        ("mmmu", "owl3", "mPLUG-Owl3-8B"),
        ("mmstar", "owl3", "mPLUG/mPLUG-Owl3-2B-241101"),
        ("mmstar", "mgm", "YanweiLi/MGM-8B"),
        ("hallusionbench", "mgm", "YanweiLi/MGM-34B"),
    ],
)
def test_a_size_counts_for_no_model_that_takes_ovis2s_protocol_for_lack_of_its_own(task, family, model):
    assert find_task(task).protocol(family, None, model)[0] == "ovis2"


def test_a_run_takes_the_protocol_of_its_models_size(tmp_path):
    (sample,) = (each for each in SAMPLES if each.task == "mmstar")
    large = Scripted(oracle, "AIDC-AI/Ovis2-8B")
    large.family = "ovis2"
    found = measure("mmstar", large, sample.write(tmp_path))
    assert found.numbers["protocol"]["name"] == "ovis2-cot"


def asked(task: str, protocol: str, **facts) -> str:
    return find_task(task).protocols[protocol].text(Item("1", "Is it?", "A", **{"shown": (PICTURE,)} | facts))


def test_hallusionbench_asks_the_largest_model_for_yes_or_no():
    name, protocol = find_task("hallusionbench").protocol("ovis2", None, "Ovis2-34B")
    short = "Answer the question using a single word or phrase."
    assert protocol.text(Item("1", "Is it?", "yes", (PICTURE,))) == (
        f"<image>\nIs it? Please answer yes or no.\n{short}"
    )
    assert (name, protocol.max_partition) == ("ovis2-34b", 12)
    assert asked("hallusionbench", "ovis2") == f"<image>\nIs it?\n{short}"


def test_every_picture_is_cut_into_nine_crops_or_twelve_where_it_is_full_of_text():
    most = {
        (task.name, name): protocol.max_partition
        for task in TASKS.values()
        for name, protocol in task.protocols.items()
        if name.startswith("ovis2") and not protocol.frames
    }
    assert {task for (task, _), count in most.items() if count == 12} == {
        "hallusionbench", "textvqa", "ocrbench", "docvqa", "infovqa"
    }  # fmt: skip
    assert set(most.values()) == {9, 12}


@pytest.mark.parametrize("takes", [True, False])
def test_crops_are_recorded_where_the_model_takes_their_number(tmp_path, takes):
    (sample,) = (each for each in SAMPLES if each.task == "mmstar")
    model = Scripted(oracle)
    model.partitions = takes
    found = measure("mmstar", model, sample.write(tmp_path), tmp_path / "run")
    assert found.numbers["protocol"].get("max_partition") == (9 if takes else None)
    job = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])["job"]
    assert ("max_partition" in job) is takes


def test_yes_or_no_may_stand_anywhere_in_an_answer_to_ovis2s_questions():
    task = find_task("pope")
    for said, value in (("I say no.", "no"), ("Yes and no", None), ("not", None)):
        assert task.graded(Item("1", "?", "no"), said, task.protocols["ovis2"]).verdict.value == value


def test_steps_are_asked_for_as_each_benchmark_has_it():
    options = ("red", "blue")
    assert asked("mmstar", "ovis2-cot", options=options) == f"<image>\nIs it?\nA. red\nB. blue\n{STEPS}"
    assert asked("mmmu", "ovis2-cot", options=options) == f"<image>\nIs it?\nA. red\nB. blue\n{STEPS}"
    careful = "Provide a step-by-step solution to the problem carefully."
    assert asked("mmvet", "ovis2-cot") == f"<image>\nIs it?\n{careful}"
    problem = {"question": "Is it?", "question_type": "free_form", "answer_type": "integer", "precision": None}
    assert asked("mathvista", "ovis2-cot", facts={"problem": problem}).endswith(
        f"at the end.\nQuestion: Is it?\n{STEPS}"
    )


@pytest.mark.parametrize("protocol", ["ovis2", "ovis2-cot"])
def test_an_open_question_of_mmmu_is_asked_as_it_is(protocol):
    assert asked("mmmu", protocol) == "<image>\nIs it?"


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is it?", "<image>\nIs it?"),
        ("<image 1> Is it?", "\n<image>\nIs it?"),
        ("Is <image 1><image 2> it?", "Is\n<image>\n\n<image>\nit?"),
    ],
)
def test_pictures_of_mmmu_stand_on_lines_of_their_own(question, said):
    shown = (PICTURE, Shown("image", bytes, "b.png"))[: max(1, question.count("<image"))]
    parts = find_task("mmmu").protocols["ovis2"].prompt(Item("1", question, "A", shown))
    assert "".join(each if isinstance(each, str) else "<image>" for each in parts) == said
    assert not any(isinstance(one, str) and isinstance(next_, str) for one, next_ in pairwise(parts))


def test_a_chinese_question_is_told_in_english_how_to_answer():
    chinese = {"options": ("红色", "蓝色"), "hint": "图"}
    assert asked("mmbench_cn", "ovis2", **chinese).endswith(f"A. 红色\nB. 蓝色\n{LETTER}")
    assert asked("mmbench_cn", "mgm", **chinese).endswith("请直接回答选项字母。")
    assert asked("choices", "plain", options=("红色", "蓝色")).endswith(LETTER)
    assert asked("mmbench_en", "mgm", **chinese).endswith(LETTER)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("the answer is: 14", 1),
        ("12 + 2 = 14. The answer is 14", 1),
        ("12", 0),
    ],
)
def test_what_counts_stands_behind_the_answer_is(said, score):
    task = find_task("mathvista")
    problem = {"question_type": "free_form", "answer_type": "integer", "precision": None, "choices": None}
    item = Item("1", "?", "14", facts={"problem": problem})
    assert task.graded(item, said, task.protocols["ovis2-cot"]).score == score


def test_what_counts_begins_behind_the_first_the_answer_is():
    task = find_task("mmvet")
    protocol = replace(task.protocols["ovis2"], cut_behind="the answer is")
    verdict = task.graded(Item("1", "?", ""), "So the answer is: 14. No, the answer is 15", protocol).verdict
    assert verdict.value == "14. No, the answer is 15"


@pytest.mark.parametrize(
    "task", ["videomme", "videomme_subtitles", "mvbench", "nextqa", "longvideobench", "mlvu", "lvbench"]
)
def test_each_benchmark_of_videos_has_a_protocol_of_ovis2(task):
    name, protocol = find_task(task).protocol("ovis2")
    assert (name, protocol.max_partition, protocol.frames, protocol.select) == ("ovis2", 1, 32, "uniform")
    assert "MDP3" in protocol.note


def test_videos_are_asked_about_as_vlmevalkit_asks():
    facts = {"shown": (VIDEO,), "options": ("red", "blue")}
    assert asked("videomme", "ovis2", **facts).startswith("<video>\nThese are the frames of a video. Select the best ")
    assert asked("videomme", "ovis2", **facts).endswith("option.\nQuestion: Is it?\nA. red\nB. blue\nAnswer:")
    end = "question.\nQuestion: Is it?\nOptions:\n(A) red\n(B) blue\nOnly give the best option."
    assert asked("mvbench", "ovis2", **facts).endswith(f"{end}\nBest option:(")
    assert asked("mlvu", "ovis2", **facts).endswith(end)
    assert asked("longvideobench", "ovis2", **facts) == f"<video>\nIs it?\nA. red\nB. blue\n{LETTER}"
