"""Learning from a user's conversations: one loss however samples are laid out, and runs that end and go on."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from runs import log, same, state, tree
from safetensors.torch import load_file
from torch.nn import functional

from longview.errors import RecipeError
from longview.models import adapters
from longview.models.base import checkpoint_activations
from longview.train import loop
from longview.train import run as training
from longview.train.build import open_model
from longview.train.loop import Trainer, accumulate_gradients
from longview.train.objectives.base import make_objectives
from longview.train.objectives.log_probs import answer_log_probs
from longview.train.objectives.of_data import DataObjective
from longview.train.objectives.preference import dpo_loss
from longview.train.optimizers import select_parts
from longview.train.recipe import Recipe, check, from_tree


def attached(model, processor, recipe: Recipe, folder: Path, reference=None) -> DataObjective:
    """The objective of a recipe's only stage, with a model that is ready to learn."""
    (stage,) = recipe.stages
    select_parts(model, stage.train)
    checkpoint_activations(model, stage.gradient_checkpointing)
    (objective,) = make_objectives(recipe)
    objective.attach(model.train(), processor, folder, reference)
    return objective


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


LAYOUTS = {"one by one": {}, "padded": {"micro_batch": 3}, "packed": {"pack": 500},
           "checkpointed": {"gradient_checkpointing": True, "pack": 300}}  # fmt: skip


def test_the_loss_of_a_step_does_not_depend_on_how_its_samples_are_laid_out(tiny, data, tmp_path):
    model, processor = tiny
    found = {}
    for name, layout in LAYOUTS.items():
        recipe = from_tree(tree(tmp_path, data, batch=8, **layout))
        copied = copy.deepcopy(model)
        loss, notes = accumulate_gradients(attached(copied, processor, recipe, tmp_path), 0)
        assert notes["samples"] == 8
        assert not (tmp_path / "quarantine.jsonl").exists()
        found[name] = loss, gradients(copied)
    expected, slopes = found.pop("one by one")
    assert slopes
    largest = max(slope.abs().max() for slope in slopes.values())
    for name, (loss, others) in found.items():
        assert loss == pytest.approx(expected, abs=1e-4), name
        assert slopes.keys() == others.keys()
        assert all((others[key] - slopes[key]).abs().max() < 2e-4 * largest for key in slopes), name


def test_the_loss_is_the_mean_over_the_learned_tokens(tiny, data, tmp_path):
    model, processor = copy.deepcopy(tiny)
    objective = attached(model, processor, from_tree(tree(tmp_path, data, batch=8)), tmp_path)
    total = count = 0
    for sample in objective.samples(0):
        arguments = model.embed_pictures(processor.collate([sample.inputs]))
        labels = arguments.pop("labels")[0, 1:]
        logits = model(**arguments, use_cache=False).logits[0, :-1]
        total += functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    assert accumulate_gradients(objective, 0)[0] == pytest.approx(total / count, rel=1e-5)


def test_an_answer_with_loss_false_is_context_only(tiny, data, tmp_path):
    model, processor = tiny
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "abc", "loss": False},
             {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "xyz"}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))
    objective = attached(copy.deepcopy(model), processor, from_tree(tree(tmp_path, tmp_path, batch=1)), tmp_path)
    labels = objective.samples(0)[0].inputs.text_inputs["labels"][0]
    learned = processor.tokenizer.decode(labels[labels != -100])
    assert "xyz" in learned
    assert "abc" not in learned


def test_bfloat16_comes_near(tiny, data, tmp_path):
    model, processor = tiny
    losses = []
    for dtype in ("float32", "bfloat16"):
        recipe = from_tree(tree(tmp_path, data, batch=8, pack=400) | {"model": {"start": "x", "dtype": dtype}})
        copied = copy.deepcopy(model)
        if dtype == "bfloat16":  # what learns stays in fp32, as the run has it
            for name, parameter in copied.named_parameters():
                if adapters.part_of(copied, name) == "vision":
                    parameter.data = parameter.data.bfloat16()
        losses.append(accumulate_gradients(attached(copied, processor, recipe, tmp_path), 0)[0])
        assert all(torch.isfinite(slope).all() for slope in gradients(copied).values())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_after_a_checkpoint_loses_nothing_in_the_log(started, data, tmp_path, monkeypatch):
    recipe = from_tree(tree(started["ovis2"], data, steps=12, batch=1))
    whole = tmp_path / "whole"
    training.train(recipe, whole, progress=False)
    steps = [json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 12]
    line = json.loads((whole / "log.jsonl").read_text().splitlines()[0])
    assert line["tokens_s"] > line["samples_s"] > 0
    assert line["pictures_s"] > 0


