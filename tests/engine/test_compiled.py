"""Compiled decoding: the same answers, one function per shape, and an error where a model cannot be compiled."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from samples import noise, tiny_model
from tolerances import SAME_MATHS

import longview
from longview.engine import Engine
from longview.engine import engine as engines
from longview.engine.compiled import StaticDecodeBatch, compile_layers, runs_of
from longview.engine.kv_cache import MIN_POSITIONS
from longview.errors import RequestError
from longview.models.families import families
from longview.versions import UntestedWarning

PICTURES = [longview.image(noise(seed)) for seed in (1, 5)]
QUESTIONS = [
    [longview.ask("Hello there.")],
    [longview.ask("What?", PICTURES[0])],
    [longview.ask("Which one is brighter, of these two?", *PICTURES)],
    [longview.ask("Hello there, who are you?")],
    [longview.ask("And this?", PICTURES[1])],
]
SETTINGS = {"max_tokens": 10, "min_tokens": 10, "temperature": 0.7, "seed": 3, "logprobs": 0}

VARIANTS = (("owl3", "241101"), ("owl3", "241014"), ("ovis2", "softmax"), ("mgm", "gemma"))
"""Each family, and both ways in which owl3's layers attend to pictures. Tracing takes seconds."""


@pytest.fixture(scope="session", params=VARIANTS, ids="-".join)
def tiny(request, tokenizer):
    name, variant = request.param
    return tiny_model(families()[name], variant, tokenizer)


@pytest.fixture
def traced(monkeypatch):
    """Functions are traced, and not translated by inductor, which takes minutes."""
    monkeypatch.setattr(engines, "compile_layers", functools.partial(compile_layers, backend="eager"))


@pytest.fixture
def made(monkeypatch) -> list:
    """The functions that are compiled."""
    found = []
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, **settings: found.append(1) or compile(*given, **settings))
    return found


def new_engine(tiny, compile: bool) -> Engine:
    model, processor = tiny
    return Engine(copy.deepcopy(model), processor, name="tiny", compile=compile)


def same(found, expected) -> bool:
    probabilities = pytest.approx([each.logprob for each in expected.logprobs], abs=SAME_MATHS)
    return found.tokens == expected.tokens and [each.logprob for each in found.logprobs] == probabilities


def test_answers_are_the_same_alone_and_in_a_batch_that_grows_and_shrinks(tiny, traced):
    plain, fast = new_engine(tiny, False), new_engine(tiny, True)
    expected = [plain.answer(question, **SETTINGS) for question in QUESTIONS]
    assert all(
        same(fast.answer(question, **SETTINGS), answer) for question, answer in zip(QUESTIONS, expected, strict=True)
    )
    assert all(map(same, fast.batch(QUESTIONS, **SETTINGS), expected))
    begun = fast.stream(QUESTIONS[2], **SETTINGS)
    first = next(begun)
    assert same(fast.answer(QUESTIONS[1], **SETTINGS), expected[1]), "beside another, that has begun before"
    assert first.text + "".join(piece.text for piece in begun) == expected[2].text


def test_one_function_is_compiled_for_a_shape_whatever_the_lengths(tiny, traced, made):
    fast = new_engine(tiny, True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for question in (QUESTIONS[0], QUESTIONS[3], QUESTIONS[0]):
            fast.answer(question, max_tokens=30, min_tokens=30)
    assert len(made) == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    fast.answer([longview.ask("word " * (MIN_POSITIONS // 4))], max_tokens=3, min_tokens=3)
    assert len(made) == 2, "a larger capacity is another shape"


def test_only_decoding_is_compiled(tiny, traced, made):
    fast = new_engine(tiny, True)
    fast.answer(QUESTIONS[1], max_tokens=1)
    assert not made
    fast.model(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert not made


def test_layers_that_are_left_out_end_a_run():
    assert runs_of("aaaaa", [False] * 5) == {0: range(5)}
    assert runs_of("aaaaa", [True, False, False, True, False]) == {1: range(1, 3), 4: range(4, 5)}
    assert runs_of("aabba", [False] * 5) == {0: range(2), 2: range(2, 4), 4: range(4, 5)}


def test_free_rows_attend_to_one_position():
    decode_batch = StaticDecodeBatch(1)
    decode_batch.reserve(MIN_POSITIONS, 4)
    assert decode_batch.rows_per_pass == 4
    assert decode_batch.mask(torch.device("cpu")).shape == (4, 1, 1, MIN_POSITIONS)
    assert decode_batch.mask(torch.device("cpu"))[:, 0, 0].sum(-1).tolist() == [1, 1, 1, 1], (
        "a softmax over nothing is NaN"
    )


def test_what_cannot_be_compiled_is_an_error(tokenizer, monkeypatch):
    model, _ = tiny_model(families()["owl3"], "241101", tokenizer)
    model.hf_device_map = {"a": 0, "b": "cpu"}
    with pytest.raises(RequestError, match=r"one device, and this one lies on 0, cpu; name one device"):
        compile_layers(model)
    del model.hf_device_map
    model.quantization_method = "bitsandbytes"
    with pytest.raises(RequestError, match="bitsandbytes; use quantize"):
        compile_layers(model)
    del model.quantization_method
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(RequestError, match=r"C\+\+ compiler on a CPU; install g\+\+ or clang"):
        compile_layers(model)
    assert not any(isinstance(block.forward, functools.partial) for block in model.language_model.model.layers)


@pytest.mark.slow
def test_translated_functions_give_the_same_answers(tiny):
    plain, fast = new_engine(tiny, False), new_engine(tiny, True)
    for question in QUESTIONS[:3]:
        assert same(fast.answer(question, **SETTINGS), plain.answer(question, **SETTINGS))


def test_compiling_on_cuda_warns_that_answers_differed(tiny, monkeypatch):
    model = copy.deepcopy(tiny[0])
    monkeypatch.setattr(type(model), "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: None)
    with pytest.warns(UntestedWarning, match="other answers than plain decoding"):
        compile_layers(model)
