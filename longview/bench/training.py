"""Speed and memory of training: tokens a second and peak memory, by method and way, beside a plain loop.

    method   full: the language model trains    LoRA: adapters on it    QLoRA: adapters on it in 4 bits
    way      plain: pad, `model(**batch).loss.backward()`, next         padded, packed: the steps of `longview train`

Each pair runs a recipe in a process of its own, so that peaks do not mix. All train on the same samples, drawn from a
seed: text only, or about one picture or three, with short and long answers. The vision side is frozen, and gradient
checkpointing is on, as in the recipes for fine-objective.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from longview.bench.peak import peak_memory, reset_peak_memory
from longview.bench.report import Result, command, machine
from longview.bench.subject import DIMENSIONS, check_name, picture, random_model
from longview.engine.devices import best_device, check_device
from longview.errors import RequestError
from longview.models import checkpoint
from longview.models.base import checkpoint_activations
from longview.models.families import families
from longview.train.build import add_adapter, open_model
from longview.train.data.batches import batched
from longview.train.data.samples import TrainingSample
from longview.train.data.settings import DataSettings
from longview.train.loop import accumulate_gradients
from longview.train.objectives.supervised import Supervised
from longview.train.optimizers import make_optimizers, select_parts
from longview.train.recipe import Recipe, from_tree
from longview.versions import requirement

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"adapter": {}},
    "QLoRA": {"adapter": {}, "quantize": "nf4"},
}
WAYS = ("plain", "padded", "packed")
MICRO_BATCH = 8
"""Samples of a micro-batch, where they are padded; a packed row is as long as the longest sample."""
PICTURES_PER_SAMPLE = {0: 3, 1: 5, 3: 2}
"""Number of pictures → weight."""
WORDS_PER_ANSWER = {5: 5, 30: 3, 150: 2}
"""Approximate number of words → weight."""
WORDS = ("the", "a", "red", "green", "blue", "large", "circle", "square", "stands", "left", "of", "right", "above")


class Job(NamedTuple):
    """The measurement of one process."""

    recipe: Recipe
    way: str
    device: str
    steps: int
    """Timed ones, after one to warm up."""


class StepCosts(NamedTuple):
    """The result of a job: sums over the timed steps."""

    seconds: float
    processor_seconds: float
    tokens: int
    samples: int
    positions: int
    """Tokens and padding."""
    peak_bytes: int


def train(
    dims: str,
    dtype: str | None,
    device: str | None,
    samples: int,
    frames: int,
    repeats: int,
    methods: Sequence[str] = (),
    ways: Sequence[str] = (),
) -> Result:
    """Measure the training of a model on this machine.

    Args:
        dims: One of DIMENSIONS, for random weights; or an embedded model, a folder, a hub id.
        samples: Samples a step.
        frames: Above 0, steps of one sample instead, about a video of so many frames; of adapters only.
        repeats: Timed steps.
        methods, ways: Of METHODS and WAYS; none: all that there are.

    Raises:
        RequestError: no such dimensions, method, way or device, or none to train on.
    """
    methods = _selected("methods", methods, [method for method in METHODS if not (frames and method == "full")])
    ways = _selected("ways", ways, ("padded",) if frames else WAYS)
    device = device or best_device()
    check_device(device)
    if device == "mps":
        raise RequestError("training runs on cpu and cuda, not on mps; give --device cpu")
    dtype = dtype or ("bfloat16" if dims in DIMENSIONS else "float32")
    if dtype not in ("float32", "bfloat16"):
        raise RequestError(f"dtype is {dtype!r:.40}; training computes in float32 or bfloat16")
    hardware = machine()
    if lacking := "QLoRA" in methods and importlib.util.find_spec("bitsandbytes") is None:
        methods.remove("QLoRA")
    rows = []
    with tempfile.TemporaryDirectory(prefix="longview-bench-") as folder:
        start = _start(dims, dtype, Path(folder))
        data = write_rows(Path(folder), samples * (repeats + 1), frames)
        stage = {
            "name": "tune", "objective": "supervised", "train": ["language"], "steps": repeats + 1, "warmup": 0,
            "learning_rate": 1e-5, "gradient_checkpointing": True,
            "data": {"datasets": [{"path": str(data)}], "batch": samples, "micro_batch": min(samples, MICRO_BATCH),
                     "frames": frames, "quarantine": 0.0},
        }  # fmt: skip
        for method, way in itertools.product(methods, ways):
            recipe = from_tree({"model": {"start": start, "dtype": dtype} | METHODS[method], "stages": [stage]})
            costs = _in_process(Job(recipe, way, device, repeats))
            rows.append({"training": f"{method} {way}", **_columns(costs, repeats, device)})
    settings = {"dims": dims, "dtype": dtype, "device": device, "samples a step": samples, "frames": frames}
    result = Result("train", "", settings | {"repeats": repeats}, rows, machine=hardware, command=command())
    steps = f"steps of {samples} sample{'s' * (samples > 1)} of mixed lengths"
    what = f"a video of {frames} frames a step" if frames else steps
    result.about = (
        f"Training the language model on {what}, each row in a process of its own. Tokens are text and pictures in "
        "the sequence, with or without loss; padding is not counted. Peak memory is that of the steps"
        + (", the program included." if device == "cpu" else ", on the device.")
    )
    result.x, result.y = "training", ["tokens/s", "peak GiB"]
    result.findings = _findings(rows)
    if lacking:
        result.findings.append(
            f"QLoRA is left out: bitsandbytes is not installed: pip install {requirement('bitsandbytes')}."
        )
    return result


def _selected(what: str, wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known names that are wanted, in their order and spelling; all, where none is.

    Raises:
        RequestError: an unknown name.
    """
    lowered = [name.lower() for name in wanted]
    for name in wanted:
        if name.lower() not in {each.lower() for each in known}:
            raise RequestError(f"{what} has {name!r:.40}; here there are {', '.join(known)}")
    return [name for name in known if not wanted or name.lower() in lowered]


