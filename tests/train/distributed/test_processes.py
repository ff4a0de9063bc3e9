"""Two processes train as one does: the same losses and weights, whichever of them sees pictures, and no waiting."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import exported, forked, goes_on_elsewhere, log, near, same, state, tree

from longview.errors import LongviewError, RecipeError
from longview.train import run as training
from longview.train.distributed import processes
from longview.train.distributed.launch import Launch, make_launch, read_hosts
from longview.train.loop import Trainer
from longview.train.recipe import from_tree
from longview.train.saved import checkpoint
from longview.train.saved.folder import newest_checkpoint

ALL = ["vision", "connector", "language"]
SHORT = {"steps": 3, "checkpoint_every": 2}
STREAM = [{"path": "rows.jsonl", "streaming": True, "buffer": 3}]
CASES = {  # family, stage, adapter; of the eight rows one shows nothing, so one process often sees no picture
    "padded": ("ovis2", {"train": ALL, "micro_batch": 2, "batch": 5, "group_by_length": True}, None),
    "packed": ("owl3", {"train": ALL, "pack": 400, "batch": 5}, None),
    "frozen words": ("mgm", {"train": ["connector"], "batch": 3, "gradient_checkpointing": True}, None),
    "lora": (
        "owl3",
        {"train": ["language"], "batch": 3, "crop": {"single": 0.5}, "datasets": STREAM},
        {"rank": 2, "alpha": 4, "dropout": 0.0},
    ),
    "preference": ("ovis2", {"train": ALL, "objective": "preference", "batch": 3}, None),
    "preference lora": ("owl3", {"objective": "preference", "batch": 2}, {"rank": 2, "alpha": 4, "dropout": 0.0}),
}


def case(name: str, started, data, **changes) -> dict:
    family, stage, adapter = CASES[name]
    pairs = {"datasets": [{"path": str(data / "pairs.jsonl")}]} if stage.get("objective") == "preference" else {}
    recipe = copy.deepcopy(tree(started[family], data, **SHORT | stage | pairs | changes))
    for dataset in recipe["stages"][0]["data"]["datasets"]:
        dataset["path"] = str(data / dataset["path"])
    recipe["model"]["adapter"] = adapter
    return recipe


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name, started, data, tmp_path, precise):
    recipe = case(name, started, data)
    training.train(from_tree(recipe), tmp_path / "one", progress=False)
    losses = precise(tmp_path / "one")
    assert len(losses) == 3
    for parallel in ("ddp", "fsdp2"):
        output = tmp_path / parallel
        understood = from_tree(recipe | {"parallel": parallel})
        assert forked(lambda u=understood, o=output: training.train(u, o, progress=False), 2) == [0, 0]
        assert precise(output) == pytest.approx(losses, rel=1e-6), parallel
        near(state(output), state(tmp_path / "one"))
        assert exported(output).keys() == exported(tmp_path / "one").keys()
        assert [line["samples"] for line in log(output)] == [line["samples"] for line in log(tmp_path / "one")]
        files = sorted(path.name for path in newest_checkpoint(output).glob("model*"))
        shares = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert files == (shares if parallel == "fsdp2" else ["model.safetensors"])


@pytest.mark.parametrize(("before", "after"), [((2, "fsdp2"), (1, "ddp")), ((1, "ddp"), (2, "fsdp2"))])
def test_a_stopped_run_goes_on_in_another_number_of_processes(before, after, started, data, tmp_path, precise):
    """The stop reaches one process alone: all end after the same step."""
    recipe = case("padded", started, data, steps=5, checkpoint_every=9)
    whole, output = goes_on_elsewhere(recipe, before, after, tmp_path, rank=-1)
    assert precise(output) == pytest.approx(precise(whole), rel=1e-6)
    near(state(output), state(whole))


@pytest.mark.parametrize("parallel", ["fsdp2", "zero2", "zero3"])
def test_what_is_for_several_processes_is_refused_in_one(parallel, data, tmp_path):
    recipe = dataclasses.replace(from_tree(tree(Path("x"), data)), parallel=parallel)
    with pytest.raises(RecipeError, match=f"parallel={parallel} is for several processes, and one was started"):
        training.train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on_to_the_same_bits(
    parallel, started, data, tmp_path
):
    recipe = case("lora", started, data, steps=5)
    recipe["model"]["adapter"] |= {"dropout": 0.2}
    understood, learn = from_tree(recipe | {"parallel": parallel}), Trainer.learn
    assert forked(lambda: training.train(understood, tmp_path / "whole", progress=False), 2) == [0, 0]
    output = tmp_path / "run"

    def dying():
        def learning(self, objective, step):
            if step == 3 and processes.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return learn(self, objective, step)

        Trainer.learn = learning
        training.train(understood, output, progress=False)

    assert forked(dying, 2) == [1, -signal.SIGKILL]
    assert newest_checkpoint(output).name == "checkpoint-0000002"
    assert forked(lambda: training.train(understood, output, resume=True, progress=False), 2) == [0, 0]
    assert same(state(output), state(tmp_path / "whole"))
    assert log(output) == log(tmp_path / "whole")


def test_what_one_process_cannot_do_ends_all_with_one_line(started, data, tmp_path, capfd, monkeypatch):
    """The second one's disk is full, and its samples are broken, which the first could not know; a file is damaged,
    which the first alone looks at."""
    save_file = checkpoint.save_file

    def full(tensors, path):
        if path.name == "optimizer-00002-of-00002.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    recipe = case("padded", started, data)
    output = tmp_path / "full"
    # rich 13 and 14 end a bar that is not shown with an empty line
    assert forked(lambda: told(from_tree(recipe | {"parallel": "fsdp2"}), output), 2) == [2, 2]
    assert re.fullmatch(r".*could not be written \(No space left .*no checkpoint yet.*", capfd.readouterr().err.strip())
    assert not (output / ".unfinished").exists()
    monkeypatch.undo()
    training.train(from_tree(recipe), output, resume=True, progress=False)
    (newest_checkpoint(output) / "optimizer.safetensors").write_bytes(b"short")
    assert forked(lambda: told(from_tree(recipe), output, resume=True), 2) == [2, 2]
    assert re.fullmatch(r".*optimizer.safetensors has 5 bytes, and \d+ were written.*", capfd.readouterr().err.strip())
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:40])
    (tmp_path / "rows.jsonl").write_text((data / "rows.jsonl").read_text())
    broken = tree(started["ovis2"], tmp_path, batch=8, quarantine=0.0)
    assert forked(lambda: told(from_tree(broken), tmp_path / "run"), 2) == [2, 2]
    assert capfd.readouterr().err.count("samples are broken, more than stages.tune.data.quarantine=0 allows") == 1


def told(recipe, output: Path, resume: bool = False) -> None:
    """Train as the command line does: an error is one line and 2."""
    try:
        training.train(recipe, output, resume, progress=False)
    except LongviewError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def test_samples_left_out_in_either_process_are_told_in_their_order(started, data, tmp_path):
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 40 if path.name == "2.png" else None])
    (tmp_path / "rows.jsonl").write_text((data / "rows.jsonl").read_text())
    recipe = from_tree(tree(started["ovis2"], tmp_path, batch=8, steps=2, quarantine=0.5))
    training.train(recipe, tmp_path / "one", progress=False)
    sharded = dataclasses.replace(recipe, parallel="fsdp2")
    assert forked(lambda: training.train(sharded, tmp_path / "two", progress=False), 2) == [0, 0]
    reports = [(tmp_path / name / "quarantine.jsonl").read_text() for name in ("one", "two")]
    assert len(reports[0].splitlines()) == 4
    assert reports[0] == reports[1]
    near(state(tmp_path / "two"), state(tmp_path / "one"))


# ── who takes part ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 1}, r"stages\.tune\.data\.batch is 1, for 2 processes"),
        ({"optimizer": "muon"}, "'muon' needs whole matrices; take adamw, or parallel=ddp"),
    ],
)
def test_what_several_processes_cannot_follow_is_refused(change, message, data, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    recipe = dataclasses.replace(from_tree(tree(Path("x"), data, **change)), parallel="fsdp2")
    with pytest.raises(RecipeError, match=message):
        training.check_processes(recipe)
    quantised = dataclasses.replace(recipe.model, quantize="nf4")
    with pytest.raises(RecipeError, match="'nf4' cannot be held in shares; take parallel=ddp"):
        training.check_processes(dataclasses.replace(recipe, model=quantised))
    stage = {"name": "see", "objective": "answers", "train": ["vision"], "steps": 1, "world": {}}
    world = from_tree({"model": {"family": "owl3"}, "stages": [stage]})
    with pytest.raises(RecipeError, match="'answers' is for one process, and 2 were started"):
        training.check_processes(world)


def test_an_environment_that_contradicts_itself_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RecipeError, match="WORLD_SIZE=2 and no RANK"):
        processes.count()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RecipeError, match="WORLD_SIZE is 'two'"):
        processes.count()


def test_an_output_that_the_machines_do_not_share_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="not the same folder on"):
        training.check_shared(tmp_path)


def test_a_hostfile_says_who_is_who(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# two machines\nnode-1 slots=8\n\n127.0.0.1 slots=4  # this one\n")
    assert read_hosts(path) == {"node-1": 8, "127.0.0.1": 4}
    assert make_launch(None, hostfile=path) == Launch(4, 2, 1, "node-1")
    assert make_launch(None, hostfile=path, node_rank=0, master_addr="10.0.0.1:400") == Launch(8, 2, 0, "10.0.0.1", 400)
    assert make_launch(2) == Launch(2)
    assert make_launch(None) is None
    options = make_launch(8, 4, 3, "[fe80::1]:77").options()
    assert options == ["--nproc-per-node=8", "--nnodes=4", "--node-rank=3", "--master-addr=fe80::1", "--master-port=77"]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("node-1 slots=eight", {}, r"line 1 is 'node-1 slots=eight'; expected HOST slots=8"),
        ("node-1", {}, r"line 1 is 'node-1'; expected"),
        ("# none", {}, "names no machine"),
        ("a slots=1\na slots=2", {}, "line 2 names a again"),
        ("node-1.invalid slots=8", {}, r"none of the machines in .* \(node-1.invalid\) is .*--node-rank, 0 to 0"),
        ("a slots=1", {"node_rank": 1}, "--node-rank is 1; the 1 machines have the numbers 0 to 0"),
        ("a slots=1", {"nnodes": 2}, "leave out --nnodes and --nproc-per-node"),
        (None, {"nproc_per_node": 0}, "give 1 or more"),
        (None, {"nproc_per_node": 2, "nnodes": 2}, "each machine needs --node-rank"),
        (None, {"nproc_per_node": 2, "nnodes": 2, "node_rank": 0, "master_addr": "a:b"}, "expected HOST or HOST:PORT"),
        (None, {"node_rank": 1}, "--node-rank needs --nproc-per-node"),
    ],
)
def test_machines_that_do_not_add_up_are_refused(tmp_path, lines, options, message):
    if lines is not None:
        (tmp_path / "hosts").write_text(lines)
        options = options | {"hostfile": tmp_path / "hosts"}
    with pytest.raises(RecipeError, match=message):
        make_launch(**{"nproc_per_node": None} | options)


def on_command(words: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "longview", "train", *words, "--nproc-per-node", "2"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_command_line_starts_its_own_processes(started, data, tmp_path):
    """Of which the first alone speaks."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(case("padded", started, data)))
    done = on_command([str(path), "--output", str(tmp_path / "run")])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'model'}\n"


@pytest.mark.slow  # what the processes agree on is above; here the launcher's own words are kept back
def test_the_command_line_tells_a_refusal_once(started, data, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(case("padded", started, data)))
    done = on_command([str(path), "--output", str(tmp_path / "run"), "--resume"])
    assert done.returncode == 2
    assert re.fullmatch(r"longview: .* holds no run to resume; .*\n", done.stderr)
    assert not done.stdout
