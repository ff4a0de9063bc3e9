"""Errors in the engine: what goes wrong for one request ends that one; what is kept for later ones is optional."""

from __future__ import annotations

import logging

import pytest
import torch
from questions import QUESTIONS, SETTINGS, all_same, new_engine, same
from samples import noise, tiny_model

import longview
from longview.engine import kv_cache
from longview.engine.decode_batch import DecodeBatch
from longview.engine.request import is_out_of_memory
from longview.errors import CheckpointError, MediaError, RequestError
from longview.media import open_media
from longview.messages import Message
from longview.models.families import families

NAMES = ["no picture", "one picture", "a conversation"]
LONG = [Message.of("user", "And " * 80)]
"""Longer than the others, so that its positions tell it from them."""
NO_MEMORY = "there is not enough memory for"


@pytest.fixture(scope="session", params=[("owl3", "241101"), ("ovis2", "softmax"), ("mgm", "gemma")], ids="-".join)
def tiny(request, tokenizer):
    """Pictures beside the sequence, and in it as tokens and as embeddings."""
    name, variant = request.param
    return tiny_model(families()[name], variant, tokenizer)


@pytest.fixture(scope="session")
def alone(tiny):
    """The answer to each of NAMES from an engine of its own."""
    return [new_engine(tiny).answer(QUESTIONS[name], **SETTINGS) for name in NAMES]


def failing(monkeypatch, owner, name: str, when=lambda *_, **__: True, error: type[Exception] = MemoryError) -> list:
    """Let a method raise whenever `when` says so of its arguments; returns a list that grows with each error."""
    inner, raised = getattr(owner, name), []

    def failed(*args, **kwargs):
        if when(*args, **kwargs):
            raised.append(name)
            raise error("no room")
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, failed)
    return raised


def once():
    """True when it is called first, whatever it is called with."""
    calls: list[int] = []
    return lambda *_, **__: not calls and not calls.append(1)


def all_answered(engine, alone) -> bool:
    """Whether a batch has the answers that its questions have alone, and leaves nothing behind."""
    found = list(engine.batch([QUESTIONS[name] for name in NAMES], **SETTINGS))
    engine.scheduler.drop()
    return all_same(found, alone) and not engine.scheduler.running and not engine.scheduler.decode_batches


def only_one_ends(engine, alone, bad, match: str, kind=RequestError) -> None:
    asked = [QUESTIONS[NAMES[0]], bad, QUESTIONS[NAMES[1]], QUESTIONS[NAMES[2]]]
    found = list(engine.batch(asked, **SETTINGS))
    assert isinstance(found[1], kind)
    assert match in str(found[1])
    assert all_same([found[0], *found[2:]], alone)
    assert not engine.scheduler.running


# ── a request that fails ──


def test_pictures_that_cannot_be_encoded_end_one_request(engine, alone, monkeypatch):
    bad = [longview.ask("What?", longview.image(noise(9, 50, 50)))]
    poison = engine.processor.prepare(bad, open_media(bad[0].media)).load_pixels()["pixel_values"][0]
    failing(monkeypatch, engine.model, "encode", lambda pixel_values: any(torch.equal(x, poison) for x in pixel_values))
    only_one_ends(engine, alone, bad, NO_MEMORY)


def is_long(*_, position_ids=None, **__) -> bool:
    return int(position_ids.max()) >= 300


def prefills_long(**given) -> bool:
    return is_long(**given) and given["position_ids"].shape[1] > 1


def decodes_long(**given) -> bool:
    return is_long(**given) and given["position_ids"].shape[1] == 1


@pytest.mark.parametrize("when", [prefills_long, decodes_long])
def test_a_pass_that_fails_for_one_row_ends_one_request(engine, alone, monkeypatch, when):
    failing(monkeypatch, engine.model, "forward", when)
    only_one_ends(engine, alone, LONG, f"{NO_MEMORY} 0 pictures")


def test_logits_that_are_nan_end_one_request_and_reach_no_other(engine, alone, monkeypatch):
    forward = engine.model.forward

    def spoilt(*args, **given):
        output = forward(*args, **given)
        if decodes_long(**given):
            row = int(given["position_ids"].amax(-1).argmax())
            output.logits[row] = torch.nan
            for layer in given["past_key_values"].layers:
                layer.values[row] = torch.nan
        return output

    monkeypatch.setattr(engine.model, "forward", spoilt)
    only_one_ends(engine, alone, LONG, "the model's logits are NaN or infinite", CheckpointError)


def test_a_medium_that_cannot_be_opened_ends_one_request(engine, alone):
    only_one_ends(
        engine, alone, [longview.ask("What?", longview.image(b"no picture"))], "given as a picture", MediaError
    )


