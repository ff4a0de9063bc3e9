"""The flags that MGM was published with: pictures, reading, drawing, quantisation, devices."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from samples import sign, tiny_model, tiny_painter

import longview as library
from longview.engine.text import TextStream
from longview.models import mgm


@pytest.fixture(scope="module")
def mgm_model(tokenizer, tmp_path_factory):
    """A checkpoint folder of MGM. Its answers are nonsense."""
    folder = tmp_path_factory.mktemp("models") / "MGM-tiny"
    changes = {**mgm.Config.tiny("hd").text_config.to_dict(), "max_position_embeddings": 4096, "intermediate_size": 128}
    model, processor = tiny_model(mgm, "hd", tokenizer, text_config=changes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    return tiny_painter(tmp_path_factory.mktemp("painter"))


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs")
    sign("STOP 42").save(folder / "stop.jpg", quality=85)
    sign("EXIT").save(folder / "exit.jpg", quality=85)
    return folder


@pytest.fixture
def describes(monkeypatch):
    """What the model is to answer: a tiny random one writes nonsense."""

    def set_answer(text: str) -> None:
        monkeypatch.setattr(TextStream, "push", lambda self, token: "")
        monkeypatch.setattr(TextStream, "finish", lambda self: text)

    return set_answer


def test_the_published_command_line_talks_about_several_pictures(longview, mgm_model, signs):
    both = f"{signs / 'stop.jpg'},{signs / 'exit.jpg'}"
    common = ("chat", "--model-path", mgm_model, "--device", "cpu", "--max-tokens", 4, "--json")
    ran = longview(*common, "--image-file", both, stdin="What do they say?\n")
    assert ran.code == 0
    assert [frame["name"] for frame in ran.json["frames"]] == ["stop.jpg", "exit.jpg"]
    assert [frame["crops"] for frame in ran.json["frames"]] == [1, 1]
    apart = longview(*common, signs / "stop.jpg", signs / "exit.jpg", stdin="What do they say?\n")
    assert apart.json["text"] == ran.json["text"]


@pytest.mark.parametrize("flag", ["--load-8bit", "--load-4bit"])
def test_quantised_models_answer(longview, mgm_model, signs, flag):
    ran = longview("ask", "-m", mgm_model, flag, signs / "stop.jpg", "What?", "--max-tokens", 2, "--json")
    assert ran.json["usage"]["completion_tokens"] == 2


def test_what_was_read_is_in_the_receipt_for_people_and_programs(longview, mgm_model, signs):
    common = ("ask", "-m", mgm_model, "--ocr", "--max-tokens", 2, signs / "stop.jpg", signs / "exit.jpg", "What?")
    ran = longview(*common)
    assert "found     in stop.jpg: STOP 42\nfound     in exit.jpg: EXIT\n" in ran.err
    assert longview(*common, "--json").json["read"] == [
        {"medium": 0, "name": "stop.jpg", "texts": ["STOP 42"]},
        {"medium": 1, "name": "exit.jpg", "texts": ["EXIT"]},
    ]


def test_every_family_reads_where_it_is_asked_to(longview, random_model, signs):
    ran = longview("ask", "-m", random_model, "--ocr", "--max-tokens", 2, signs / "stop.jpg", "What?", "--json")
    assert ran.json["read"][0]["texts"] == ["STOP 42"]


def test_a_description_is_painted_into_the_output_file(longview, mgm_model, painter, tmp_path, describes):
    describes("Here. <h>a red cat</h>")
    paint = ("--gen", "--gen-model", painter, "--gen-steps", 1, "--seed", 1, "--max-tokens", 1)
    out = tmp_path / "cat.png"
    ran = longview("ask", "-m", mgm_model, *paint, "--output-file", out, "Draw a cat")
    assert ran.out == "Here. <h>a red cat</h>\n"
    assert ran.err.endswith(f"painted   {out}: a red cat\n")
    assert Image.open(out).size == (64, 64)
    chat = longview("chat", "-m", mgm_model, *paint, "--output-file", out, "--json", stdin="A cat\nAnother\n")
    drawn = [json.loads(line)["drawing"] for line in chat.out.splitlines()]
    assert [entry["file"] for entry in drawn] == [str(tmp_path / "cat-2.png"), str(tmp_path / "cat-3.png")]
    assert all((tmp_path / name).exists() for name in ("cat-2.png", "cat-3.png"))


def test_an_answer_that_describes_nothing_says_so_and_loads_no_painter(longview, mgm_model, tmp_path):
    out = tmp_path / "cat.png"
    common = ("ask", "-m", mgm_model, "--gen", "--gen-model", tmp_path, "--output-file", out, "--max-tokens", 2, "Cat?")
    ran = longview(*common)
    assert ran.code == 0
    assert "the answer describes no picture (no <h>…</h>)" in ran.err
    assert "MGM-13B" in ran.err
    assert longview(*common, "--json").json["drawing"] is None
    assert not out.exists()


def test_the_trigger_stands_at_the_end_of_the_question(mgm_model):
    engine = library.load(mgm_model)
    asked = engine.answer("Draw a cat", gen=True, max_tokens=1).receipt.usage.prompt_tokens
    assert asked == engine.answer("Draw a cat <GEN>", max_tokens=1).receipt.usage.prompt_tokens
    assert engine.answer("A cat", gen=True, max_tokens=3).tokens == engine.answer("A cat <GEN>", max_tokens=3).tokens


def test_flags_that_mean_nothing_here_are_refused(refused, mgm_model, random_model, signs, tmp_path):
    ask = ("ask", "-m", mgm_model)
    assert "--ocr reads the text in pictures, and none is given" in refused(*ask, "--ocr", "Hi")
    assert "--output-file is for painting; add --gen" in refused(*ask, "--output-file", "a.png", "Hi")
    assert "--gen-steps is for painting" in refused(*ask, "--gen-steps", 3, "Hi")
    assert "gen_steps is 0" in refused(*ask, "--gen", "--gen-steps", 0, "Hi")
    assert "was not taught to describe pictures" in refused("ask", "-m", random_model, "--gen", "Hi")
    assert "contradict each other" in refused(*ask, "--load-8bit", "--load-4bit", "Hi")
    assert "vision_tower_aux has no meaning" in refused("ask", "-m", random_model, "--vision-tower-aux", "x", "Hi")
    assert "leave model_base" in refused(*ask, "--model-base", "x", "Hi")
    assert "no folder 'no tower'" in refused(*ask, "--vision-tower-aux", "no tower", "Hi")
    if not torch.backends.mps.is_available():
        assert "has no mps device" in refused("chat", "-m", mgm_model, "--device", "mps")
    if not torch.cuda.is_available():
        assert "has no cuda device" in refused("chat", "-m", mgm_model, "--device", "cuda")


def test_an_animation_where_a_photo_is_expected_is_one_clear_error(longview, refused, mgm_model, signs, tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    both = f"{signs / 'stop.jpg'}, {tmp_path / 'a.gif'}"
    common = ("chat", "-m", mgm_model, "--max-tokens", 1, "--json")
    message = refused(*common, "--image-file", both, stdin="What?\n")
    assert message.startswith(f"--image-file takes photos, and {tmp_path / 'a.gif'} moves")
    assert len(longview(*common, tmp_path / "a.gif", stdin="What?\n").json["frames"]) == 2
    assert "missing.jpg" in refused(*common, "--image-file", "missing.jpg", stdin="What?\n")


def test_info_says_what_an_mgm_is_and_needs(longview, mgm_model):
    facts = longview("info", mgm_model, "--json").json
    assert facts["family"] == "mgm"
    assert facts["release"] == "llama, HD"
