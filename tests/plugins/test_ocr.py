"""Reading: text rendered into real JPEGs is found, written into the question, and listed in the receipt."""

from __future__ import annotations

import sys

import pytest
from samples import noise, sign, tiny_model

import longview
from longview.engine import Engine
from longview.errors import MissingExtraError
from longview.media import open_media
from longview.messages import Message, TextRead, ask, image, video
from longview.models import mgm
from longview.plugins import ocr


@pytest.fixture
def opened(photo):
    def get(*parts):
        return open_media(parts)

    return get


def test_text_in_a_jpeg_is_read(photo, opened):
    (medium,) = opened(image(photo))
    assert ocr.recognizer().recognize_medium(medium) == ("STOP 42", "Platform 9, Track B")


def test_colours_are_not_swapped_on_the_way(opened):
    """Yellow on white is what blue on white is in the other order: nearly invisible."""
    seen = []
    recognizer = ocr.Recognizer()
    recognizer._rapidocr = lambda pixels: seen.append(pixels) or type("Found", (), {"txts": None, "scores": None})
    red = sign("x")
    red.paste((255, 0, 0), (0, 0, *red.size))
    assert recognizer.recognize(red) == []
    assert seen[0][0, 0].tolist() == [0, 0, 255]


def test_texts_that_are_hardly_sure_are_left_out():
    recognizer = ocr.Recognizer()
    found = type("Found", (), {"txts": ("sure", "hardly", "not"), "scores": (0.9, 0.11, 0.1)})
    recognizer._rapidocr = lambda pixels: found
    assert recognizer.recognize(noise(1)) == ["sure", "hardly"]


def test_each_message_gets_the_text_of_its_own_pictures(photo, opened, tmp_path):
    sign("EXIT").save(tmp_path / "exit.jpg")
    noise(1).save(tmp_path / "noise.png")
    messages = [ask("What?", image(photo)), Message.of("assistant", "A sign.")]
    messages += [ask("And these?", image(tmp_path / "exit.jpg"), image(tmp_path / "noise.png"))]
    media = opened(*(part for message in messages for part in message.media))
    written, notes = ocr.OcrHook().before_model(messages, media, None)
    assert written[0].text == "\nWhat?\nReference OCR Token: STOP 42, Platform 9, Track B\n"
    assert written[1] == messages[1]
    assert written[2].text.endswith("And these?\nReference OCR Token: EXIT\n")
    assert [len(message.media) for message in written] == [1, 0, 2]
    assert notes["read"] == (
        TextRead(0, "sign.jpg", ("STOP 42", "Platform 9, Track B")),
        TextRead(1, "exit.jpg", ("EXIT",)),
        TextRead(2, "noise.png", ()),
    )
    assert messages[0].text == "\nWhat?", "the caller's messages are left alone"


def test_a_medium_is_read_once_and_a_text_in_several_frames_is_written_once():
    frames = [sign("EXIT"), sign("EXIT", "42")]
    (medium,) = open_media([video(frames)])
    recognizer, seen = ocr.Recognizer(), []
    recognizer.recognize = lambda frame: seen.append(frame) or (["EXIT"] if len(seen) == 1 else ["EXIT", "42"])
    assert recognizer.recognize_medium(medium) == recognizer.recognize_medium(medium) == ("EXIT", "42")
    assert len(seen) == 2


def test_the_prompt_is_the_one_that_mgm_was_published_with(tokenizer):
    _, processor = tiny_model(mgm, "plain", tokenizer)
    media = open_media([image(noise(1))])
    message = ask("Read it", image(noise(1)))
    text = ocr.reference(["STOP", "42"])
    extra = Message.of("user", *message.parts, text, " <GEN>")
    rendered = processor.render(
        [{"from": "human", "value": "<image>\nRead it\nReference OCR Token: STOP, 42\n <GEN>"}, {"from": "gpt"}]
    )
    assert processor.prepare([extra], media).text_inputs["input_ids"][0].tolist() == processor.tokenize(rendered)


@pytest.mark.parametrize("family", ["mgm", "owl3", "ovis2"])
def test_an_answer_is_based_on_what_was_read_and_its_receipt_says_so(tokenizer, photo, family):
    package = longview.models.families.families()[family]
    variant = package.Config.variants[-1]
    engine = Engine(*tiny_model(package, variant, tokenizer))
    message = [ask("What?", image(photo))]
    plain, read = engine.answer(message, max_tokens=2), engine.answer(message, ocr=True, max_tokens=2)
    assert plain.receipt.read is None
    assert "read" not in plain.as_dict()
    assert read.receipt.read == (TextRead(0, "sign.jpg", ("STOP 42", "Platform 9, Track B")),)
    written = ocr.reference(read.receipt.read[0].texts)
    by_hand = engine.answer([Message.of("user", *message[0].parts, written)], max_tokens=2)
    assert read.tokens == by_hand.tokens
    assert read.receipt.usage.prompt_tokens == by_hand.receipt.usage.prompt_tokens
    assert read.receipt.usage.prompt_tokens > plain.receipt.usage.prompt_tokens


def test_without_its_library_reading_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match=r"--ocr needs rapidocr.*pip install '?rapidocr"):
        ocr.Recognizer()
