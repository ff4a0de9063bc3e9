"""Video-MME and MVBench on a handful of items in their real file formats."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from evaluations import Scripted, measure, oracle, png, write_tsv

from longview.eval.readers.subtitles import read_subtitles
from longview.eval.tasks import Options, find_task
from longview.media import open_medium
from longview.world.render import write_clip
from longview.world.scenes import draw_clip

OPTIONS = ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."]
SRT = """1
00:00:00,000 --> 00:00:01,000
<font color="white" size=".72c">When I was little,</font>

2
00:00:01,000 --> 00:00:02,500
<font color="white" size=".72c">I liked apples.</font>

3
01:00:00,000 --> 01:00:02,500
never shown
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    return write_clip(draw_clip(random.Random(0)), tmp_path_factory.mktemp("film") / "clip.mp4").read_bytes()


def videomme_rows() -> list[dict]:
    return [
        {
            "video_id": f"{number:03}",
            "duration": ("short", "long")[number % 2],
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "url": "https://www.youtube.com/watch?v=x",
            "videoID": f"fFjv93ACGo{number}",
            "question_id": f"{number:03}-1",
            "task_type": "Counting Problem",
            "question": "What is the most frequent in the video?",
            "options": OPTIONS,
            "answer": "ABCD"[number],
        }
        for number in range(3)
    ]


@pytest.fixture
def video_mme(tmp_path, film) -> Path:
    for name in ("videomme", "data", "subtitle"):
        (tmp_path / name).mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(videomme_rows()), tmp_path / "videomme" / "test-00000-of-00001.parquet"
    )
    for number in range(2):  # the third is missing
        (tmp_path / "data" / f"fFjv93ACGo{number}.mp4").write_bytes(film)
    (tmp_path / "subtitle" / "fFjv93ACGo0.srt").write_text(SRT)
    return tmp_path


def test_videomme_is_scored_by_length_and_a_missing_video_fails_alone(video_mme):
    found = measure("videomme", oracle, video_mme)
    assert (found.numbers["score"], found.numbers["failed"], found.numbers["guessing"]) == (66.67, 1, 25)
    assert found.numbers["by"]["duration"] == {
        "short": {"score": 50.0, "questions": 2},
        "long": {"score": 100.0, "questions": 1},
    }
    assert "there is no video" in found.samples[2]["error"]
    assert found.samples[0]["options"][0] == "Apples."


def test_videomme_is_asked_as_mplug_owl3_and_as_the_benchmark_asks(video_mme):
    task = find_task("videomme")
    item = task.items(Options(video_mme))[0]
    assert task.protocols["owl3"].text(item) == (
        "<video>\nQuestion: What is the most frequent in the video?\nOptions: A. Apples.\nB. Candles.\nC. Berries.\n"
        "D. The three kinds are of the same number.\nAnswer with the option’s letter from the given choices directly."
    )
    assert task.protocols["owl3"].facts()["frames"] == 128
    assert "(A, B, C, or D) of the correct option.\nWhat is" in task.protocols["benchmark"].text(item)
    parts = task.protocols["owl3"].parts(item)
    assert (parts[0].media.frames, parts[0].media.select) == (128, "owl3-middle")


def test_an_answer_without_a_letter_is_not_understood_and_counts_as_a_where_mplug_owl3s_authors_ask(video_mme):
    found = [measure(task, lambda item: "no idea", video_mme).numbers for task in ("videomme", "videomme_subtitles")]
    assert [(each["score"], each["unparsed"]) for each in found] == [(0, 100), (0, 100)]
    theirs = measure("videomme", lambda item: "no idea", video_mme, protocol="owl3").numbers
    assert (theirs["score"], theirs["unparsed"]) == (33.33, 100)


def test_subtitles_of_the_frames_that_are_shown_stand_before_the_question(video_mme):
    task = find_task("videomme_subtitles")
    first, second, _ = task.items(Options(video_mme))
    asked = task.protocols["benchmark"].text(first)
    assert "<video>\nThis video's subtitles are listed below:\nWhen I was little,\nI liked apples.\nSelect" in asked
    assert "never shown" not in asked
    assert "based on the video and the subtitles" in asked
    assert "subtitles" not in task.protocols["benchmark"].text(second)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_missing_video_with_subtitles_fails_alone_and_is_asked_when_it_is_there(tmp_path, film, missing):
    rows = videomme_rows()
    for row in rows:
        row["videoID"] = row["question_id"]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "subtitle").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{row['videoID']}.mp4").write_bytes(film)
        (tmp_path / "subtitle" / f"{row['videoID']}.srt").write_text(SRT)
    (tmp_path / "videomme.json").write_text(json.dumps(rows))
    gone = tmp_path / "data" / f"{rows[missing]['videoID']}.mp4"
    gone.unlink()
    found = measure("videomme_subtitles", oracle, tmp_path, tmp_path / "run")
    assert (found.numbers["failed"], found.numbers["answers"]) == (1, 3)
    assert gone.stem in found.samples[missing]["error"]
    gone.write_bytes(film)
    again = Scripted(oracle)
    found = measure("videomme_subtitles", again, tmp_path, tmp_path / "run")
    assert (found.numbers["failed"], again.asked) == (0, [found.samples[missing]["id"]])
    assert "I liked apples." in found.samples[missing]["prompt"]


