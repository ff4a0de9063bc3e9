from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from runs import NEW_MODELS, WORLD_TREE, reseal
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longview.curriculum import world
from longview.errors import CheckpointError, RecipeError
from longview.train import run as training
from longview.train.build import open_model
from longview.train.loop import Trainer
from longview.train.optimizers import learning_rate, select_parts
from longview.train.recipe import Recipe, Stage, from_tree
from longview.train.saved import checkpoint
from longview.train.saved.folder import lock_folder, newest_checkpoint


@pytest.fixture(scope="module", params=NEW_MODELS)
def recipe(request) -> Recipe:
    return from_tree(WORLD_TREE | {"model": NEW_MODELS[request.param]})


@pytest.fixture(scope="module")
def unbroken(recipe, tmp_path_factory) -> Path:
    """A run from beginning to end."""
    output = tmp_path_factory.mktemp("unbroken") / "run"
    training.train(recipe, output, progress=False)
    return output


def weights(output: Path) -> dict[str, torch.Tensor]:
    folder = newest_checkpoint(output)
    assert folder is not None
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


@pytest.mark.parametrize("stop_at", [2, 4, 7])
def test_a_stopped_run_resumes_bit_for_bit(recipe, unbroken, tmp_path, monkeypatch, stop_at):
    """The run is asked to end (as by Ctrl-C or a scheduler) in its n-th step, inside and between stages."""
    steps, learn = [], Trainer.learn

    def interrupted(self, objective, step):
        steps.append(step)
        if len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, objective, step)

    monkeypatch.setattr(Trainer, "learn", interrupted)
    with pytest.raises(training.Interrupted, match=r"after step \d of \d; .*--resume"):
        training.train(recipe, tmp_path / "run", progress=False)
    assert len(steps) == stop_at
    assert not (tmp_path / "run" / "model" / "model.safetensors").exists()
    training.train(recipe, tmp_path / "run", resume=True, progress=False)
    assert len(steps) == 10
    expected, found = weights(unbroken), weights(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(recipe, unbroken, tmp_path, monkeypatch):
    class Crash(Exception):
        pass

    learn = Trainer.learn

    def crashing(self, objective, step):
        if objective.stage.name == "tell" and step == 3:
            raise Crash
        return learn(self, objective, step)

    monkeypatch.setattr(Trainer, "learn", crashing)
    with pytest.raises(Crash):
        training.train(recipe, tmp_path / "run", progress=False)
    (tmp_path / "run" / ".unfinished").mkdir()
    monkeypatch.undo()
    training.train(recipe, tmp_path / "run", resume=True, progress=False)
    expected, found = weights(unbroken), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_trained_model_opens_as_a_checkpoint_and_answers(unbroken):
    from longview.engine import load

    engine = load(unbroken / "model")
    answer = engine.answer("What colour is the circle?", max_tokens=3)
    assert answer.receipt.usage.completion_tokens > 0
    trained = load_file(unbroken / "model" / "model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 for tensor in trained.values())
    assert trained.keys() >= {name for name, _ in engine.model.named_parameters()}


def test_only_the_named_parts_learn(recipe, unbroken, tmp_path):
    torch.manual_seed(recipe.seed)
    fresh, _ = open_model(recipe, tmp_path / "model")
    before, after = fresh.state_dict(), weights(unbroken)
    # Run the first stage alone: the language model must not have moved by it.
    first = dataclasses.replace(recipe, stages=recipe.stages[:1])
    training.train(first, tmp_path / "first", progress=False)
    middle = weights(tmp_path / "first")
    embedding = next(name for name in middle if name.endswith("embed_tokens.weight"))
    patch = next(name for name, tensor in middle.items() if tensor.dim() == 4)
    assert torch.equal(before[embedding], middle[embedding])
    assert not torch.equal(middle[embedding], after[embedding])
    assert not torch.equal(before[patch], middle[patch])
    assert torch.equal(middle[patch], after[patch])


def test_the_log_has_a_line_for_every_ten_steps_and_the_end(unbroken):
    lines = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("see", 4), ("tell", 6)]
    assert all(line["loss"] > 0 for line in lines)


def test_a_folder_that_holds_a_run_is_not_overwritten(recipe, unbroken, tmp_path):
    with pytest.raises(RecipeError, match="--resume"):
        training.train(recipe, unbroken, progress=False)
    with pytest.raises(RecipeError, match="another recipe"):
        training.train(dataclasses.replace(recipe, seed=5), unbroken, resume=True, progress=False)
    with pytest.raises(RecipeError, match="no run to resume"):
        training.train(recipe, tmp_path / "nothing", resume=True, progress=False)


def test_an_unknown_part_or_family_is_a_recipe_error(recipe, tmp_path):
    model, _ = open_model(recipe, tmp_path)
    with pytest.raises(RecipeError, match="'tower'; its parts are vision, connector, language"):
        select_parts(model, ["tower"])
    with pytest.raises(RecipeError, match="'owl4'"):
        open_model(from_tree(WORLD_TREE | {"model": {"family": "owl4"}}), tmp_path)


def test_the_learning_rate_warms_up_and_falls_to_its_last_share():
    stage = Stage("x", "answers", [], steps=100, learning_rate=1.0, final_rate=0.1, warmup=10)
    for cosine_after_warmup, peak in ((False, {9, 10}), (True, {9, 10})):
        rates = [learning_rate(stage, step, cosine_after_warmup) for step in range(100)]
        assert rates[0] == pytest.approx(0.1, rel=0.02)
        assert rates.index(max(rates)) in peak
        assert (max(rates) == 1.0) is cosine_after_warmup
        assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.fixture
def damaged(unbroken, tmp_path) -> Path:
    """A copy of a finished run, to damage."""
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def test_a_second_run_in_a_folder_is_refused_while_the_first_one_holds_it(recipe, damaged):
    with lock_folder(damaged, resume=True), pytest.raises(RecipeError, match="another process is training in"):
        training.train(recipe, damaged, resume=True, progress=False)
    training.train(recipe, damaged, resume=True, progress=False)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_a_damaged_checkpoint_file_is_named_and_nothing_is_exported(recipe, damaged, file, damage):
    folder = newest_checkpoint(damaged)
    assert folder is not None
    (damaged / "model" / "model.safetensors").unlink()
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
        training.train(recipe, damaged, resume=True, progress=False)
    assert "\n" not in str(error.value)
    assert not (damaged / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "state",
    ["[]", "{}", '{"stage": 2, "step": 1}', '{"stage": -1, "step": 1}', '{"stage": 1, "step": 7}',
     '{"stage": 1, "step": 0}', '{"stage": true, "step": 1}', '{"stage": 0.0, "step": 1}', '{"stage": 1, "step": 2}',
     '{"stage": 1, "step": 2, "losses": [true]}'],
)  # fmt: skip
def test_a_state_that_the_recipe_does_not_have_is_refused(recipe, damaged, state):
    folder = newest_checkpoint(damaged)
    assert folder is not None
    (folder / "state.json").write_text(state)
    reseal(folder)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        training.train(recipe, damaged, resume=True, progress=False)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "probes.safetensors"])
