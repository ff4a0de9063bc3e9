"""Evidence of answers: alone and in batches, of any answer, on the pictures that were given; and without it nothing."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from questions import CLIP, PICTURE, QUESTIONS, SETTINGS, new_engine, same
from samples import noise, tiny_model
from tolerances import SAME_MATHS

import longview
from longview import names
from longview.answer_evidence import PatchGrid
from longview.engine.evidence import PlacedPicture, cells_of, on_picture
from longview.engine.scheduler import Scheduler
from longview.errors import RequestError
from longview.messages import FrameUsed, Message
from longview.models import quantization
from longview.models.families import families

PICTURES = "two pictures and a clip"


@pytest.fixture
def engine(tiny):
    return new_engine(tiny)


def answered(engine, name: str = PICTURES, **settings):
    return engine.answer(QUESTIONS[name], evidence=True, **{**SETTINGS, **settings})


def agree(found, expected) -> None:
    assert found.tokens == expected.tokens
    for ours, theirs in zip(found.pictures, expected.pictures, strict=True):
        np.testing.assert_allclose(ours.shares, theirs.shares, atol=SAME_MATHS)
        np.testing.assert_allclose(ours.maps, theirs.maps, atol=SAME_MATHS)


def test_shares_of_pictures_and_cells_add_up_to_what_the_model_gave_to_pictures(engine, tiny):
    model, _ = tiny
    given = []
    original = type(model).evidence

    def kept(positions, **arguments):
        found = original(model, positions, **arguments)
        given.append(found[0])
        return found

    model.evidence = kept
    try:
        answer = answered(engine)
    finally:
        del model.evidence
    found = answer.evidence
    assert len(found.tokens) == len(answer.tokens) == SETTINGS["max_tokens"]
    assert [picture.number for picture in found.pictures] == [1, 2, 3, 4, 5]
    assert [picture.frame for picture in found.pictures] == list(answer.receipt.frames)
    total = sum(picture.shares for picture in found.pictures)
    np.testing.assert_allclose(total, torch.cat(given).sum((1, 2)).numpy(), atol=1e-5)
    for picture in found.pictures:
        assert picture.shares.min() > 0
        assert picture.maps.min() >= 0
        assert picture.padding.min() >= 0
        np.testing.assert_allclose(picture.maps.sum((1, 2)) + picture.padding, picture.shares, atol=1e-5)
        np.testing.assert_allclose(picture.patches.sum(), picture.shares.mean(), atol=1e-5)
        assert (picture.words is not None, bool(picture.mined)) == (model.detail == "words", model.detail == "mined")
        for window in picture.mined:
            assert window.weights.sum() == pytest.approx(1, abs=1e-4)
    assert found.layers
    assert found.seconds > 0


def test_it_is_of_the_query_that_chose_each_token(engine, tiny):
    """The attention in one pass over the whole conversation, of the tokens before those of the answer."""
    model, processor = tiny
    answer = answered(engine)
    messages = [*QUESTIONS[PICTURES]]
    media = longview.media.open_media([part for message in messages for part in message.media])
    inputs = processor.prepare(messages, media)
    arguments = model.embed_pictures(inputs.load_pixels())
    name = "inputs_embeds" if "inputs_embeds" in arguments else "input_ids"
    ids = torch.tensor([answer.tokens])
    more = model.get_input_embeddings()(ids) if name == "inputs_embeds" else ids
    arguments[name] = torch.cat([arguments[name], more], dim=1)
    arguments["attention_mask"] = torch.ones(arguments[name].shape[:2], dtype=torch.long)
    positions = processor.placeholder_positions(inputs.text_inputs)[..., 1]
    attention = model.evidence(positions, **arguments)[0][-len(answer.tokens) - 1 : -1].sum(-1)
    begin = 0
    for picture in answer.evidence.pictures:
        own = attention[:, begin : begin + picture.frame.crops].sum(1).detach()
        np.testing.assert_allclose(picture.shares, own.numpy(), atol=SAME_MATHS)
        begin += picture.frame.crops


def test_in_a_batch_it_is_what_it_is_alone(tiny):
    names = [name for name in QUESTIONS if name != "no picture"]
    alone = [answered(new_engine(tiny), name) for name in names]
    conversations = [QUESTIONS[name] for name in names]
    together = list(new_engine(tiny).batch(conversations, evidence=True, **SETTINGS))
    assert all(map(same, together, alone))
    for ours, theirs in zip(together, alone, strict=True):
        agree(ours.evidence, theirs.evidence)


def test_a_chunk_of_tokens_at_a_time_gives_the_same(engine, monkeypatch):
    whole = answered(engine).evidence
    monkeypatch.setattr("longview.engine.model_runner.MAX_ATTENTION_BYTES", 1)
    agree(answered(engine).evidence, whole)


def test_answers_are_the_same_without_it_and_a_next_turn_finds_the_same_prefix(tiny, alone, monkeypatch):
    add_evidence = Scheduler._add_evidence

    def unchanged(scheduler, request):
        row = request.decode_batch.requests.index(request)
        length = request.decode_batch.lengths[row]
        before = [tensor.clone() for pair in request.decode_batch.key_values(row, length) for tensor in pair]
        add_evidence(scheduler, request)
        after = [tensor for pair in request.decode_batch.key_values(row, length) for tensor in pair]
        assert request.decode_batch.lengths[row] == length
        assert all(map(torch.equal, before, after))

    monkeypatch.setattr(Scheduler, "_add_evidence", unchanged)
    engine, plain = new_engine(tiny), new_engine(tiny)
    question = QUESTIONS[PICTURES]
    first = answered(engine)
    assert same(first, alone[PICTURES])
    assert plain.answer(question, **SETTINGS).evidence is None
    turn = [*question, Message.of("assistant", first.text), Message.of("user", "And then?")]
    found, expected = (each.answer(turn, **SETTINGS) for each in (engine, plain))
    assert found.receipt.usage.cached_tokens == expected.receipt.usage.cached_tokens
    assert same(found, expected)


def test_each_of_several_answers_has_its_own(engine):
    answers = engine.answers(QUESTIONS[PICTURES], n=3, evidence=True, **SETTINGS)
    assert len({answer.tokens for answer in answers}) > 1
    for answer in answers:
        assert "".join(answer.evidence.tokens) == answer.text
        assert len(answer.evidence.pictures[0].shares) == len(answer.tokens)


def test_a_stream_and_an_event_loop_end_with_it(engine):
    pieces = list(engine.stream(QUESTIONS[PICTURES], evidence=True, **SETTINGS))
    assert pieces[-2].receipt is not None
    assert [piece.evidence is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    answer = asyncio.run(engine.aanswer(QUESTIONS[PICTURES], evidence=True, **SETTINGS))
    agree(answer.evidence, pieces[-1].evidence)


def test_a_question_without_pictures_and_an_answer_without_tokens_have_nothing_to_show(tiny):
    engine = new_engine(tiny)
    found = answered(engine, "no picture").evidence
    assert found.pictures == ()
    assert len(found.tokens) == SETTINGS["max_tokens"]
    first = answered(engine).tokens[0]
    engine.processor.end_tokens = (first,)
    empty = answered(engine)
    assert empty.text == ""
    assert empty.evidence.tokens == ()
    assert [picture.share for picture in empty.evidence.pictures] == [0] * 5
    assert json.dumps(empty.evidence.as_dict())


def test_an_answer_of_one_token_that_was_cut_has_that_of_one(engine):
    answer = answered(engine, max_tokens=1)
    assert answer.finish_reason == "length"
    agree(answer.evidence, answered(engine, max_tokens=1).evidence)
    assert len(answer.evidence.pictures[0].maps) == 1


def test_the_token_that_ends_an_answer_is_none_of_it(tiny):
    engine = new_engine(tiny)
    tokens = answered(engine).tokens
    place = next(place for place, token in enumerate(tokens) if place and token not in tokens[:place])
    engine.processor.end_tokens = (tokens[place],)
    answer = answered(engine)
    assert answer.tokens == tokens[: place + 1]
    assert len(answer.evidence.tokens) == place


@pytest.mark.parametrize("budget", [None, longview.Budget(features=0, prefixes=0)], ids=str)
def test_features_that_were_kept_without_it_are_completed(tiny, budget):
    engine = new_engine(tiny, budget=budget)
    engine.answer(QUESTIONS[PICTURES], **SETTINGS)
    found = answered(engine).evidence
    agree(found, answered(engine).evidence)
    for picture in found.pictures:
        assert (picture.words is not None, bool(picture.mined)) == (
            engine.model.detail == "words",
            engine.model.detail == "mined",
        )


@pytest.mark.parametrize("kind", names.QUANTIZE)
@pytest.mark.parametrize(("family", "variant"), [("owl3", "240728"), ("ovis2", "softmax"), ("mgm", "plain")])
def test_a_model_in_few_bits_has_it_too(family, variant, kind, tokenizer):
    model, processor = tiny_model(families()[family], variant, tokenizer)
    quantization.quantize(model.to(torch.bfloat16), kind)
    found = answered(new_engine((model, processor))).evidence
    for picture in found.pictures:
        assert picture.shares.dtype == np.float32
        assert picture.shares.min() > 0
        np.testing.assert_allclose(picture.maps.sum((1, 2)) + picture.padding, picture.shares, atol=1e-4)


def test_what_cannot_be_told_ends_this_request_only(engine, alone, monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(Scheduler, "_add_evidence", fails)
    found = list(engine.batch([QUESTIONS[PICTURES]], evidence=True, **SETTINGS))
    assert isinstance(found[0], RequestError)
    assert same(engine.answer(QUESTIONS[PICTURES], **SETTINGS), alone[PICTURES])
    assert not engine.scheduler.running


def test_scripted_attention_is_drawn_where_its_patch_is(engine, tiny, monkeypatch):
    """All attention of token t to one patch of picture 1: the map is that patch's place, and nothing else."""
    model, _ = tiny

    def scripted(positions, input_ids=None, inputs_embeds=None, past_key_values=None, **_):
        tokens = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        found = torch.zeros(tokens, len(positions), model.config.patches_per_picture)
        for token in range(tokens):
            patch = (past_key_values.longest - begins[0] + token) % found[0].numel()
            found[token].view(-1)[patch] = 0.5
        return found, (0,)

    def first(positions, past_key_values=None, **arguments):
        begins.append(past_key_values.longest)
        return scripted(positions, past_key_values=past_key_values, **arguments)

    begins: list[int] = []
    monkeypatch.setattr(model, "evidence", first, raising=False)
    evidence = engine.answer(
        [longview.ask("Where?", longview.image(noise(1, 64, 48)))], evidence=True, max_tokens=12
    ).evidence
    (picture,) = evidence.pictures
    for token, share in enumerate(picture.shares):
        patch = token % len(picture.patches)
        assert share == pytest.approx(0.5)
        box, drawn = picture.patch_box(patch), picture.maps[token]
        if box is None:
            assert not drawn.any()
            assert picture.padding[token] == pytest.approx(0.5)
            continue
        rows, columns = drawn.shape
        for row, column in np.ndindex(rows, columns):
            wide = overlap(box[0], box[2], column * 64 / columns, (column + 1) * 64 / columns)
            high = overlap(box[1], box[3], row * 48 / rows, (row + 1) * 48 / rows)
            assert drawn[row, column] == pytest.approx(0.5 * wide * high, abs=1e-5)