def test_times_of_subtitles_are_read_to_the_millisecond(tmp_path):
    (tmp_path / "a.srt").write_text(SRT)
    first, second, third = read_subtitles(tmp_path / "a.srt")
    assert (first.start, first.end, first.text) == (0, 1, "When I was little,")
    assert second.end == 2.5
    assert third.start == 3600


def test_videomme_reads_json_and_vlmevalkits_tsv_to_the_same_questions(video_mme, tmp_path, film):
    others = tmp_path / "json", tmp_path / "tsv"
    for folder in others:
        (folder / "video").mkdir(parents=True)
        (folder / "video" / "fFjv93ACGo0.mp4").write_bytes(film)
    (others[0] / "videomme.json").write_text(json.dumps(videomme_rows()))
    rows = [
        {"index": row["question_id"], "video": row["videoID"], "video_path": f"./video/{row['videoID']}.mp4",
         "duration": row["duration"], "domain": row["domain"], "candidates": str(row["options"]),
         "sub_category": row["sub_category"], "task_type": row["task_type"],
         "subtitle_path": f"./subtitle/{row['videoID']}.srt", "question": row["question"], "answer": row["answer"]}
        for row in videomme_rows()
    ]  # fmt: skip
    write_tsv(others[1] / "Video-MME.tsv", rows)
    task = find_task("videomme")
    mine, *theirs = (
        [(item.id, item.question, item.options, item.answer, item.labels) for item in task.items(Options(folder))]
        for folder in (video_mme, *others)
    )
    assert theirs == [mine, mine]
    assert task.items(Options(others[1]))[0].shown[0].load() == others[1] / "video" / "fFjv93ACGo0.mp4"


@pytest.fixture
def mvbench(tmp_path, film) -> Path:
    (tmp_path / "json").mkdir()
    rows = {
        "action_antonym": ("ssv2_video", {"video": "166583.mp4"}),
        "action_sequence": ("star/Charades_v1_480", {"video": "ZS9XR.mp4", "start": 0.5, "end": 1.5}),
        "episodic_reasoning": ("tvqa/frames_fps3_hq", {"video": "friends_s01", "start": 1.0, "end": 2.0}),
    }
    for name, (source, row) in rows.items():
        question = {"question": "What happens?", "candidates": ["It moves.", "Nothing.", "A"], "answer": "Nothing."}
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps([{**row, **question}]))
        folder = tmp_path / "video" / source
        folder.mkdir(parents=True)
        if name != "episodic_reasoning":
            (folder / row["video"]).write_bytes(film)
            continue
        (folder / row["video"]).mkdir()
        for number in range(1, 13):
            (folder / row["video"] / f"{number:05}.jpg").write_bytes(png())
    return tmp_path


def test_mvbench_asks_about_videos_seconds_of_them_and_folders_of_pictures(mvbench):
    found = measure("mvbench", oracle, mvbench).numbers
    assert (found["score"], set(found["by"]["task"])) == (
        100,
        {"action_antonym", "action_sequence", "episodic_reasoning"},
    )
    task = find_task("mvbench")
    items = {item.labels["task"]: item for item in task.items(Options(mvbench))}
    protocol = task.protocols["owl3"]
    assert protocol.text(items["action_antonym"]) == (
        "<video>\nQuestion: What happens?\nOptions:\nA. It moves.\nB. Nothing.\nC. A\n"
        "Answer with the option’s letter from the given choices directly."
    )
    part = protocol.parts(items["action_sequence"])[0]
    assert (part.media.start, part.media.end) == (0.5, 1.5)
    *frames, _ = protocol.parts(items["episodic_reasoning"])
    assert [part.type for part in frames] == ["image"] * 16
    assert [Path(part.source).stem[-1] for part in frames] == list("3334444455555566")
    seconds = [frame.seconds for frame in open_medium(part).frames]
    assert len(seconds) == 16
    assert all(0.3 <= second <= 1.7 for second in seconds)


def test_a_folder_of_pictures_that_comes_later_is_asked_about_by_the_same_command(mvbench, tmp_path):
    frames = mvbench / "video" / "tvqa" / "frames_fps3_hq" / "friends_s01"
    frames.rename(mvbench / "elsewhere")
    first = measure("mvbench", oracle, mvbench, tmp_path / "run")
    (failed,) = (sample for sample in first.samples if "error" in sample)
    assert failed["labels"]["task"] == "episodic_reasoning"
    assert "there is no folder" in failed["error"]
    (mvbench / "elsewhere").rename(frames)
    second = measure("mvbench", oracle, mvbench, tmp_path / "run").numbers
    assert (second["failed"], second["score"]) == (0, 100)
    assert second["questions_digest"] == first.numbers["questions_digest"]