# ── model and data ─────────────────────────────────────────────────────────────────────────────────────────


def _start(dims: str, dtype: str, folder: Path) -> str:
    """The checkpoint to start from; random weights are written to a folder first."""
    if dims in DIMENSIONS:
        model, processor = random_model(dims, dtype)
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        return str(folder / "model")
    check_name(dims)
    return str(checkpoint.resolve(dims))


def write_rows(folder: Path, count: int, frames: int = 0, seed: int = 0) -> Path:
    """Write rows as `longview train` reads them: conversations of many lengths, or each about a video."""
    rng = random.Random(seed)
    names = [f"{number}.png" for number in range(max(16, frames))]
    for number, name in enumerate(names):
        picture(number).save(folder / name)
    lines = []
    for _ in range(count):
        num_words = rng.choices(list(WORDS_PER_ANSWER), list(WORDS_PER_ANSWER.values()))[0] * rng.uniform(0.5, 1.5)
        row: dict[str, Any] = {"response": " ".join(rng.choices(WORDS, k=max(1, round(num_words)))) + "."}
        num_pictures = rng.choices(list(PICTURES_PER_SAMPLE), list(PICTURES_PER_SAMPLE.values()))[0]
        if frames:
            row |= {"query": "<video>What happens?", "videos": [names[:frames]]}
        else:
            row |= {"query": "<image>" * num_pictures + "What do you see?", "images": rng.sample(names, num_pictures)}
        lines.append(json.dumps(row))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


# ── one process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _in_process(job: Job) -> StepCosts | None:
    """Run a job in a process of its own; None: it does not fit into memory."""
    context = get_context("forkserver")  # the server imports everything once and computes nothing
    context.set_forkserver_preload([__name__, "peft", *(family.Model.__module__ for family in families().values())])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, job).result()
        except (torch.OutOfMemoryError, MemoryError, BrokenProcessPool):  # the last: killed by the system
            return None


