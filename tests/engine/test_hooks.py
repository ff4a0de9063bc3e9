"""Hooks: a user's own extra writes into the messages and makes something of the answer, by the same way as ours."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import ClassVar

import pytest
from PIL import Image
from samples import noise

import longview
from longview.engine import Engine
from longview.errors import MediaError, RequestError
from longview.world.render import write_clip
from longview.world.scenes import draw_clip

PICTURE = longview.image(noise(1))


class Sizes(longview.Hook):
    """Writes the size of each medium behind the question, and counts the letters of the answer."""

    def before_model(self, messages, media, progress):
        text = " ".join(f"{medium.width}x{medium.height}" for medium in media)
        last = replace(messages[-1], parts=(*messages[-1].parts, longview.Part("text", text=text)))
        return [*messages[:-1], last], {"sizes": text}

    def after_answer(self, answer, progress):
        return {"letters": len(answer.text)}


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(*tiny, name="tiny")


def question(text: str = "What?") -> list[longview.Message]:
    return [longview.ask(text, PICTURE)]


def test_what_a_hook_writes_reaches_the_model_and_its_notes_the_receipt(engine):
    answer = engine.answer(question(), hooks=[Sizes()], max_tokens=3)
    by_hand = engine.answer(question("What?40x30"), max_tokens=3)
    assert answer.tokens == by_hand.tokens
    assert answer.receipt.usage.prompt_tokens == by_hand.receipt.usage.prompt_tokens
    assert answer.receipt.notes == {"sizes": "40x30"}
    assert answer.made == {"letters": len(answer.text)}
    plain = json.loads(json.dumps(answer.as_dict()))
    assert (plain["sizes"], plain["letters"]) == ("40x30", len(answer.text))
    assert by_hand.as_dict().keys() == plain.keys() - {"sizes", "letters"}
    assert "notes" not in plain


def test_in_a_stream_what_was_made_comes_behind_the_receipt(engine):
    pieces = list(engine.stream(question(), hooks=[Sizes()], max_tokens=3, n=2))
    for choice in (0, 1):
        *_, last, made = [piece for piece in pieces if piece.choice == choice]
        assert last.receipt is not None
        assert (made.text, made.receipt, list(made.made)) == ("", None, ["letters"])
    assert all(piece.made is None for piece in engine.stream(question(), max_tokens=3))


def test_hooks_of_the_engine_run_before_those_of_the_request_and_those_named_by_settings(tiny):
    class Marks(Sizes):
        def __init__(self, mark):
            self.mark = mark

        def before_model(self, messages, media, progress):
            part = longview.Part("text", text=self.mark)
            return [replace(messages[-1], parts=(*messages[-1].parts, part))], {self.mark: None}

        def after_answer(self, answer, progress):
            return {}

    engine = Engine(*tiny, hooks=[Marks("a")])
    answer = engine.answer(question(), hooks=[Marks("b")], max_tokens=2, ocr=True)
    assert list(answer.receipt.notes) == ["a", "b", "read"]
    assert answer.tokens == Engine(*tiny).answer(question("What?ab"), max_tokens=2).tokens


def test_a_batch_runs_hooks_and_a_hook_that_fails_harms_no_other_row(engine):
    class Fails(Sizes):
        def before_model(self, messages, media, progress):
            if "bad" in messages[-1].text:
                raise MediaError("no good")
            return super().before_model(messages, media, progress)

        def after_answer(self, answer, progress):
            if len(answer.receipt.frames) == 2:
                raise RequestError("one picture is enough")
            return super().after_answer(answer, progress)

    rows = [question("a"), question("bad"), [longview.ask("b", PICTURE, PICTURE)], question("c")]
    found = list(engine.batch(rows, hooks=[Fails()], max_tokens=2))
    assert [str(found[1]), str(found[2])] == ["no good", "one picture is enough"]
    assert all(found[row].made == {"letters": len(found[row].text)} for row in (0, 3))


def test_a_hook_refuses_before_anything_is_opened(engine):
    class Refuses(longview.Hook):
        def check(self, engine):
            raise RequestError(f"{engine.name} cannot do this")

    for ask in (engine.stream, lambda row, **settings: engine.batch([row], **settings)):
        with pytest.raises(RequestError, match="tiny cannot do this"):
            ask([longview.ask("What?", longview.image("/no/such/file"))], hooks=[Refuses()])


@pytest.mark.parametrize("hooks", [Sizes(), [Sizes], [3], "ocr", None])
def test_what_is_no_list_of_hooks_is_refused(engine, tiny, hooks):
    with pytest.raises(RequestError, match=r"give a list of instances of subclasses of longview\.Hook"):
        engine.stream("Hi", hooks=hooks)
    with pytest.raises(RequestError, match="give a list of instances"):
        Engine(*tiny, hooks=hooks)


def test_a_name_that_is_taken_is_refused(engine):
    class Takes(longview.Hook):
        def after_answer(self, answer, progress):
            return {"text": "another"}

    with pytest.raises(RequestError, match="Takes says 'text', a name that is taken"):
        engine.answer("Hi", hooks=[Takes()], max_tokens=1)
    with pytest.raises(RequestError, match="Sizes says 'sizes', a name that is taken"):
        engine.answer("Hi", hooks=[Sizes(), Sizes()], max_tokens=1)


def test_a_hook_that_reads_frames_gets_pictures(engine, tmp_path):
    class Looks(longview.Hook):
        reads_frames = True
        images: ClassVar[list] = []

        def before_model(self, messages, media, progress):
            self.images.extend(frame.image for frame in media[0].frames)
            return messages, {}

    clip = write_clip(draw_clip(random.Random(1)), tmp_path / "clip.mp4")
    engine.answer([longview.ask("?", longview.video(clip))], media={"frames": 2}, hooks=[Looks()], max_tokens=1)
    assert all(isinstance(image, Image.Image) and image.width > 100 for image in Looks.images)
    assert len(Looks.images) == 2


def test_a_user_of_load_registers_hooks_for_every_request():
    engine = longview.load("demo", hooks=[Sizes()])
    assert engine.answer(question(), max_tokens=1).receipt.notes == {"sizes": "40x30"}