def test_training_moves_what_a_stage_names_and_lowers_the_loss(started, data, tmp_path):
    stage = {"steps": 25, "batch": 8, "pack": 400, "learning_rate": 0.01, "train": ["connector", "language"],
             "rates": {"connector": 0.5}, "beta2": 0.999, "warmup": 0, "warmup_ratio": 0.1}  # fmt: skip
    output = tmp_path / "run"
    training.train(from_tree(tree(started["owl3"], data, **stage)), output, progress=False)
    losses = [line["loss"] for line in log(output)]
    assert losses[-1] < 0.5 * losses[0]
    before, after = load_file(started["owl3"] / "model.safetensors"), load_file(output / "model/model.safetensors")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name].bfloat16(), after[name])}
    assert moved == {"language_model", "vision2text_model"}


def test_a_broken_picture_is_told_skipped_and_not_replaced(started, data, tmp_path):
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "2.png").write_bytes((data / "2.png").read_bytes()[:40])
    (tmp_path / "rows.jsonl").write_text((data / "rows.jsonl").read_text())
    recipe = from_tree(tree(started["ovis2"], tmp_path, steps=4, checkpoint_every=1, quarantine=0.05))
    output = tmp_path / "run"
    training.train(recipe, output, progress=False)
    report = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((line["line"], "2.png" in line["reason"]) for line in report) == [
        (4, True),
        (4, True),
        (7, True),
        (7, True),
    ]
    line = json.loads((output / "log.jsonl").read_text().splitlines()[-1])
    assert line["samples"] == 4 - sum(entry["step"] == 3 for entry in report)
    strict = tree(started["ovis2"], tmp_path, steps=4, checkpoint_every=1, quarantine=0.0)
    with pytest.raises(
        RecipeError, match=r"1 of \d samples are broken, more than stages\.tune\.data\.quarantine=0 allows"
    ):
        training.train(from_tree(strict), tmp_path / "strict", progress=False)


def test_a_sample_that_is_too_long_is_skipped_and_told(started, data, tmp_path):
    recipe = from_tree(tree(started["ovis2"], data, batch=8, steps=1, max_length=55, quarantine=0.2))
    training.train(recipe, tmp_path / "run", progress=False)
    report = (tmp_path / "run" / "quarantine.jsonl").read_text()
    assert "positions, more than the 55 there are" in report


def test_a_dataset_that_changed_does_not_continue_a_run(started, data, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "response": "b"}')
    recipe = from_tree(tree(started["ovis2"], tmp_path, steps=1, batch=1))
    training.train(recipe, tmp_path / "run", progress=False)
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "response": "c"}')
    with pytest.raises(RecipeError, match=r"rows\.jsonl has changed since the run"):
        training.train(recipe, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": []}, "datasets is empty"),
        ({"epochs": 1.0}, "has steps 6 and epochs 1; give one"),
        ({"steps": 0}, "has steps 0 and epochs 0"),
        ({"beta": 0.3}, r"data\.beta means nothing to objective 'supervised'"),
        ({"objective": "answers"}, "objective is 'answers'; of a stage with data it is one of supervised, preference"),
        ({"rates": {"vision": 2.0}}, "rates names 'vision', which does not learn"),
        ({"datasets": [{"path": "x.jsonl", "weight": 0}]}, r"datasets\.0\.weight is 0"),
        ({"objective": "preference", "pack": 9}, "pack means nothing to objective 'preference'"),
        ({"quarantine": 2}, "quarantine is 2"),
    ],
)
def test_a_stage_that_contradicts_itself_is_refused(data, change, message):
    with pytest.raises(RecipeError, match=message):
        check(from_tree(tree(Path("x"), data, **change)))


def test_adapters_need_a_model_that_exists_and_data_of_users(data):
    with pytest.raises(RecipeError, match=r"name one in model\.start"):
        check(from_tree(tree(Path("x"), data) | {"model": {"family": "owl3", "adapter": {}}}))
    world = {"name": "see", "steps": 1, "train": ["vision"], "objective": "contents", "world": {}}
    with pytest.raises(RecipeError, match=r"are for stages with data, and stages\.see has world"):
        check(from_tree({"model": {"start": "x", "adapter": {}}, "stages": [world]}))


def test_liger_kernels_are_for_cuda_and_replace_those_of_model_and_reference_alike(tiny, data, tmp_path, monkeypatch):
    model, processor = tiny
    wanted = preference(data, batch=7) | {"model": {"start": "x", "liger": True}}
    with pytest.raises(RecipeError, match=r"model\.liger: Liger kernels run on CUDA devices only"):
        open_model(from_tree(wanted), tmp_path / "run")
    fused: list = []
    monkeypatch.setattr(loop, "apply_liger_kernel", fused.append)
    trainer = trainer_of(wanted, model, processor, tmp_path)
    assert fused == [model, trainer.reference]
    trainer_of(preference(data, batch=7), model, processor, tmp_path)
    assert len(fused) == 2


def trainer_of(tree: dict, model, processor, folder: Path) -> Trainer:
    recipe = from_tree(tree)
    return Trainer(recipe, folder, model, processor, make_objectives(recipe))


