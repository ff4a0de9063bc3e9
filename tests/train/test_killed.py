"""kill -9 at any moment, and --resume: not a bit of weights, optimizer, losses or the samples' order is another."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import sys

import pytest
from runs import WORLD_TREE, exported, forked, log, same, state, tree

from longview.engine import load as load_engine
from longview.errors import CheckpointError, MediaError
from longview.messages import ask
from longview.train import run as training
from longview.train.loop import Trainer
from longview.train.objectives.of_data import DataObjective
from longview.train.plan.plan import make_plan
from longview.train.recipe import from_tree
from longview.train.saved import checkpoint, manifest
from longview.train.saved.export import export_checkpoint
from longview.train.saved.folder import checkpoints, newest_checkpoint

LORA = {"rank": 2, "alpha": 4, "dropout": 0.2}
KINDS = {
    "second epoch": ("ovis2", {"micro_batch": 3, "steps": 0, "epochs": 2.5}, {}),
    "accumulated": ("mgm", {"train": ["vision", "connector"], "steps": 12}, {}),
    "packed": ("owl3", {"pack": 300, "group_by_length": True}, {}),
    "streamed": (
        "owl3",
        {
            "crop": {"single": 0.5},
            "datasets": [
                {"path": "rows.jsonl", "streaming": True, "buffer": 3},
                {"path": "captions.parquet", "streaming": True},
            ],
        },
        {},
    ),
    "lora": ("owl3", {"train": ["language"]}, {"adapter": LORA}),
    "qlora": ("owl3", {"train": ["language"]}, {"adapter": LORA, "quantize": "nf4"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_any_step_resumes_bit_for_bit(kind, started, data, tmp_path, monkeypatch):
    """kill -9 in the middle of a step, whichever it is, in the second epoch too; at last it is let live."""
    family, stage, model = KINDS[kind]
    recipe = copy.deepcopy(tree(started[family], data, **stage))
    recipe["model"] |= model
    for dataset in recipe["stages"][0]["data"]["datasets"]:
        dataset["path"] = str(data / dataset["path"])
    understood = from_tree(recipe)
    taken = tmp_path / "taken"
    learn, sample = Trainer.learn, DataObjective.sample

    def noted(self, position):
        with taken.open("a") as file:
            file.write(f"{position} {self.mixture.at(position)[1]}\n")
        return sample(self, position)

    monkeypatch.setattr(DataObjective, "sample", noted)
    training.train(understood, tmp_path / "whole", progress=False)
    order = taken.read_text().splitlines()
    steps = make_plan(understood).recipe.stages[0].steps
    assert len(order) == steps * 4
    output = tmp_path / "killed"
    for moment in sorted(random.Random(kind).sample(range(1, steps), 3)):

        def dying(self, objective, step, moment=moment):
            found = learn(self, objective, step)
            if step == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        monkeypatch.setattr(Trainer, "learn", dying)
        taken.unlink()
        resume = (output / "recipe.json").exists()
        assert forked(lambda resume=resume: training.train(understood, output, resume, progress=False)) == [
            -signal.SIGKILL
        ]
        seen = taken.read_text().splitlines()
        assert seen == order[(moment + 1) * 4 - len(seen) : (moment + 1) * 4]
    monkeypatch.setattr(Trainer, "learn", learn)
    again = training.train(understood, output, resume=True, progress=False)
    assert again.name == ("adapter" if "adapter" in model else "model")
    assert same(state(tmp_path / "whole"), state(output))
    assert same(exported(tmp_path / "whole"), exported(output))
    assert log(tmp_path / "whole") == log(output)


@pytest.fixture(scope="module")
def begun(started, data, tmp_path_factory):
    """A recipe, and a run of it that was killed after its first checkpoint."""
    recipe = from_tree(tree(started["owl3"], data, train=["connector"], batch=1, steps=6))
    output = tmp_path_factory.mktemp("begun") / "run"

    def work():
        save = Trainer.save

        def dying(self, stage, step):
            save(self, stage, step)
            os.kill(os.getpid(), signal.SIGKILL)

        Trainer.save = dying
        training.train(recipe, output, progress=False)

    assert forked(work) == [-signal.SIGKILL]
    return recipe, output


def saving(recipe, output, moment: int | None = None, half: bool = False) -> int:
    """Resume in a process that is killed while it saves: at the n-th thing it does with files, or with half a file
    written. Without `moment`, how many things it does."""

    def work():
        did, save, save_file = [0], Trainer.save, checkpoint.save_file

        def watched(self, stage, step):
            did[0] = 1
            save(self, stage, step)
            (output / "did").write_text(str(did[0]))
            os.kill(os.getpid(), signal.SIGKILL)

        def note(event, arguments):
            if did[0] and event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                did[0] += 1
                if did[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        def halved(tensors, path):
            save_file(tensors, path)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        Trainer.save = watched
        if half:
            checkpoint.save_file = halved
        sys.addaudithook(note)
        training.train(recipe, output, resume=True, progress=False)

    assert forked(work) == [-signal.SIGKILL]
    return int((output / "did").read_text()) if moment is None and not half else 0


def test_a_run_killed_while_it_saves_has_one_checkpoint_or_the_other(begun, tmp_path):
    """At each thing that saving does with a file or folder; then the run goes on to the same end."""
    recipe, first = begun
    (begin,) = checkpoints(first)
    output = tmp_path / "whole"
    shutil.copytree(first, output)
    count = saving(recipe, output)
    assert count > 15
    (end,) = checkpoints(output)
    sealed = {folder.name: (folder / manifest.NAME).read_bytes() for folder in (begin, end)}
    training.train(recipe, output, resume=True, progress=False)
    expected = state(output)
    found = []
    for moment in range(2, count + 1):
        killed = tmp_path / str(moment)
        shutil.copytree(first, killed)
        saving(recipe, killed, moment)
        newest = training.newest_checkpoint(killed)
        manifest.verify(newest)
        assert (newest / manifest.NAME).read_bytes() == sealed[newest.name]
        found.append(newest.name)
        if moment % 5 == 0:
            training.train(recipe, killed, resume=True, progress=False)
            assert same(state(killed), expected)
            assert log(killed) == log(output)
            assert [path.name for path in checkpoints(killed)] == ["checkpoint-0000006"]
        shutil.rmtree(killed)
    assert found == sorted(found)
    assert set(found) == set(sealed)


def test_half_a_file_is_never_taken_for_a_checkpoint(begun, tmp_path):
    recipe, first = begun
    output = tmp_path / "run"
    shutil.copytree(first, output)
    saving(recipe, output, half=True)
    assert (output / ".unfinished" / "model.safetensors").exists()
    assert [path.name for path in checkpoints(output)] == ["checkpoint-0000002"]
    training.train(recipe, output, resume=True, progress=False)
    assert not (output / ".unfinished").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_bit_that_turned_is_told_by_its_file_before_any_step(file, begun, tmp_path, monkeypatch):
    recipe, first = begun
    output = tmp_path / "run"
    shutil.copytree(first, output)
    path = training.newest_checkpoint(output) / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(Trainer, "learn", None)
    with pytest.raises(CheckpointError, match=rf"checkpoint-0000002/{file} is not what was written"):
        training.train(recipe, output, resume=True, progress=False)
    with pytest.raises(CheckpointError, match=rf"{file} is not what was written"):
        export_checkpoint(output, tmp_path / "exported")


def test_a_checkpoint_without_a_manifest_is_none(begun, tmp_path):
    recipe, first = begun
    for content in (None, "[]", '{"model.safetensors": {}}', "{"):
        output = tmp_path / "run"
        shutil.copytree(first, output, dirs_exist_ok=True)
        path = training.newest_checkpoint(output) / manifest.NAME
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
            training.train(recipe, output, resume=True, progress=False)


# ── the end of a run, and of a stage that is kept ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kept(data, tmp_path_factory):
    """A recipe of a new model whose last stage is kept, and a whole run of it."""
    recipe = copy.deepcopy(tree(data, data, train=["connector"], batch=1, steps=2, keep=True))
    recipe["model"] = copy.deepcopy(WORLD_TREE["model"])
    recipe["stages"][0]["data"]["datasets"] = [{"path": str(data / "captions.parquet")}]
    understood, output = from_tree(recipe), tmp_path_factory.mktemp("kept") / "run"
    training.train(understood, output, progress=False)
    return understood, output


def ending(recipe, output, moment: int | None) -> int:
    """Resume a run whose steps are all done, in a process that is killed at the n-th thing it does in the run's
    folder. Without `moment`, how many things it does."""

    def work():
        did = [0]

        def note(event, arguments):
            if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile"):
                return
            if str(output) in str(arguments[0]) or event == "os.remove":
                did[0] += 1
                if did[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        training.train(recipe, output, resume=True, progress=False)
        (output / "did").write_text(str(did[0]))

    assert forked(work) == [0 if moment is None else -signal.SIGKILL]
    return int((output / "did").read_text()) if moment is None else 0


def test_a_run_killed_while_it_keeps_and_exports_is_resumed_to_the_same_files(kept, tmp_path):
    recipe, whole = kept
    counted = tmp_path / "counted"
    shutil.copytree(whole, counted)
    count = ending(recipe, counted, None)
    assert count > 20
    expected = {path.relative_to(whole) for path in whole.rglob("*") if path.suffix in (".json", ".safetensors")}
    for moment in range(3, count, max(1, count // 7)):
        output = tmp_path / str(moment)
        shutil.copytree(whole, output)
        for folder in ("model", "after"):
            shutil.rmtree(output / folder)
        shutil.copytree(whole / "model", output / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        ending(recipe, output, moment)
        folder = training.train(recipe, output, resume=True, progress=False)
        assert same(exported(output), exported(whole))
        assert load_engine(folder).answer([ask("Hello?")], max_tokens=2)
        found = {path.relative_to(output) for path in output.rglob("*") if path.suffix in (".json", ".safetensors")}
        assert found == expected
        assert not list(output.rglob("*.unfinished"))
        shutil.rmtree(output)


def test_what_a_killed_run_left_unfinished_is_neither_kept_nor_in_the_way(kept, tmp_path):
    recipe, whole = kept
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    (output / "model" / ".unfinished").mkdir()
    (output / "model" / ".unfinished" / "model.safetensors").write_bytes(b"half")
    older = output / "checkpoint-0000001"  # a kill between the newer one's rename and this one's removal
    shutil.copytree(output / "checkpoint-0000002", older)
    (output / ".unfinished").mkdir()
    training.train(recipe, output, resume=True, progress=False)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-0000002"]
    assert not list(output.rglob("*.unfinished"))
    assert (output / "after" / "tune" / "model.safetensors").is_file()


def test_a_checkpoint_before_the_first_step_with_samples_is_resumed(started, data, tmp_path, monkeypatch):
    """Where all samples of the first steps are in quarantine, the optimizer remembers nothing yet."""
    recipe = tree(started["owl3"], data, train=["connector"], batch=1, steps=4, quarantine=1.0)
    recipe["stages"][0]["checkpoint_every"] = 1
    understood, sample, save = from_tree(recipe), DataObjective.sample, Trainer.save

    def broken(self, position):
        if position < 2:
            raise MediaError("it is broken")
        return sample(self, position)

    monkeypatch.setattr(DataObjective, "sample", broken)
    training.train(understood, tmp_path / "whole", progress=False)

    def dying(self, stage, step):
        save(self, stage, step)
        os.kill(os.getpid(), signal.SIGKILL)

    output = tmp_path / "run"

    def work():
        Trainer.save = dying
        training.train(understood, output, progress=False)

    assert forked(work) == [-signal.SIGKILL]
    assert not manifest.read_tensors(newest_checkpoint(output), "optimizer")[1]
    training.train(understood, output, resume=True, progress=False)
    assert same(state(tmp_path / "whole"), state(output))


def test_files_of_a_run_have_the_permissions_of_the_umask(begun, started, data, tmp_path):
    recipe = tree(started["owl3"], data, train=["language"], batch=1, steps=1)
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            for name, model in {"whole": {}, "lora": {"adapter": LORA}}.items():
                output = tmp_path / f"{mask}-{name}"
                training.train(from_tree(recipe | {"model": recipe["model"] | model}), output, progress=False)
                weights = list(output.rglob("*.safetensors"))
                assert len(weights) == 3
                assert {path.stat().st_mode & 0o777 for path in weights} == {mode}
        finally:
            os.umask(before)