def test_a_folder_without_pictures_of_its_seconds_fails_alone(mvbench):
    for frame in (mvbench / "video" / "tvqa" / "frames_fps3_hq" / "friends_s01").glob("*.jpg"):
        frame.unlink()
    found = measure("mvbench", oracle, mvbench)
    assert found.numbers["failed"] == 1
    (failed,) = (sample for sample in found.samples if "error" in sample)
    assert "has no pictures of these seconds" in failed["error"]


# ── the others ──


def test_nextqa_reads_tables_and_csv(tmp_path, film):
    (tmp_path / "NExTVideo").mkdir()
    (tmp_path / "NExTVideo" / "4010069381.mp4").write_bytes(film)
    options = {f"a{n}": text for n, text in enumerate(("play", "fall", "run", "sit", "sing"))}
    row = {"video": "4010069381", "frame_count": 369, "width": 640, "height": 480, "question": "how do they move",
           "answer": 2, "qid": 6, "type": "CH", **options}  # fmt: skip
    (tmp_path / "MC").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "MC" / "test-00000-of-00001.parquet")
    found = measure("nextqa", oracle, tmp_path)
    assert (found.numbers["score"], list(found.numbers["by"]["type"])) == (100, ["causal"])
    assert found.samples[0]["prompt"].startswith("<video>\nQuestion: how do they move\nOptions: A. play\n")
    assert found.numbers["protocol"]["frames"] == 8
    (tmp_path / "MC" / "test-00000-of-00001.parquet").unlink()
    header = ",".join(row)
    (tmp_path / "MC" / "test.csv").write_text(f"{header}\n{','.join(map(str, row.values()))}\n")
    again = measure("nextqa", oracle, tmp_path)
    assert [s["truth"] for s in again.samples] == [s["truth"] for s in found.samples] == ["C"]


def test_longvideobench_puts_the_video_between_question_and_text(tmp_path, film):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "86CxyhFV9MI.mp4").write_bytes(film)
    row = {"id": "86CxyhFV9MI_0", "video_id": "86CxyhFV9MI", "video_path": "86CxyhFV9MI.mp4", "question": "What?",
           "candidates": ["a", "b", "c", "d"], "correct_choice": 3, "question_category": "T2A", "duration_group": 600,
           "subtitle_path": "86CxyhFV9MI_en.json", "duration": 190.1}  # fmt: skip
    (tmp_path / "lvb_val.json").write_text(json.dumps([row]))
    found = measure("longvideobench", oracle, tmp_path)
    assert found.numbers["score"] == 100
    assert found.samples[0]["prompt"].startswith("Question: <video>\nWhat?\nOptions: A. a\n")
    assert found.numbers["by"]["duration"] == {"600": {"score": 100.0, "questions": 1}}


def test_mlvu_scores_the_mean_of_its_tasks_and_leaves_free_answers_out(tmp_path, film):
    rows = {
        "1_plotQA": [{"question_type": "plotQA", "answer": "Red"}] * 3,
        "2_needle": [{"question_type": "findNeedle", "answer": "Blue"}],
        "8_sub_scene": [{"question_type": "sub_scene", "answer": "A long text."}],
    }
    (tmp_path / "json").mkdir()
    for name, some in rows.items():
        (tmp_path / "video" / name).mkdir(parents=True)
        (tmp_path / "video" / name / "a.mp4").write_bytes(film)
        base = {"video": "a.mp4", "duration": 480, "question": "What colour?"}
        candidates = {} if name == "8_sub_scene" else {"candidates": ["Red", "Blue", "Green", "Black"]}
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps([{**base, **candidates, **row} for row in some]))
    found = measure("mlvu", lambda item: "A", tmp_path).numbers
    assert (found["answers"], found["score"], found["metric"]) == (4, 50, "M-Avg")


def test_lvbench_takes_options_out_of_its_questions(tmp_path, film):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "Cm73ma6Ibcs.mp4").write_bytes(film)
    qa = {"uid": "128", "question": "What year appears in the opening caption?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633",
          "answer": "D", "question_type": ["key information retrieval"], "time_reference": "00:15-00:19"}  # fmt: skip
    line = {"key": "Cm73ma6Ibcs", "type": "cartoon", "video_info": {"duration_minutes": 75.4}, "qa": [qa]}
    (tmp_path / "video_info.meta.jsonl").write_text(json.dumps(line) + "\n")
    found = measure("lvbench", oracle, tmp_path)
    assert (found.numbers["score"], found.samples[0]["options"]) == (100, ["1636", "1366", "1363", "1633"])
    assert "Question: What year appears in the opening caption?\nOptions: A. 1636" in found.samples[0]["prompt"]
