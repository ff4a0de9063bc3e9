"""Indexes behind OpenAI's API of vector stores, asked by OpenAI's own client."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import Server, running

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.index.index import update_index
from longview.models.similarity import DEMO, Similarity
from longview.serve.settings import ServerOptions
from longview.world import Picture, Thing
from longview.world.needle import NeedleVideo, Shot
from longview.world.questions import Question
from longview.world.render import write_needle_video, write_picture

STAR, CIRCLE = Thing("red", "star", "large", 0.5, 0.5), Thing("blue", "circle", "large", 0.2, 0.5)


def write_film(path: Path) -> None:
    """A film of a circle for six seconds, a star for three, the circle again."""
    shots = tuple(Shot(Picture((thing,)), seconds) for thing, seconds in ((CIRCLE, 6), (STAR, 3), (CIRCLE, 6)))
    write_needle_video(NeedleVideo(shots, 1, Question("colour", "", "")), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    films = tmp_path_factory.mktemp("films") / "films"
    (films / "deep").mkdir(parents=True)
    write_film(films / "deep" / "film.mp4")
    write_picture(Picture((STAR,)), films / "star.png")
    write_picture(Picture((CIRCLE,)), films / "gone.png")
    (films / "knowledge.jsonl").write_text(json.dumps({"text": "The red star is called tea.", "source": "a.org"}))
    os.utime(films / "star.png", (1, 1))
    update_index(films.parent / "index", [films], Similarity.open(DEMO), DEMO)
    (films / "gone.png").unlink()
    return films


@pytest.fixture(scope="module")
def indexed(folder) -> Iterator[Server]:
    with running("--index", f"films={folder.parent / 'index'}") as started:
        yield started


@pytest.fixture(scope="module")
def stores(indexed):
    return indexed.client().vector_stores


def names(found) -> list[str]:
    return [each.filename for each in found.data]


def test_indexes_are_listed_and_shown(stores):
    (listed,) = stores.list().data
    shown = stores.retrieve("films")
    assert listed == shown
    assert (shown.object, shown.name, shown.status, shown.metadata) == (
        "vector_store",
        "films",
        "completed",
        {"model": DEMO},
    )
    assert (shown.file_counts.completed, shown.file_counts.failed) == (4, 0)
    assert shown.usage_bytes > 1000


def test_a_text_finds_moments_pictures_and_passages_by_names_below_the_folder(stores):
    found = stores.search("films", query="a red star", max_num_results=3)
    by_name = {each.filename: each for each in found.data}
    assert set(by_name) == {"star.png", "deep/film.mp4", "knowledge.jsonl"}
    moment = by_name["deep/film.mp4"]
    assert (moment.attributes["kind"], moment.attributes["begin"], moment.attributes["end"]) == ("moment", 6, 9)
    assert moment.content[0].text == "deep/film.mp4 0:06–0:09"
    assert by_name["knowledge.jsonl"].content[0].text == "The red star is called tea."
    assert by_name["knowledge.jsonl"].attributes["source"] == "a.org"
    assert found.data[0].score >= found.data[-1].score > 0


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"type": "eq", "key": "kind", "value": "picture"}, {"star.png"}),
        ({"type": "eq", "key": "folder", "value": "deep"}, {"deep/film.mp4"}),
        ({"type": "gte", "key": "duration", "value": 10}, {"deep/film.mp4"}),
        ({"type": "lte", "key": "duration", "value": 10.5}, set()),
        ({"type": "lt", "key": "date", "value": "2000-01-01"}, {"star.png"}),
        (
            {"type": "and", "filters": [
                {"type": "in", "key": "kind", "value": ["moment", "passage"]},
                {"type": "gte", "key": "date", "value": "2000-01-01"},
            ]},
            {"deep/film.mp4", "knowledge.jsonl"},
        ),
    ],
)  # fmt: skip
def test_filters_choose_files(stores, filters, expected):
    assert set(names(stores.search("films", query="a red star", filters=filters))) == expected


def test_a_file_that_is_no_longer_there_is_told_and_its_folder_is_not(stores, folder):
    found = stores.search("films", query="a blue circle", max_num_results=50)
    assert "gone.png" not in names(found)
    assert found.longview["warnings"] == ["gone.png is in the index, and no longer there; index its folder again"]
    assert str(folder) not in found.to_json()


@pytest.mark.parametrize(
    ("asked", "param", "reason"),
    [
        ({"filters": {"type": "eq", "key": "folder", "value": "../.."}}, "filters", "outside of the index"),
        ({"filters": {"type": "eq", "key": "folder", "value": "/etc"}}, "filters", "outside of the index"),
        ({"filters": {"type": "eq", "key": "size", "value": 3}}, "filters", "there is no filter 'size' by 'eq'"),
        ({"filters": {"type": "gte", "key": "date", "value": "soon"}}, "filters", "'soon' is no day"),
        ({"filters": {"type": "gte", "key": "date", "value": 3}}, "filters", "after"),
        ({"filters": {"type": "or", "filters": []}}, "filters", "a filter is"),
        ({"filters": {"type": "eq", "key": "kind", "value": [3, {}]}}, "filters", "there is no kind 3"),
        ({"max_num_results": 51}, "max_num_results", "50"),
        ({"query": "  "}, "query", "nothing to look for"),
        ({"query": ["a", "b"]}, "query", "str"),
        ({"rewrite_query": True}, "rewrite_query", "rewrite_query"),
    ],
)
def test_wrong_searches_are_refused_in_a_line(stores, asked, param, reason):
    with pytest.raises(openai.BadRequestError) as caught:
        stores.search("films", **{"query": "a star", **asked})
    assert caught.value.param == param
    assert reason in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]


def test_an_index_that_is_not_served_is_not_found(stores):
    for ask in (lambda: stores.retrieve("other"), lambda: stores.search("other", query="x")):
        with pytest.raises(openai.NotFoundError, match="there are: films"):
            ask()


def test_what_has_been_indexed_since_is_found(stores, folder):
    write_picture(Picture((Thing("green", "heart", "large", 0.5, 0.5),)), folder / "heart.png")
    update_index(folder.parent / "index", [folder], Similarity.open(DEMO), DEMO)
    pictures = {"type": "eq", "key": "kind", "value": "picture"}
    assert names(stores.search("films", query="a green heart", filters=pictures))[0] == "heart.png"
    assert stores.retrieve("films").file_counts.total == 4, "one is new, one is gone"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("films",), "give NAME=FOLDER"),
        (("a/b=c",), "give NAME=FOLDER"),
        (("x=nowhere",), "is no index; make one with"),
        (("x={index}", "x={index}"), "two indexes are called 'x'"),
    ],
)
def test_wrong_options_are_one_line(folder, given, reason):
    from longview.errors import RequestError
    from longview.serve.indexes import Indexes

    options = ServerOptions(index=tuple(each.format(index=folder.parent / "index") for each in given))
    with pytest.raises(RequestError, match=reason):
        Indexes(options.index)