def overlap(begin: float, end: float, low: float, high: float) -> float:
    """Of the first interval, the part in the second."""
    return max(0.0, min(end, high) - max(begin, low)) / (end - begin)


def test_json_says_what_the_arrays_say(engine):
    answer = answered(engine)
    plain = json.loads(json.dumps(answer.as_dict()))["evidence"]
    assert plain["tokens"] == list(answer.evidence.tokens)
    assert len(json.dumps(plain)) < 200_000
    for told, picture in zip(plain["pictures"], answer.evidence.pictures, strict=True):
        assert told["name"] == picture.frame.name
        np.testing.assert_allclose(told["shares"], picture.shares, atol=1e-4)
        unit = told["map_unit"]
        np.testing.assert_allclose(np.array(told["token_maps"]) * unit, picture.maps, atol=unit)
        np.testing.assert_allclose(np.array(told["map"]) * unit, picture.map, atol=unit)
    assert plain["ranked"][0] == max(answer.evidence.pictures, key=lambda each: each.share).number


# ── maps ──


def grid(left, upper, right, lower, rows, columns, shown=None) -> PatchGrid:
    return PatchGrid(left, upper, right, lower, rows, columns, shown or (left, upper, right, lower))


def test_a_whole_picture_has_a_cell_a_patch():
    attention = np.arange(12, dtype=np.float32)[None]
    assert cells_of([grid(0, 0, 400, 300, 3, 4)], 400, 300, 32) == (3, 4)
    assert (
        on_picture(attention, [grid(0, 0, 400, 300, 3, 4)], 400, 300, (3, 4)).tolist()
        == attention.reshape(1, 3, 4).tolist()
    )


