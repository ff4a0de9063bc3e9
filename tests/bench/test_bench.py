"""`longview bench`: every measure runs, says what it measured, and counts right. Nothing here is timed."""

from __future__ import annotations

import json

import pytest
import torch

from longview.bench import alternatives, limits, subject
from longview.bench.films import number_of, write_numbered_video
from longview.bench.measures import MEASURES, BenchOptions
from longview.bench.report import Result
from longview.bench.subject import DIMENSIONS, Subject, byte_tokenizer, random_model
from longview.errors import RequestError
from longview.media.decoders.video import VideoReader
from longview.models.families import families

SMALL = BenchOptions(pictures=(1, 3), repeats=1, layers=1, tokens=3, requests=3, minutes=1, gigabytes=1)


@pytest.fixture
def small(monkeypatch) -> Subject:
    """Random weights in dimensions that take no time."""
    config = families()["owl3"].Config.tiny("241101", vocab_size=400).to_dict()
    kept = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    monkeypatch.setitem(DIMENSIONS, "small", ("owl3", kept))
    monkeypatch.setattr(limits, "read_rate", lambda *_: 1e9)
    monkeypatch.setattr(limits, "vector_rate", lambda *_: 1e9)
    return subject.open_subject("small", random_features=True, dtype="float32", device="cpu")


@pytest.mark.parametrize("measure", [name for name in MEASURES if name != "video"])
def test_every_measure_gives_a_table_that_can_be_saved_and_read(small, measure, tmp_path):
    result = MEASURES[measure](small, SMALL)
    assert result.rows
    assert all(row.keys() == result.rows[0].keys() for row in result.rows)
    assert result.settings["dims"] == "small"
    assert result.machine["torch"] == torch.__version__
    path = tmp_path / "result.json"
    path.write_text(result.as_json())
    again = Result.read(path)
    assert again.rows == result.rows
    assert again.table() == result.table()
    assert all(str(column) in result.page() for column in result.rows[0])


def test_what_attention_costs_is_counted_by_pairs_that_are_seen(small, monkeypatch):
    from longview.bench import attention

    seconds = []
    monkeypatch.setattr(attention, "median_seconds", lambda run, repeats, device: seconds.append(run()) or 1.0)
    row = attention.attention_rates(small.model, 2, 1)
    layer = small.model.language_model.model.layers[0].self_attn
    # two pictures, each placeholder of five tokens sees its picture and those before, and thirty tokens see both
    pairs = (5 * 1 + 5 * 2 + 30 * 2) * small.model.config.patches_per_picture
    assert row["flop/s"] == 4 * layer.head_dim * layer.config.num_attention_heads * pairs
    assert row["kernel alone flop/s"] == row["flop/s"] / (5 + 10 + 60) * (2 * 40)


def test_a_numbered_video_is_read_exactly(tmp_path):
    path = write_numbered_video(tmp_path / "film.mp4", 300, seed=3)
    with VideoReader(path) as reader:
        wanted = [0, 1, 128, 255, 299]
        assert [number_of(frame.image) for frame in reader.read(wanted)] == wanted


def test_random_features_leave_the_tower_out(small, monkeypatch):
    monkeypatch.setattr(small.model, "encode", lambda **_: pytest.fail("the tower ran"))
    answer = small.engine.answer(small.question(3), max_tokens=1)
    assert answer.receipt.usage.pictures == 3


def test_the_memory_of_pictures_is_that_of_the_models_own_footprint(small):
    footprint = type(small.model).footprint(small.model.config, torch.float32)
    assert alternatives.visual_kv_bytes(small, 4) == 4 * footprint.picture_bytes
    per_picture = footprint.token_bytes * footprint.patches_per_picture
    for layers in (0, 1, 2):
        assert alternatives.Interleaved(small, layers).bytes_per_picture() == per_picture