def test_tensors_that_do_not_fit_the_model_are_refused(recipe, damaged, file):
    folder = newest_checkpoint(damaged)
    assert folder is not None
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.dim() == 2)
    wrong = [{name: tensor[1:].clone()}, {name: tensor.double()}, {"unknown": tensor.clone()}]
    for change in wrong:
        save_file(tensors | change, folder / file)
        reseal(folder)
        with pytest.raises(CheckpointError, match=file):
            training.train(recipe, damaged, resume=True, progress=False)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / file)
    reseal(folder)
    with pytest.raises(CheckpointError, match=f"{file} lacks tensor"):
        training.train(recipe, damaged, resume=True, progress=False)


def test_the_tokenizer_of_a_resumed_run_must_be_whole(recipe, damaged):
    path = damaged / "model" / "tokenizer.json"
    for content in ("{", '{"model": 1}', None):
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            training.train(recipe, damaged, resume=True, progress=False)


def test_a_full_disk_is_told_with_the_checkpoint_that_is_left(recipe, unbroken, tmp_path, monkeypatch):
    def full(tensors, path):
        if "optimizer" in path.name and saved:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(path)
        save_file(tensors, path)

    saved: list[Path] = []
    monkeypatch.setattr(checkpoint, "save_file", full)
    output = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"No space left on device.*no checkpoint yet"):
        training.train(recipe, output, progress=False)
    monkeypatch.undo()
    calls = []

    def full_later(tensors, path):
        calls.append(path)
        if len(calls) == 6:
            raise SafetensorError("I/O error: No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_later)
    with pytest.raises(CheckpointError, match=r"No space.*intact in .*checkpoint-0000004"):
        training.train(recipe, output, resume=True, progress=False)
    monkeypatch.undo()
    training.train(recipe, output, resume=True, progress=False)
    expected, found = weights(unbroken), weights(output)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_has_ended_paints_nothing_when_resumed(recipe, damaged, monkeypatch):
    left = (damaged / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(world, "paint_pool", lambda *_, **__: pytest.fail("painted"))
    training.train(recipe, damaged, resume=True, progress=False)
    assert (damaged / "model" / "model.safetensors").read_bytes() == left


def test_a_resumed_run_does_not_log_a_step_twice(recipe, damaged):
    log = damaged / "log.jsonl"
    lines = log.read_text().splitlines()
    folder = newest_checkpoint(damaged)
    assert folder is not None
    (folder / "state.json").write_text('{"stage": 1, "step": 5, "losses": []}')
    reseal(folder)
    folder.rename(damaged / "checkpoint-0000009")
    log.write_text("\n".join([*lines, '{"stage": "te']))
    training.train(recipe, damaged, resume=True, progress=False)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in found] == [("see", 4), ("tell", 6)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hiden_size": 32}, "'hiden_size' in model.config; .*'hidden_size'"),
        ({"vision_config": {"patch_sise": 8}}, r"'patch_sise' in model.config.vision_config; .*'patch_size'"),
        ({"hidden_size": "wide"}, "does not make a model"),
        ({"hidden_size": 32, "num_attention_heads": 0}, "does not make a model"),
        ({"vocab_size": 9}, "decided by the tokenizer"),
    ],
)
def test_a_config_that_makes_no_model_leaves_no_run_behind(tmp_path, config, message):
    recipe = from_tree(WORLD_TREE | {"model": {"family": "owl3", "config": config}})
    with pytest.raises(RecipeError, match=message):
        training.train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_an_output_that_is_no_folder_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/none/run")):
        with pytest.raises(RecipeError, match="cannot be used"):
            training.train(recipe, output, progress=False)
