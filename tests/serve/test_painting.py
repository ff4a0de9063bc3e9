"""A server that paints what MGM describes: the demo, made to write a description, and a tiny pipeline."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest
from PIL import Image
from samples import tiny_painter
from serving import Server, running

DRAW = [{"role": "user", "content": "Draw a cat"}]
DESCRIBED = "<h>a red cat</h>"


@pytest.fixture(scope="module")
def painting(tmp_path_factory) -> Iterator[Server]:
    folder = str(tiny_painter(tmp_path_factory.mktemp("painter")))
    models = ("--model", "demo-mgm", "--model", "demo-owl3")
    with running(*models, "--gen-model", folder, "--gen-steps", "1") as started:
        yield started


def beside(answer: str = DESCRIBED) -> dict:
    """What asks for a drawing, and has the model answer just this."""
    return {"longview": {"gen": True}, "structured_outputs": {"regex": answer}}


def picture_of(image: dict) -> Image.Image:
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_picture_of_an_answer_comes_with_its_message(painting):
    def painted(**more):
        create = painting.client().chat.completions.create
        message = create(model="demo-mgm", messages=DRAW, extra_body=beside(), max_tokens=40, **more).choices[0].message
        assert message.content == DESCRIBED
        (image,) = message.model_extra["images"]
        return picture_of(image)

    assert painted(seed=1).size == (64, 64)
    assert painted(seed=1).tobytes() == painted(seed=1).tobytes()
    assert painted(seed=1).tobytes() != painted(seed=2).tobytes()


def test_a_stream_brings_the_picture_behind_the_answer(painting):
    create = painting.client().chat.completions.create
    chunks = list(create(model="demo-mgm", messages=DRAW, extra_body=beside(), max_tokens=40, stream=True))
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends[-2:] == ["stop", None]
    (image,) = chunks[-1].choices[0].delta.model_extra["images"]
    assert picture_of(image).size == (64, 64)


def test_a_response_has_the_picture_as_openai_s_tool_has_it(painting):
    create = painting.client().responses.create
    form = {"format": {"type": "json_schema", "name": "drawing", "schema": {"enum": [DESCRIBED]}}}
    more = {"extra_body": {"longview": {"gen": True}}, "max_output_tokens": 40}
    _, drawn = create(model="demo-mgm", input="Draw a cat", text=form, **more).output
    assert (drawn.type, drawn.status) == ("image_generation_call", "completed")
    assert Image.open(io.BytesIO(base64.b64decode(drawn.result))).size == (64, 64)


def test_an_answer_that_describes_nothing_has_no_picture(painting):
    create = painting.client().chat.completions.create
    message = create(model="demo-mgm", messages=DRAW, extra_body=beside("no"), max_tokens=40).choices[0].message
    assert message.content == "no"
    assert "images" not in message.model_extra


def test_a_model_that_was_not_taught_to_describe_says_so(painting):
    with pytest.raises(openai.BadRequestError, match="was not taught to describe pictures"):
        painting.client().chat.completions.create(model="demo-owl3", messages=DRAW, extra_body=beside())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "demo-owl3", "--gen-model", "."], "none of demo-owl3 was taught that"),
        (["--model", "demo-mgm", "--gen-model", "/nowhere"], "is no SDXL pipeline that can be opened"),
        (["--gen-steps", "2"], "add --gen-model"),
    ],
)
def test_a_painter_that_cannot_paint_is_refused_in_one_line(options, told):
    command = [sys.executable, "-m", "longview", "serve", "--port", "0", "--no-page", *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode == 2
    assert told in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