def test_a_progress_callback_that_raises_ends_its_request_with_its_error(engine, alone):
    def broken(*_):
        raise KeyError("of the caller")

    streams = [engine.stream(QUESTIONS[name], **SETTINGS) for name in NAMES]
    begun = [[next(stream)] for stream in streams]
    with pytest.raises(KeyError, match="of the caller"):
        list(engine.stream([longview.ask("?", longview.image(noise(3)))], max_tokens=3, progress=broken))
    texts = ["".join(piece.text for piece in (*first, *stream)) for first, stream in zip(begun, streams, strict=True)]
    assert texts == [answer.text for answer in alone]


def test_a_sampler_that_fails_ends_its_request(engine, alone, monkeypatch):
    failing(monkeypatch, longview.engine.sampling.Sampler, "__call__", lambda _, __, ids, *___: len(ids) > 300)
    only_one_ends(engine, alone, LONG, NO_MEMORY)


def test_where_there_is_no_memory_to_sample_for_all_each_is_sampled_alone(engine, alone, monkeypatch):
    raised = failing(monkeypatch, torch, "isfinite", lambda best: best.dim() == 1 and len(best) > 1)
    assert all_answered(engine, alone)
    assert raised


def test_where_there_is_no_memory_to_split_a_batch_one_request_makes_room(engine, alone, monkeypatch):
    """A pass over several rows fails each time; the first copy of a row into a batch of its own fails, too."""
    failing(monkeypatch, engine.model, "forward", lambda position_ids, **_: len(position_ids) > 1)
    refuse = once()
    failing(monkeypatch, DecodeBatch, "add", lambda _, __, source, *___: isinstance(source, DecodeBatch) and refuse())
    found = list(engine.batch([QUESTIONS[name] for name in NAMES], **SETTINGS))
    ended = [answer for answer in found if isinstance(answer, RequestError)]
    assert len(ended) == 1
    assert NO_MEMORY in str(ended[0])
    left = [(answer, expected) for answer, expected in zip(found, alone, strict=True) if answer is not ended[0]]
    assert all(same(*pair) for pair in left)


# ── what requests do not depend on ──


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        ("feature_cache", "put"),
        ("feature_cache", "get"),
        ("prefix_cache", "put"),
        ("prefix_cache", "find"),
        ("scheduler", "_extended_prefix_key"),
    ],
)
@pytest.mark.parametrize("error", [MemoryError, ValueError])
def test_what_cannot_be_kept_for_later_requests_is_left_out(engine, alone, monkeypatch, caplog, owner, method, error):
    raised = failing(monkeypatch, getattr(engine, owner), method, error=error)
    with caplog.at_level(logging.WARNING, logger="longview"):
        assert all_answered(engine, alone)
    assert raised
    assert bool(caplog.records) == (error is ValueError), "a lack of memory is expected; a bug is logged"


def test_a_row_that_cannot_be_removed_is_removed_later(engine, alone, monkeypatch):
    raised = failing(monkeypatch, DecodeBatch, "remove", once())
    assert all_answered(engine, alone)
    assert raised


def test_rows_that_cannot_be_merged_are_decoded_apart(engine, alone, monkeypatch):
    fails = once()
    failing(monkeypatch, engine.model, "forward", lambda position_ids, **_: len(position_ids) == 3 and fails())
    raised: list = []
    monkeypatch.setattr(engine.scheduler.decode_batches, "merge", lambda: raised.append(1) or [][0])
    streams = [engine.stream(QUESTIONS[name], **SETTINGS) for name in NAMES]
    begun = [[next(stream)] for stream in streams]  # from here on, all three decode together
    texts = ["".join(piece.text for piece in (*first, *stream)) for first, stream in zip(begun, streams, strict=True)]
    assert texts == [answer.text for answer in alone]
    assert raised


def test_where_there_is_no_memory_to_shrink_a_batch_it_keeps_its_memory(engine, alone, monkeypatch):
    def shrinks(old, rows, positions):
        return rows < old.shape[0]

    raised = failing(monkeypatch, kv_cache, "_resized", shrinks)
    settings = [{**SETTINGS, "max_tokens": count} for count in (10, 10, 10, 12)]
    streams = [engine.stream(QUESTIONS[NAMES[0]], **each) for each in settings]
    begun = [[next(stream)] for stream in streams]
    texts = ["".join(piece.text for piece in (*first, *stream)) for first, stream in zip(begun, streams, strict=True)]
    assert texts[-1] == alone[0].text
    assert raised


# ── errors themselves ──


def test_a_bug_in_a_step_ends_all_requests_with_it_and_the_engine_goes_on(engine, alone, monkeypatch):
    stream = engine.stream("Hello", max_tokens=50)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "_decode", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.answer("Hi", max_tokens=3)
        with pytest.raises(ZeroDivisionError):
            list(stream)
    assert same(engine.answer(QUESTIONS[NAMES[0]], **SETTINGS), alone[0])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) == expected
