"""On a GPU: the numbers of a CPU, the same answers alone, in a batch and compiled. Run with -m gpu.

LONGVIEW_TEST_DEVICE=cpu runs these tests themselves without one.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from questions import QUESTIONS, SETTINGS, all_same, new_engine, same
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.media import open_media
from longview.models.families import families
from longview.models.owl3.attention import Run, attend_by_runs
from longview.models.sources import DEMOS
from longview.world.render import render
from longview.world.scenes import draw_picture

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("LONGVIEW_TEST_DEVICE", "cuda")


@pytest.fixture(autouse=True)
def full_fp32(monkeypatch):
    """Convolutions would round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def there(tiny):
    """The tiny model on the GPU."""
    model, processor = tiny
    return copy.deepcopy(model).to(DEVICE), processor


@pytest.mark.parametrize("question", QUESTIONS)
def test_logits_and_gradients_are_those_of_a_cpu(tiny, there, question):
    found = []
    for model, processor in (tiny, there):
        messages = QUESTIONS[question]
        media = open_media([part for message in messages for part in message.media])
        inputs = processor.prepare(messages, media).load_pixels().to(model.device)
        model.zero_grad()
        logits = model(**inputs, use_cache=False).logits.float()
        logits.square().mean().backward()
        grads = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        found.append((logits.detach().cpu(), grads))
    (ours, our_grads), (expected, grads) = found[1], found[0]
    torch.testing.assert_close(ours, expected, atol=SAME_MATHS, rtol=0)
    assert our_grads.keys() == grads.keys()
    norm = max(grad.norm() for grad in grads.values())
    for name, grad in grads.items():
        assert (our_grads[name] - grad).norm() <= SAME_MATHS * norm, name


def test_answers_are_those_of_a_cpu_alone_and_in_a_batch(there, alone):
    engine = new_engine(there)
    assert all(same(engine.answer(question, **SETTINGS), alone[name]) for name, question in QUESTIONS.items())
    assert all_same(new_engine(there).batch(list(QUESTIONS.values()), **SETTINGS), list(alone.values()))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
def test_attention_to_many_pictures_is_the_dense_one(dtype, rounding):
    patches, pictures, width = 9, 60, 64
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 3 * pictures, width, generator=generator) * width**-0.5
    key, value = (torch.randn(2, patches * pictures, width, generator=generator) for _ in range(2))
    runs = [Run(3 * number + 2, 3 * number + 5, number + 1) for number in range(pictures - 1)]
    runs.append(Run(3 * pictures - 1, 3 * pictures, pictures))
    query, key, value = (each.to(DEVICE, dtype) for each in (query, key, value))
    output, lse = attend_by_runs(query, key, value, runs, patches)
    visible = torch.zeros(3 * pictures, patches * pictures, dtype=torch.bool, device=DEVICE)
    for run in runs:
        visible[run.begin : run.end, : run.pictures * patches] = True
    scores = query.double() @ key.double()[:, None].transpose(-1, -2)
    scores = scores.masked_fill(~visible, -torch.inf)
    seen = visible.any(1)
    exact = scores[:, :, seen].softmax(-1) @ value.double()[:, None]
    torch.testing.assert_close(output[:, :, seen].double(), exact, atol=rounding, rtol=0)
    torch.testing.assert_close(lse[:, :, seen].double(), scores[:, :, seen].logsumexp(-1), atol=rounding, rtol=0)
    assert not output[:, :, ~seen].any()


@pytest.mark.parametrize("demo", sorted(set(DEMOS) - {"demo"}))
def test_embedded_models_answer_as_on_a_cpu(demo):
    import random

    rng = random.Random(5)
    pictures = [longview.image(render(draw_picture(rng), seed)) for seed in range(4)]
    questions = [
        [longview.ask("What is in the image?", pictures[0])],
        [longview.ask("How many images are there?", *pictures)],
        [longview.ask("What is in image 3?", *pictures)],
    ]
    expected = [longview.load(demo, device="cpu").answer(question, max_tokens=24) for question in questions]
    engine = longview.load(demo, device=DEVICE)
    assert [engine.answer(question, max_tokens=24).text for question in questions] == [a.text for a in expected]
    assert [answer.text for answer in engine.batch(questions, max_tokens=24)] == [a.text for a in expected]


@pytest.mark.parametrize("demo", ["demo-owl3", "demo-ovis2"])
def test_compiled_decoding_gives_the_same_answers(demo):
    questions = [
        [longview.ask("What is in the image?", longview.image(noise(1)))],
        [longview.ask("What is in image 2?", longview.image(noise(2)), longview.image(noise(3)))],
    ]
    settings = {"max_tokens": 24, "min_tokens": 24, "logprobs": 0}
    plain, fast = longview.load(demo, device=DEVICE), longview.load(demo, device=DEVICE, compile=True)
    expected = [plain.answer(question, **settings) for question in questions]
    assert all(
        same(fast.answer(question, **settings), answer) for question, answer in zip(questions, expected, strict=True)
    )
    assert all_same(fast.batch(questions, **settings), expected)


def test_every_family_is_tried():
    assert {demo.removeprefix("demo-") for demo in DEMOS} - {"demo"} >= set(families())
