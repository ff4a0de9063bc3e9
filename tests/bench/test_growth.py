"""`longview bench growth`: it counts right, ends where it predicts too much, and says what its rows say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
import torch

from longview.bench import films
from longview.bench import growth as module
from longview.bench.films import number_of, write_numbered_video
from longview.bench.growth import Growth, InEngine, InSequence, Run, Size, grow, growth, operations
from longview.bench.growth_page import apart, findings, last_decade, length, page
from longview.bench.subject import DIMENSIONS, Subject, open_subject
from longview.errors import RequestError
from longview.media.decoders.video import VideoReader
from longview.models.families import families

TOKENS = 3


@pytest.fixture(scope="module")
def small() -> Iterator[dict[str, Subject]]:
    """One language model in two ways, in dimensions that take no time."""
    text = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    owl3 = {**text, "vision_config": families()["owl3"].Config.tiny().vision_config.to_dict(), "hyper_layers": [1, 3]}
    visual = families()["ovis2"].Config.tiny().visual_tokenizer_config.to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DIMENSIONS, "small-owl3", ("owl3", owl3))
        patch.setitem(DIMENSIONS, "small-ovis2", ("ovis2", {"llm_config": text, "visual_tokenizer_config": visual}))
        yield {name: open_subject(name, True, "float32", "cpu") for name in ("small-owl3", "small-ovis2")}


class Scripted:
    """Takes a second for each thousand operations, which grow as the square."""

    name, max_positions, memory = "scripted", 10_000, 1 << 30

    def __init__(self) -> None:
        self.times_run: list[int] = []

    def size(self, pictures: int) -> Size:
        return Size(10 * pictures, 100 * pictures**2, 1 << 10)

    def runs(self, pictures: int) -> Iterator[Run]:
        while True:
            self.times_run.append(pictures)
            yield Run(pictures**2 / 10, 0.01, 1 << 10)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_a_power_law_gives_its_exponent(power):
    rows = [{"x": x, "y": 7 * x**power} for x in (1, 3, 10, 30, 100, 300)] + [{"x": 1000, "y": None}]
    found = last_decade(rows, "x", "y")
    assert found is not None
    assert (found.first["x"], found.last["x"]) == (30, 300)
    assert found.exponent("y") == pytest.approx(power)
    assert last_decade(rows[:1], "x", "y") is None


def test_a_way_ends_before_the_count_that_is_predicted_to_take_too_long():
    way = Scripted()
    rows = grow(way, (30, 1, 10, 3, 30), repeats=2, limit=50)
    assert way.times_run == [1, 1, 3, 3, 10, 10]
    assert [row["pictures"] for row in rows] == [1, 3, 10, 30]
    assert [row["first token s"] for row in rows] == [0.1, 0.9, 10.0, None]
    assert rows[-1]["predicted s"] == pytest.approx(90)
    assert [row["ended by"] for row in rows] == [None, None, None, "time"]
    assert all(row["predicted s"] is None for row in rows[:-1])
    assert (
        "scripted ends before 30 pictures: its first token is predicted after 90 s, and the limit is 50."
        in findings(rows, 50)
    )


def test_a_way_ends_where_positions_or_memory_do(monkeypatch):
    way = Scripted()
    monkeypatch.setattr(way, "max_positions", 100, raising=False)
    assert [row["ended by"] for row in grow(way, (1, 9, 10, 20), 1, 1e9)] == [None, None, "positions", "positions"]
    way = Scripted()
    monkeypatch.setattr(way, "memory", 3000, raising=False)
    assert [row["ended by"] for row in grow(way, (1, 9), 1, 1e9)] == ["memory", "memory"]


def test_a_count_is_repeated_only_as_long_as_its_limit_lasts(monkeypatch):
    clock = itertools.count(0, 20)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert len(module._repeat(Scripted().runs(1), 3, 50)) == 2, "20 s each, and a third would end after 60"
    assert len(module._repeat(Scripted().runs(1), 3, 1)) == 1
    assert len(module._repeat(Scripted().runs(1), 3, 1000)) == 3


def test_operations_are_those_counted_by_hand(small):
    """Of four layers 64 wide: four heads, two of keys and values, an inner width of 96."""
    way = InSequence(small["small-owl3"], TOKENS)
    text = module.prompt(small["small-owl3"], 2)[0]
    positions = text + 2 * 4
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    pairs = sum(range(1, positions + 1))
    in_sequence = 4 * (2 * layer * positions + 4 * 64 * pairs) + 2 * 64 * 400
    assert way.size(2)[:2] == (positions, in_sequence)

    ours = InEngine(small["small-owl3"], TOKENS)
    starts = module.prompt(small["small-owl3"], 2)[1]
    seen = sum(4 for token in range(text) for start in starts if token >= start)
    beside = 4 * (2 * layer * text + 4 * 64 * sum(range(1, text + 1))) + 2 * 64 * 400
    beside += 2 * (2 * 64 * 64 * 2 * 4 + 4 * 64 * seen)
    assert ours.size(2)[:2] == (text, beside)


def test_operations_agree_with_those_that_torch_counts(small):
    """torch counts attention to all positions, and not to those before alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = InSequence(small["small-owl3"], TOKENS).model.model
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(inputs_embeds=torch.zeros(1, 50, 64))
    half = 4 * 4 * 64 * (50 * 50 - 50 * 51 // 2)
    assert operations(model.model.layers, 64, 0, 50) + half == counter.get_total_flops()


@pytest.mark.parametrize("name", ["small-owl3", "small-ovis2"])
def test_the_bytes_kept_are_those_of_the_models_own_footprint(small, name):
    subject = small[name]
    footprint = type(subject.model).footprint(subject.model.config, torch.float32)
    way = InEngine(subject, TOKENS)
    for count in (1, 3):
        kept = next(way.runs(count)).bytes
        positions, starts = module.prompt(subject, count)
        assert len(starts) == (count if name == "small-owl3" else 0)
        assert kept == (positions + TOKENS - 1) * footprint.token_bytes + len(starts) * footprint.picture_bytes
        assert kept == way.size(count).bytes
    alone = InSequence(small["small-owl3"], TOKENS)
    assert next(alone.runs(3)).bytes == (module.prompt(small["small-owl3"], 3)[0] + 12 + TOKENS - 1) * (
        4 * 2 * 2 * 16 * 4
    ), "four layers of keys and values, two heads of 16 numbers in four bytes"


def test_pictures_and_films_are_measured_saved_and_shown(small, tmp_path):
    result = growth(("small-owl3", "small-ovis2"), (1, 2, 200), (1, 4), TOKENS, 1, 30, "cpu", "float32")
    ways = ["small-owl3"] * 3 + ["small-owl3 interleaved"] * 3 + ["small-ovis2"] * 3
    assert [row["way"] for row in result.rows] == ways
    assert [row["runs"] for row in result.rows if row["pictures"] < 200] == [1] * 6
    assert [row["ended by"] for row in result.rows[2::3]] == ["positions", None, "positions"]
    assert [row["exact frames"] for row in result.films] == ["64 of 64", "64 of 64"]
    assert [row["frames in it"] for row in result.films] == [64, 96]
    path = tmp_path / "growth.json"
    path.write_text(result.as_json())
    again = Growth.read(path)
    assert again.table() == result.table()
    shown = page(again, "growth")
    assert list(shown) == ["figure", "pictures", "films", "measured"]
    assert "| small-ovis2 | 2 |" in shown["pictures"]
    assert all(sentence in shown["pictures"] for sentence in result.findings)
    again.plot(tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_a_question_may_be_about_more_pictures_than_a_video_may_have(small):
    subject = small["small-owl3"]
    assert [part.type for part in subject.question(513)[0].media] == ["video"] * 2
    assert len(module.prompt(subject, 513)[1]) == 513


def test_a_film_of_repeated_packets_is_as_long_as_it_is_said_to_be(tmp_path):
    minute = write_numbered_video(tmp_path / "short.mp4", 300, seed=0)
    with VideoReader(films.write_film(minute, tmp_path / "film.mp4", 1000)) as reader:
        assert (reader.num_frames, reader.fps) == (1000, pytest.approx(24))
        wanted = [0, 299, 300, 555, 999]
        assert [number_of(frame.image) for frame in reader.read(wanted)] == [0, 299, 0, 255, 99]


def test_decoding_through_ends_where_it_is_predicted_to_take_too_long(monkeypatch):
    monkeypatch.setattr(films, "decode_through", lambda path: 3.0)
    rows = films.read_films((4, 8), 1, limit=5)
    assert [row["decode through s"] for row in rows] == [3.0, None]
    assert [row["predicted s"] for row in rows] == [None, pytest.approx(6.0)]


def test_lengths_and_labels_are_readable():
    assert [length(seconds) for seconds in module.FILMS] == ["10 s", "1 min", "10 min", "1 h", "4 h"]
    moved = apart([0.1, 0.5, 0.51, 0.52], 0.1)
    assert moved[0] == 0.1
    assert all(after - before >= 0.1 - 1e-9 for before, after in itertools.pairwise(moved))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--features", "random"], "not of growth; leave it out"),
        (["--pictures", "0,1"], "pictures is 0; give growth numbers from 1 up"),
        (["--minutes", "0"], "minutes is 0; give a whole number from 1 up"),
        (["--dims", "demo,owl9"], "unknown --dims 'owl9'"),
    ],
)
def test_a_mistake_is_one_line(capsys, monkeypatch, words, complaint):
    from longview.cli import main

    monkeypatch.setattr(module, "read_films", lambda *_: pytest.fail("measured"))

    with pytest.raises(SystemExit) as exit:
        main(["bench", "growth", *words])
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_verb_measures_what_it_is_given(capsys, monkeypatch, small):
    from longview.cli import main

    monkeypatch.setattr(growth, "__defaults__", (*growth.__defaults__[:2], (2,), *growth.__defaults__[3:]))
    with pytest.raises(SystemExit) as exit:
        main(
            [
                "bench",
                "growth",
                "--dims",
                "small-ovis2",
                "--pictures",
                "2,1",
                "--tokens",
                "3",
                "--json",
                "--repeats",
                "1",
            ]
        )
    assert not exit.value.code
    printed = json.loads(capsys.readouterr().out)
    assert [row["pictures"] for row in printed["rows"]] == [1, 2]
    assert printed["settings"]["limit s"] == 60


def test_no_such_dimensions_are_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(module, "read_films", lambda *_: pytest.fail("measured"))
    with pytest.raises(RequestError, match="unknown --dims 'nonsense'"):
        growth(("demo", "nonsense"))