def measure(job: Job) -> StepCosts:
    """Run a few steps of a job's recipe."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="longview-bench-") as folder:
        objective, parameters = _open_objective(job, Path(folder))
        steps = range(1, job.steps + 1)
        sizes = [_positions(objective.samples(step), objective.settings) for step in (0, *steps)]
        learn: Callable[[int], Any] = (
            _plain(objective, job.recipe.model.dtype == "bfloat16")
            if job.way == "plain"
            else lambda step: accumulate_gradients(objective, step)
        )
        optimizers = make_optimizers(parameters, objective.stage, objective.model.parts)
        reset_peak_memory(job.device)

        def run_step(step: int) -> None:
            objective.model.zero_grad()
            learn(step)
            nn.utils.clip_grad_norm_(parameters.values(), objective.stage.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
            if job.device != "cpu":
                torch.cuda.synchronize(job.device)

        run_step(0)
        start, processor_start = time.perf_counter(), time.process_time()
        for step in steps:
            run_step(step)
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        tokens, positions = (sum(numbers) for numbers in zip(*sizes[1:], strict=True))
        samples = job.steps * objective.settings.batch
        return StepCosts(seconds, processor_seconds, tokens, samples, positions, peak_memory(job.device))


def _open_objective(job: Job, folder: Path) -> tuple[Supervised, dict[str, nn.Parameter]]:
    """The objective of a job's recipe, with its model, and the parameters that train."""
    recipe, stage = job.recipe, job.recipe.stages[0]
    model, processor = open_model(recipe, folder)
    add_adapter(recipe, model)
    model.to(job.device).train()
    for parameter in model.parameters():
        if parameter.is_floating_point():  # out of the mapped file, whose pages count as memory even if unused
            parameter.data = parameter.data.clone()
    parameters = select_parts(model, stage.train)
    checkpoint_activations(model, stage.gradient_checkpointing)
    objective = Supervised(recipe, 0)
    objective.attach(model, processor, folder)
    if job.way == "packed":
        longest = max(sample.length for step in range(job.steps + 1) for sample in objective.samples(step))
        objective.settings = dataclasses.replace(objective.settings, pack=longest)
    return objective, parameters


def _positions(samples: list[TrainingSample], settings: DataSettings) -> tuple[int, int]:
    """Tokens of a step, and its positions with padding."""
    tokens = sum(sample.length for sample in samples)
    if settings.pack:
        return tokens, tokens
    batches = batched(samples, settings)
    return tokens, sum(len(batch) * max(sample.length for sample in batch) for batch in batches)


def _plain(objective: Supervised, half: bool) -> Callable[[int], None]:
    """A plain loop: padded batches in the order of the data, and the loss that the model returns."""
    model, processor, device = objective.model, objective.processor, objective.model.device

    def learn(step: int) -> None:
        batches = list(batched(objective.samples(step), objective.settings))
        for batch in batches:
            collated = processor.collate([sample.inputs for sample in batch]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = model(**collated, use_cache=False).loss / len(batches)
            loss.backward()

    return learn


# ── the result ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _columns(costs: StepCosts | None, steps: int, device: str) -> dict[str, Any]:
    """The columns of a row; processor time is more reliable than seconds where the processor is shared."""
    figures: dict[str, Any] = {
        "s a step": costs and costs.seconds / steps,
        "samples/s": costs and costs.samples / costs.seconds,
        "tokens/s": costs and costs.tokens / costs.seconds,
    }
    if device == "cpu":
        figures["tokens/processor s"] = costs and costs.tokens / costs.processor_seconds
    return figures | {
        "padding": costs and f"{1 - costs.tokens / costs.positions:.0%}",
        "peak GiB": costs and costs.peak_bytes / 2**30,
    }


def _findings(rows: list[dict[str, Any]]) -> list[str]:
    """Comparisons of ways and methods."""
    found = {row["training"]: row for row in rows}
    findings = [f"{row['training']} does not fit into memory." for row in rows if row["tokens/s"] is None]

    def ratio(column: str, one: str, other: str) -> float | None:
        above, below = (found.get(key, {}).get(column) for key in (one, other))
        return above / below if above and below else None

    for method in METHODS:
        packed, plain = f"{method} packed", f"{method} plain"
        if times := ratio("tokens/s", packed, plain):
            by = ratio("tokens/processor s", packed, plain)
            more = f" ({by:.2f}× by processor time)" if by else ""
            memory = ratio("peak GiB", packed, plain)
            findings.append(
                f"{method}: packed {times:.2f}× the plain loop's tokens/s{more}, in {memory:.2f}× its memory."
            )
    for (one, other), way in itertools.product((("LoRA", "full"), ("QLoRA", "LoRA")), WAYS):
        if share := ratio("peak GiB", f"{one} {way}", f"{other} {way}"):
            findings.append(f"{one} {way} needs {share:.2f}× the memory of {other} {way}.")
    return findings
