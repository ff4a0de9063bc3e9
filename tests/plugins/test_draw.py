"""Drawing: the trigger, the description in an answer, and a tiny SDXL pipeline that really paints."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from longview.errors import CheckpointError, MissingExtraError, RequestError
from longview.messages import Message, ask, image
from longview.plugins.draw import NEGATIVE_PROMPT, TRIGGER, DrawHook, Painter, description, save


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Here you are. <h> a red cat, photo </h>", "a red cat, photo"),
        ("<h>a</h> and <h>b</h> then", "b"),
        ("<h>a <h>b</h>", "b"),
        ("A red cat.", None),
        ("<h>a red cat", None),
        ("</h>a red cat<h>", None),
        ("<h>  </h>", None),
    ],
)
def test_the_last_description_of_an_answer_is_painted(answer, found):
    assert description(answer) == found


def test_each_question_of_the_user_ends_in_the_trigger():
    messages = [Message.of("system", "Be kind."), Message.of("user", "A cat?"), Message.of("assistant", "Yes.")]
    messages.append(ask("Draw it", image("cat.jpg")))
    found, _ = DrawHook().before_model(messages, [], None)
    assert [message.text.endswith(TRIGGER) for message in found] == [False, True, False, True]
    assert found[3].media == messages[3].media
    assert messages[1].text == "A cat?", "the caller's messages are left alone"


def test_a_picture_is_painted_and_the_seed_fixes_it(pipeline):
    def painted(**settings) -> np.ndarray:
        return np.asarray(Painter(str(pipeline), steps=2, **settings).paint("a red cat"))

    first = painted(seed=1)
    assert first.shape == (64, 64, 3)
    assert first.std() > 1, "it is not one colour"
    assert np.array_equal(painted(seed=1), first)
    assert not np.array_equal(painted(seed=2), first)


def test_progress_is_told_of_each_step_of_denoising(pipeline):
    told = []
    Painter(str(pipeline), steps=3).paint("a red cat", lambda *step: told.append(step))
    assert told[1:] == [(1, 1, "opening SDXL"), *((n, 3, "painting") for n in (1, 2, 3))]


def test_the_description_and_what_is_unwanted_reach_the_pipeline(pipeline):
    painter = Painter(str(pipeline), steps=1, seed=3)
    cat = np.asarray(painter.paint("a red cat"))
    loaded = painter._loaded()
    assert loaded is painter._loaded(), "it is loaded once"
    assert not np.array_equal(np.asarray(painter.paint("zzzz")), cat)
    given = {}
    original = loaded.encode_prompt
    loaded.encode_prompt = lambda **arguments: given.update(arguments) or original(**arguments)
    painter.paint("a red cat")
    assert (given["prompt"], given["negative_prompt"]) == ("a red cat", NEGATIVE_PROMPT)


def test_nothing_is_loaded_before_something_is_painted(tmp_path):
    Painter(str(tmp_path / "nowhere"))


def test_an_existing_picture_is_kept(tmp_path):
    picture = Image.new("RGB", (2, 2))
    names = [save(picture, tmp_path / "generate.png").name for _ in range(3)]
    assert names == ["generate.png", "generate-2.png", "generate-3.png"]


def test_what_cannot_be_painted_or_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    for model in (tmp_path, tmp_path / "nowhere", "nobody/nothing"):
        with pytest.raises(CheckpointError, match="is no SDXL pipeline that can be opened") as error:
            Painter(str(model)).paint("a cat")
        assert "\n" not in str(error.value)
    for name in ("nowhere/a.png", "a.cat"):
        with pytest.raises(RequestError, match="choose another --output-file"):
            save(Image.new("RGB", (2, 2)), tmp_path / name)
    with pytest.raises(RequestError, match="gen_steps is 0"):
        Painter(steps=0)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"--gen needs diffusers.*pip install '?diffusers"):
        Painter(str(tmp_path)).paint("a cat")