def test_the_alternative_is_the_same_language_model_whatever_part_of_it_runs(small):
    whole, part = alternatives.Interleaved(small), alternatives.Interleaved(small, 1)
    assert (whole.layers, whole.scale) == (4, 1)
    assert (part.layers, part.scale) == (1, 4)
    plain = small.model.plain_language_model()
    assert sum(p.numel() for p in whole.model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert whole.first_token(2, 5) > 0
    assert whole.token(2, 5, repeats=1) > 0


def test_the_tokenizer_has_a_token_a_byte_and_five_for_the_placeholder():
    tokenizer = byte_tokenizer()
    ids = tokenizer("<|image|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(ids) == 5
    assert tokenizer.decode(tokenizer("Grüße, 世界", add_special_tokens=False)["input_ids"]) == "Grüße, 世界"


@pytest.mark.parametrize("dims", DIMENSIONS)
def test_the_dimensions_are_those_of_models_there_are(dims):
    """Parameters, in billions, as published: of the language model, the tower and what joins them."""
    name, fields = DIMENSIONS[dims]
    family = families()[name]
    footprint = family.Model.footprint(family.Config(**fields), torch.bfloat16)
    published = {"owl3-0.2b": 0.229, "owl3-1b": 0.94, "owl3-2b": 2.0, "owl3-7b": 8.07, "ovis2-2b": 2.22, "mgm-7b": 7.3}
    published |= {"ovis2-0.2b": 0.236, "mgm-0.2b": 0.252}
    assert footprint.parameters / 1e9 == pytest.approx(published[dims], rel=0.05)


def test_random_weights_are_finite_and_give_finite_scores(monkeypatch):
    config = families()["owl3"].Config.tiny("241101", vocab_size=400).to_dict()
    kept = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    monkeypatch.setitem(DIMENSIONS, "small", ("owl3", kept))
    model, _ = random_model("small", "bfloat16")
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(model(input_ids=torch.arange(20)[None]).logits).all()


# ── the command line ──


def test_the_verb_prints_a_table_or_json_and_saves_and_draws(capsys, tmp_path, small):
    from longview.cli import main

    saved, drawn = tmp_path / "a.json", tmp_path / "a.png"
    words = ["bench", "first-token", "--dims", "small", "--features", "random", "--pictures", "1,2", "--repeats", "1"]
    with pytest.raises(SystemExit) as exit:
        main([*words, "--layers", "1", "--json", "--save", str(saved), "--plot", str(drawn)])
    assert not exit.value.code
    printed = json.loads(capsys.readouterr().out)
    assert [row["pictures"] for row in printed["rows"]] == [1, 2]
    assert json.loads(saved.read_text()) == printed
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit):
        main([*words, "--layers", "1"])
    assert "faster without tower ×" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["speed"], "unknown measure 'speed'; there are first-token, decode"),
        (["decode", "--dims", "owl3-9b"], "unknown --dims 'owl3-9b'; give owl3-0.2b, ovis2-0.2b"),
        (["decode", "--features", "none"], "unknown value 'none' of --features; expected random or tower"),
        (["decode", "--pictures", "a,b"], "pictures is 'a,b'; give whole numbers with commas"),
        (["decode", "--tokens", "1"], "tokens is 1; give a whole number from 2 up"),
        (["decode", "--repeats", "0"], "repeats is 0; give a whole number from 1 up"),
        (["decode", "--minutes", "3"], "--minutes is of video or growth, not of decode; leave it out"),
        (["growth", "--interleaved", "16"], "--interleaved is of first-token or decode, not of growth; leave it out"),
        (["video", "--dims", "demo"], "not of video; leave it out"),
        (["train", "--kv-dtype", "int8"], "not of train; leave it out"),
        (["attention", "--pictures", "0"], "pictures is 0; give attention numbers from 1 up"),
        (["attention", "--dims", "demo-mgm"], "attention is measured of hyper attention, which mPLUG-Owl3 has"),
        (["index", "--clients", "1"], "--clients is of serve, not of index; leave it out"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, complaint):
    from longview.cli import main

    with pytest.raises(SystemExit) as exit:
        main(["bench", *words])
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_file_that_is_no_measurement_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(RequestError, match="is no saved measurement"):
        Result.read(tmp_path / "x.json")
