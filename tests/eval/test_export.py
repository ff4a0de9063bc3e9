"""longview eval export: other evaluators' files hold the same questions, and read back to them."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from evaluations import base64_png, mmbench_rows, png, write_tsv
from PIL import Image

from longview.errors import RequestError
from longview.eval.export import export
from longview.eval.items import Item, Shown, clip
from longview.eval.tasks import Options, find_task
from longview.media import open_medium
from longview.messages import Part


def pixels(shown: Shown) -> tuple:
    source = shown.load()
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source).convert("RGB")
    return image.size, image.tobytes()


def told(item: Item) -> tuple:
    """What must be the same on both sides."""
    plain = replace(item, shown=(), facts={})
    return plain, [each.kind for each in item.shown], [pixels(each) for each in item.shown if each.kind == "image"]


def vqa_rows(folder: Path) -> Path:
    people = [{"answer": answer} for answer in ("dark red", "red", "red\twine", "red")]
    rows = [{"image": f"{n}.jpg", "question": f'Which "colour" {n}?', "question_id": n} for n in range(2)]
    (folder / "okvqa_val.json").write_text(json.dumps(rows))
    truths = [{"question_id": n, "answers": people, "answer_type": "other"} for n in range(2)]
    (folder / "mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": truths}))
    for n, colour in enumerate(("red", "blue")):
        (folder / f"{n}.jpg").write_bytes(png(colour))
    return folder


def nlvr2_rows(folder: Path) -> Path:
    (folder / "data").mkdir()
    images = [{"bytes": png(colour), "path": None} for colour in ("red", "blue")]
    rows = [{"question": "Both are red.", "answer": "False", "images": images, "question_id": "a/1"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data/test-0.parquet")
    return folder


def mmbench(folder: Path) -> Path:
    rows = mmbench_rows(3)
    rows[1] |= {"hint": "Look\nclosely.", "question": "Which\ttab?"}
    write_tsv(folder / "MMBench_DEV_EN.tsv", rows)
    return folder


CASES = [("mmbench_en", mmbench), ("okvqa", vqa_rows), ("nlvr2", nlvr2_rows)]


@pytest.mark.parametrize("form", ["evalscope", "vlmevalkit"])
@pytest.mark.parametrize(("name", "make"), CASES)
def test_what_is_exported_reads_back_to_the_same_items(tmp_path, name, make, form):
    task = find_task(name)
    items = task.unexpanded(Options(make(tmp_path)))
    paths = export(name, items, task.protocol(None)[1], form, tmp_path / "out")
    assert len(paths) == (2 if form == "evalscope" and name == "mmbench_en" else 1)
    for path in paths:
        reader = "choices" if path.stem.endswith("_val") or (form, name) == ("vlmevalkit", "mmbench_en") else "messages"
        back = find_task(reader).items(Options(path))
        assert list(map(told, back)) == list(map(told, items)), path


def test_evalscope_is_given_the_prompt_of_the_protocol_and_one_answer(tmp_path):
    task = find_task("okvqa")
    items = task.unexpanded(Options(vqa_rows(tmp_path)))
    protocol = task.protocols["owl3"]
    (path,) = export("okvqa", items, protocol, "evalscope", tmp_path)
    first = json.loads(path.read_text().splitlines()[0])
    image, text = first["messages"][0]["content"]
    assert image["image_url"]["detail"] == "high"
    assert image["image_url"]["url"] == f"data:image/png;base64,{base64.b64encode(png('red')).decode()}"
    assert text["text"] == 'Which "colour" 0? Answer the question using a single word or phrase.'
    assert first["answer"] == "red"  # what most said
    back = find_task("messages").items(Options(path))[0]
    asked, ours = find_task("messages").protocols["plain"].parts(back), protocol.parts(items[0])
    assert [part if isinstance(part, str) else part.detail for part in asked] == [
        part if isinstance(part, str) else part.detail for part in ours
    ]


def test_choices_name_their_pictures_by_numbers_and_keep_tags_that_are_there(tmp_path):
    shown = tuple(Shown("image", lambda: png("red"), f"p{n}") for n in (1, 2))
    item = Item("7", "Is <image 2> red?", "B", shown, ("no", "yes"), labels={"subject": "Art"})
    task = find_task("mmmu")
    _, path = export("x", [item], find_task("choices").protocols["plain"], "evalscope", tmp_path)
    row = json.loads(path.read_text())
    assert (row["question"], row["options"], row["answer"]) == ("<image 1>\nIs <image 2> red?", ["no", "yes"], "B")
    assert row["image_1"] == row["image_2"]
    assert row["category"] == "Art"
    assert task.name == "mmmu"


def test_vlmevalkits_table_has_its_columns(tmp_path):
    task = find_task("mmbench_en")
    items = task.unexpanded(Options(mmbench(tmp_path)))
    (path,) = export("own", items, task.protocol(None)[1], "vlmevalkit", tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0])[:3] == ["index", "image", "question"]
    assert {"A", "B", "answer", "hint", "category"} <= set(rows[0])
    assert [row["index"] for row in rows] == [item.id for item in items]
    assert base64.b64decode(rows[0]["image"]).startswith(b"\x89PNG")


def test_videos_are_named_and_are_nothing_for_a_table(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    item = Item("1", "What?", "A", (clip(tmp_path / "a.mp4"),), ("x", "y"))
    protocol = find_task("video_choices").protocols["plain"]
    messages, choices = export("v", [item], protocol, "evalscope", tmp_path)
    content = json.loads(messages.read_text())["messages"][0]["content"]
    assert content[0] == {"type": "video_url", "video_url": {"url": str((tmp_path / "a.mp4").resolve())}}
    row = json.loads(choices.read_text())
    assert (row["question"], row["video_1"]) == ("<video 1>\nWhat?", content[0]["video_url"]["url"])
    assert [told(each) for each in find_task("choices").items(Options(choices))] == [told(item)]
    with pytest.raises(RequestError, match="v shows videos, which VLMEvalKit's TSV cannot hold; take --to evalscope"):
        export("v", [item], protocol, "vlmevalkit", tmp_path)


def test_clips_that_are_in_no_file_are_written_beside_the_questions(tmp_path):
    task = find_task("world")
    items = task.unexpanded(Options(per_kind=1, groups=("one picture", "clip")))
    (path,) = export("world", items, task.protocol(None)[1], "evalscope", tmp_path)
    back = find_task("messages").items(Options(path))
    assert [(each.question, each.answer) for each in back] == [(each.question, each.answer) for each in items]
    kinds = [shown.kind for item in items for shown in item.shown]
    assert [shown.kind for item in back for shown in item.shown] == kinds
    clips = [Path(shown.load()) for item in back for shown in item.shown if shown.kind == "video"]
    assert len(set(clips)) == kinds.count("video") > 1
    for path in clips:
        assert (path.parent, path.suffix) == (tmp_path / "world_media", ".mp4")
        assert open_medium(Part("video", source=path)).duration > 1


def test_pictures_of_a_table_of_free_answers_are_shown(tmp_path):
    write_tsv(tmp_path / "q.tsv", [{"index": 3, "image": base64_png("red"), "question": "What?", "answer": "red"}])
    (item,) = find_task("messages").items(Options(tmp_path / "q.tsv"))
    assert (item.id, item.answer, pixels(item.shown[0])[1][:3]) == ("3", "red", b"\xff\x00\x00")


def test_a_damaged_column_is_named(tmp_path):
    row = {"messages": [{"role": "user", "content": "What?"}], "answer": "x", "longview": {"question": "What?"}}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(RequestError, match=r"m.jsonl, line 1: the column 'longview' is damaged; export the task again"):
        find_task("messages").items(Options(tmp_path / "m.jsonl"))
