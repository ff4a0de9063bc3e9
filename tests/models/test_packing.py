"""Several samples as one row: the same loss, and nothing of one reaches another. No family is named here."""

from __future__ import annotations

import copy

import pytest
import torch
from test_laws import SAMPLES, parts, photo, prepare, sequence
from tolerances import SAME_MATHS
from torch.nn import functional

from longview.messages import Message, ask

ORDERS = [
    ("one picture", "three pictures and a clip", "no picture"),
    ("no picture", "one picture", "three pictures and a clip", "one picture"),
]


@pytest.fixture(params=["sdpa", "eager"])
def attending(request, tiny):
    model, processor = tiny
    model = copy.deepcopy(model)
    model.set_attn_implementation(request.param)
    return model.train(), processor


def learned(model, arguments):
    """Log-probabilities of the learned tokens, in order."""
    labels = functional.pad(arguments.pop("labels")[:, 1:], (0, 1), value=-100)
    logits = model(**arguments, use_cache=False).logits
    return -functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


@pytest.mark.parametrize("order", ORDERS, ids=["pictures first", "text first"])
def test_packed_samples_have_the_loss_and_the_gradients_of_padded_ones(attending, order):
    model, processor = attending
    batch = processor.collate([prepare(processor, name, train=True) for name in order])
    expected = learned(model, model.embed_pictures(batch))
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    packed = model.pack(model.embed_pictures(batch))
    tokens = packed[sequence(packed)]
    assert tokens.shape[:2] == packed["position_ids"].shape == (1, tokens.shape[1])
    found = learned(model, packed)
    torch.testing.assert_close(found, expected, atol=SAME_MATHS, rtol=0)
    found.sum().backward()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - gradients[name]).abs().max() < SAME_MATHS * largest, name


@torch.no_grad()
def test_neither_text_nor_pictures_of_a_packed_sample_reach_the_next(attending):
    model, processor = attending
    answer = Message.of("assistant", "A blue one.")

    def packed(seed, question):
        before = processor.prepare([ask(question, *parts([photo(seed)])), answer], [photo(seed)], train=True)
        rows = [before, *(prepare(processor, name, train=True) for name in SAMPLES)]
        arguments = model.pack(model.embed_pictures(processor.collate(rows)))
        arguments.pop("labels")
        logits = model(**arguments, use_cache=False).logits[0]
        begins = (arguments["position_ids"][0] == 0).nonzero().flatten().tolist()
        assert len(begins) == len(rows)
        return logits[: begins[1]], logits[begins[1] :]

    (first, others), (changed, same) = packed(1, "What is it?"), packed(2, "What is ib?")
    assert (first - changed).abs().max() > 0.01
    torch.testing.assert_close(same, others, atol=1e-6, rtol=0)
