"""Distractor resistance: what is drawn, how it counts, what is published beside the result."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import base64_png, measure, mmbench_rows, oracle, png, rotated_rows, write_tsv

from longview.errors import RequestError
from longview.eval.distractor import draw
from longview.eval.items import Item, Shown
from longview.eval.report.failures import thumbnails
from longview.eval.tasks import Options, find_task


def shown(name: str) -> Shown:
    return Shown("image", lambda: name.encode(), name)


POOL = [shown(f"p{number}") for number in range(40)]


@pytest.fixture
def source(tmp_path):
    rows = mmbench_rows(8)
    for row, colour in zip(rows, ("red", "green", "blue", "yellow", "black", "white", "orange", "purple"), strict=True):
        row["image_path"] = ""
        row["image"] = base64_png(colour)
    return str(write_tsv(tmp_path / "mmbench.tsv", rows))


@pytest.mark.parametrize("num_pictures", [1, 2, 7, 40])
@pytest.mark.parametrize("seed", range(5))
def test_a_draw_never_contains_the_questions_picture_nor_one_picture_twice(num_pictures, seed):
    item = Item("q", "?", "B", (POOL[3],), ("a", "b", "c", "d"))
    for drawn in draw(item, POOL, num_pictures, seed):
        names = [each.name for each in drawn.distractors]
        assert "p3" not in names
        assert len(names) == len(set(names)) == num_pictures - 1
        assert 0 <= drawn.place < num_pictures


def test_a_picture_that_two_rows_hold_is_one_picture(tmp_path):
    rows = mmbench_rows(3)
    rows[1]["image"] = rows[0]["image"]
    path = write_tsv(tmp_path / "m.tsv", rows)
    with pytest.raises(RequestError, match=r"3 pictures are asked for, and the source has 2 different ones"):
        find_task("distractor").items(Options(source=str(path), pictures=(3,)))


def test_files_of_one_picture_are_one_picture(tmp_path):
    rows = mmbench_rows(4)
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.png").write_bytes(png(("red", "red", "blue", "red")[number]))
        row |= {"image_path": f"{number}.png", "image": ""}
    rows[3] |= {"image_path": "", "image": base64_png("red")}
    options = Options(source=str(write_tsv(tmp_path / "m.tsv", rows)), pictures=(2,))
    for item in find_task("distractor").items(options):
        assert {
            Path(each.load()).read_bytes() if each.name.endswith(".png") else each.load() for each in item.shown
        } == {
            png("red"),
            png("blue"),
        }
    with pytest.raises(RequestError, match=r"3 pictures are asked for, and the source has 2 different ones"):
        find_task("distractor").items(replace(options, pictures=(3,)))


def test_each_variant_has_another_order_and_other_distractors():
    item = Item("q", "?", "B", (POOL[3],), ("a", "b", "c", "d"))
    drawn = draw(item, POOL, 9, 0)
    assert len(drawn) == len({each.order for each in drawn}) == 4
    assert drawn[0].order == (0, 1, 2, 3)
    names = [name.name for each in drawn for name in each.distractors]
    assert len(names) == len(set(names)) == 4 * 8
    assert len(draw(Item("q", "?", "B", (POOL[3],), ("a", "b")), POOL, 9, 0)) == 2


def test_the_same_seed_draws_the_same_and_another_one_others():
    item = Item("q", "?", "B", (POOL[3],), ("a", "b", "c", "d"))
    assert draw(item, POOL, 9, 0) == draw(item, POOL, 9, 0) != draw(item, POOL, 9, 1)


def test_places_are_spread_over_the_prompt():
    items = [Item(str(number), "?", "B", (POOL[3],), ("a", "b", "c", "d")) for number in range(500)]
    places = [drawn.place for item in items for drawn in draw(item, POOL, 5, 0)]
    assert all(300 < places.count(place) < 500 for place in range(5))


def test_a_question_is_put_as_the_paper_puts_it(source):
    task = find_task("distractor")
    item = next(i for i in task.items(Options(source=source, pictures=(3,))) if i.facts["about"] == 1)
    text = task.protocols["owl3"].text(item)
    assert text.startswith("Image 1: <image> Image 2: <image> Image 3: <image>. In Image 2, Which colour")
    assert text.endswith("\nAnswer with the option’s letter from the given choices directly.")
    assert item.options["ABCD".index(item.answer)] in (
        "red",
        "green",
        "blue",
        "yellow",
        "black",
        "white",
        "orange",
        "purple",
    )


def test_a_question_counts_where_all_its_variants_are_right(source):
    options = Options(source=source, pictures=(1, 5))
    found = measure("distractor", oracle, options=options).numbers
    assert [(point["pictures"], point["score"]) for point in found["curve"]] == [(1, 100), (5, 100)]
    assert measure("distractor", lambda item: "A", options=options).numbers["score"] == 0
    wrong = measure("distractor", lambda item: "A" if item.id.endswith("/2") and len(item.shown) == 5 else oracle(item),
                    options=options).numbers["curve"]  # fmt: skip
    assert wrong[0]["score"] == 100
    assert wrong[1]["score"] < 60 < wrong[1]["each"]


def test_guessing_scores_what_the_result_says(source):
    rng = random.Random(0)
    options = Options(source=source, pictures=(2,))
    runs = [
        measure(
            "distractor", lambda item: rng.choice(item.letters), options=Options(source=source, pictures=(2,), seed=n)
        )
        for n in range(40)
    ]
    said = measure("distractor", oracle, options=options).numbers["guessing"]
    assert said == pytest.approx(100 * (3 / 3**4 + 5 / 4**4) / 8, abs=0.01)
    assert sum(run.numbers["score"] for run in runs) / len(runs) == pytest.approx(said, abs=2.5)


def test_seed_rule_and_every_draw_stand_beside_the_result(source, tmp_path):
    options = Options(source=source, pictures=(1, 4), seed=7)
    found = measure("distractor", oracle, options=options, output=tmp_path / "run", limit=3)
    assert found.numbers["options"] == {"seed": 7, "source": source, "pictures": (1, 4)}
    assert "without replacement" in found.numbers["rule"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text().splitlines()]
    assert len(lines) == found.numbers["answers"]
    assert found.numbers["questions"] == 3 * 2
    for line in lines:
        assert len(line["distractors"]) == line["pictures"] - 1
        assert line["picture"] not in line["distractors"]
    assert (tmp_path / "run" / "curve.svg").read_text().count("<svg") == 1
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Against the number of pictures" in page
    again = measure(
        "distractor", lambda item: pytest.fail("asked again"), options=options, output=tmp_path / "run", limit=3
    )
    assert again.samples == found.samples


def test_a_file_that_rotates_its_options_gives_each_question_once(tmp_path):
    rows = rotated_rows(mmbench_rows(4))
    path = write_tsv(tmp_path / "m.tsv", rows)
    items = find_task("distractor").items(Options(source=str(path), pictures=(1,)))
    assert {item.unit for item in items} == {f"1/{number}" for number in range(240, 244)}
    assert len(items) == 2 * 3 + 2 * 4 + 2 + 0


def test_the_world_gives_questions_about_one_of_its_pictures_without_files():
    task = find_task("distractor")
    items = task.items(Options(source="world", pictures=(1, 30), per_kind=1))
    assert len(items) == 5 * 2 * 4
    item = items[-1]
    text = task.protocols["owl3"].text(item)
    assert text.startswith("Image 1: <image>\nImage 2: <image>\n")
    assert f"mage {item.facts['about'] + 1}" in text.split("\n")[-1]
    assert item.shown[0].load() == item.shown[0].load() != item.shown[1].load()
    first = [each for each in items if each.unit == items[0].unit]
    assert len({each.shown[each.facts["about"]].name for each in first}) == 1
    found = measure("distractor", oracle, options=Options(source="world", pictures=(2,), per_kind=1)).numbers
    assert (found["score"], found["guessing"]) == (100, None)


def test_a_page_shows_the_picture_that_is_asked_about(source):
    items = find_task("distractor").items(Options(source=source, pictures=(6,)))
    pictures, count = thumbnails(items[0], {})
    assert (len(pictures), count) == (1, 6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(), "name it by --from"),
        (Options(source="none.tsv"), "there is no none.tsv"),
        (Options(source="world", pictures=(0,)), "whole numbers from 1 up"),
    ],
)
def test_what_is_missing_is_named(options, said):
    with pytest.raises(RequestError, match=said):
        find_task("distractor").items(options)