def test_crops_add_up_and_borders_are_put_aside():
    """Two crops of 2 × 2, the second of the upper right, whose border reaches over the lower; and the whole picture."""
    grids = [grid(0, 0, 50, 100, 2, 2), grid(50, 0, 100, 100, 2, 2, (50, 0, 100, 50)), grid(0, 0, 100, 100, 1, 1)]
    attention = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 16]], np.float32)
    found = on_picture(attention, grids, 100, 100, (2, 4))
    assert found[0].tolist() == [[3, 4, 7, 8], [5, 6, 2, 2]]
    placed = PlacedPicture(FrameUsed(0, "a", "image", 0, None, 100, 100, 3), grids, 3, 4)
    placed.add(attention)
    evidence = placed.evidence(1, "", None)
    assert placed.shape == (2, 4)
    assert evidence.shares.tolist() == [52]
    assert evidence.padding.tolist() == [15]
    assert evidence.patch_box(6) is None
    assert evidence.patch_box(8) == (0, 0, 100, 100)
    assert evidence.peak == (75, 0, 100, 50)


def test_many_patches_share_few_cells():
    assert cells_of([grid(0, 0, 100, 50, 50, 100)], 100, 50, 32) == (16, 32)
    found = on_picture(np.ones((1, 5000), np.float32), [grid(0, 0, 100, 50, 50, 100)], 100, 50, (16, 32))
    np.testing.assert_allclose(found, 5000 / 512, rtol=1e-5)


def test_pictures_of_a_clip_count_each(engine):
    found = engine.answer([longview.ask("What happens?", PICTURE, CLIP)], evidence=True, max_tokens=2).evidence
    assert [picture.frame.kind for picture in found.pictures] == ["image", "video", "video", "video"]
    assert sorted(found.ranked) == [1, 2, 3, 4]