def test_a_dataset_is_named_once_it_cannot_be_read(started, tmp_path):
    recipe = tree(started["ovis2"], tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        training.train(from_tree(recipe), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# ── preferences ──────────────────────────────────────────────────────────────────────────────────────────────────────


def preference(data: Path, **changes) -> dict:
    return tree(Path("x"), data, objective="preference", datasets=[{"path": str(data / "pairs.jsonl")}], **changes)


def test_the_loss_of_preferences_is_the_papers(tiny, data, tmp_path):
    """Written out from whole forward passes; several pictures and a video among the samples."""
    model, processor = copy.deepcopy(tiny)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.95)
    objective = attached(
        model, processor, from_tree(preference(data, batch=7, micro_batch=3, beta=0.3)), tmp_path, reference
    )
    expected = []
    for sample in objective.samples(0):
        added = []
        for inputs in (sample.inputs, sample.rejected):
            told = []
            for each in (model, reference):
                arguments = each.embed_pictures(processor.collate([inputs]))
                labels = arguments.pop("labels")[0, 1:]
                scores = each(**arguments, use_cache=False).logits[0, :-1].log_softmax(-1)
                told.append(sum(scores[at, label].item() for at, label in enumerate(labels.tolist()) if label != -100))
            added.append(told[0] - told[1])
        expected.append(-functional.logsigmoid(torch.tensor(0.3 * (added[0] - added[1]))).item())
    assert max(expected) - min(expected) > 1e-3
    assert accumulate_gradients(objective, 0)[0] == pytest.approx(sum(expected) / 7, rel=1e-3)


@pytest.mark.parametrize(("learning", "times"), [(["language"], 1), (["connector", "language"], 2), (["vision"], 2)])
def test_pictures_of_a_pair_are_encoded_once_and_nothing_else_changes(tiny, data, tmp_path, learning, times):
    """Beside the loss and the gradients of four whole passes; the reference has its own eyes where eyes learn."""
    model, processor = copy.deepcopy(tiny)
    recipe = from_tree(preference(data, batch=7, micro_batch=3, beta=0.3, train=learning))
    reference = copy.deepcopy(model).requires_grad_(False)
    for name, parameter in reference.named_parameters():
        if adapters.part_of(reference, name) in learning:
            parameter.data.mul_(0.9)
    objective = attached(model, processor, recipe, tmp_path, reference)
    samples, total = objective.samples(0), 0.0
    for row in (samples[:3], samples[3:6], samples[6:]):
        batches = [processor.collate([getattr(sample, side) for sample in row]) for side in ("inputs", "rejected")]
        added = [
            answer_log_probs(model, model.embed_pictures(batch))
            - answer_log_probs(reference, reference.embed_pictures(batch))
            for batch in batches
        ]
        loss = dpo_loss(0.3 * (added[0] - added[1])) / len(samples)
        loss.backward()
        total += loss.item()
    expected, seen = gradients(model), []
    for each in (model, reference):
        each.encode = lambda *args, encode=each.encode, **kwargs: seen.append(len(args[0])) or encode(*args, **kwargs)
    assert accumulate_gradients(objective, 0)[0] == pytest.approx(total, rel=1e-4)
    assert len(seen) == 3 * times
    found, largest = gradients(model), max(slope.abs().max() for slope in expected.values())
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() < 2e-4 * largest for name in expected)


def test_only_the_last_answers_are_compared(tiny, data, tmp_path):
    model, processor = copy.deepcopy(tiny)
    objective = attached(model, processor, from_tree(preference(data, batch=7)), tmp_path, model)
    for sample in objective.samples(0):
        labels = sample.rejected.text_inputs["labels"][0]
        assert "no" in (learned := processor.tokenizer.decode(labels[labels != -100]))
        assert "green" not in learned


@pytest.mark.parametrize("adapter", [None, {"rank": 4, "alpha": 16, "dropout": 0.0}], ids=["full", "lora"])
def test_preferences_are_learned_and_survive_a_stop(adapter, started, data, tmp_path, monkeypatch):
    """The reference is the model that the run began with, also after it was resumed."""
    recipe = preference(data, batch=7, steps=8, train=["language"], learning_rate=5e-3, checkpoint_every=1)
    recipe["model"] = {"start": str(started["ovis2"]), "adapter": adapter}
    training.train(from_tree(recipe), tmp_path / "whole", progress=False)
    line = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert line["preferred"] == 1.0
    assert line["margin"] > 0.5
    learn = Trainer.learn

    def stopping(self, objective, step):
        found = learn(self, objective, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        elif step == 0:  # nothing has been added to the reference yet
            assert found[0] == pytest.approx(0.6931, abs=1e-3)
        return found

    monkeypatch.setattr(Trainer, "learn", stopping)
    with pytest.raises(training.Interrupted):
        training.train(from_tree(recipe), tmp_path / "run", progress=False)
    training.train(from_tree(recipe), tmp_path / "run", resume=True, progress=False)
    assert same(state(tmp_path / "whole"), state(tmp_path / "run"))
