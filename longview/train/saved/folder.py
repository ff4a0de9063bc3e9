"""The folder of a run: who holds it, what may be read from it, and what is told when it cannot be written.

output/
  .lock                   held by the process that trains here
  recipe.json             the resolved recipe
  log.jsonl               a line every few steps
  sessions.jsonl          when and where it was begun, and gone on with
  tensorboard/            the same as the log, where wanted
  datasets.json           which files of a user's it learns from, with their SHA-256
  parts.json              which files its parts began as, with their SHA-256
  quarantine.jsonl        samples of them that could not be shown, each with its reason
  checkpoint-<steps>/     the newest complete state, from which --resume continues bit for bit (in fp32); manifest.py
  .unfinished/            a checkpoint that is being written; ignored
  after/<stage>/          the model as it was after a stage that keeps it
  model/                  the trained model as a checkpoint folder, at the end
  adapter/                in its place, where an adapter was trained
  answers.json            what the model says before and after, to some questions
  report.html             all of it on one page
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from longview.errors import CheckpointError, RecipeError
from longview.train.recipe import Recipe, from_tree, to_tree

REPAIR = "restore the file from a copy, or train anew in another folder"


@contextlib.contextmanager
def hold(output: Path, resume: bool) -> Iterator[None]:
    """Keep other runs out of the folder; the system lets go when the process ends, however it ends.

    Raises:
        RecipeError: the folder cannot be used, another process trains there, or there is nothing to resume.
    """
    if resume and not (output / "recipe.json").is_file():
        raise RecipeError(f"{output} holds no run to resume; leave out --resume to begin one")
    try:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RecipeError(
            f"output {output} cannot be used ({error.strerror}); give a folder that can be made and written to"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"another process is training in {output}; wait until it ends, stop it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def check_owner(recipe: Recipe, output: Path, resume: bool) -> None:
    """Make sure that the folder belongs to this run.

    Raises:
        RecipeError: it holds another run, or this one without leave to resume it.
    """
    path = output / "recipe.json"
    if not resume:
        if path.exists():
            raise RecipeError(f"{output} already holds a run; add --resume to continue it, or choose another folder")
        return
    with reading(path):
        tree = json.loads(path.read_bytes())
    try:
        # Keys may have come since, with defaults; and a run may go on in another number of processes.
        how = {"parallel": recipe.parallel, "deepspeed": recipe.deepspeed}
        same = from_tree(tree | how) == from_tree(json.loads(resolved(recipe)))
    except (RecipeError, TypeError):
        same = False
    if not same:
        raise RecipeError(f"{output} was begun with another recipe; resume with {path}, or choose another folder")


def resolved(recipe: Recipe) -> str:
    """The text of recipe.json."""
    return json.dumps(to_tree(recipe), indent=2)


def replace_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    fsync(unfinished)
    unfinished.replace(path)


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path, output: Path) -> Iterator[None]:
    """A full disk, or whatever else keeps a file from being written, as one line.

    Raises:
        CheckpointError: says which checkpoint is still whole.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        newest = newest_checkpoint(output)
        kept = f"the last checkpoint is intact in {newest}" if newest else "there is no checkpoint yet"
        raise CheckpointError(
            f"{path} could not be written ({_reason(error)}); {kept}; make room and go on with --resume"
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """A file of the run that is missing or damaged, as one line."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}); {REPAIR}") from error


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run; unfinished ones have other names."""
    return max(checkpoints(output), key=steps_of, default=None)


def checkpoints(output: Path) -> list[Path]:
    return [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{7,}", path.name)]


def steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def read_state(folder: Path, recipe: Recipe) -> tuple[int, int]:
    """The stage and the step after which a checkpoint was written.

    Raises:
        CheckpointError: state.json is missing or damaged, or the recipe has no such stage or step.
    """
    path = folder / "state.json"
    with reading(path):
        state = json.loads(path.read_text(encoding="utf-8"))
    stage, step = (state.get(key) if isinstance(state, dict) else None for key in ("stage", "step"))
    if type(stage) is not int or type(step) is not int:
        raise CheckpointError(f"{path} holds no whole numbers 'stage' and 'step'; {REPAIR}")
    count = len(recipe.stages)
    if not 0 <= stage < count:
        raise CheckpointError(f"{path}: stage is {stage}; the recipe has stages 0 to {count - 1}; {REPAIR}")
    steps = recipe.stages[stage].steps
    if not 1 <= step <= steps:
        name = recipe.stages[stage].name
        raise CheckpointError(f"{path}: step is {step}; stage {name!r} has steps 1 to {steps}; {REPAIR}")
    return stage, step


def read_losses(folder: Path) -> list[float]:
    """The losses of the steps before a checkpoint that no line of the log tells yet.

    Raises:
        CheckpointError: state.json is missing or damaged.
    """
    path = folder / "state.json"
    with reading(path):
        losses = json.loads(path.read_text(encoding="utf-8")).get("losses")
    if not isinstance(losses, list) or not all(isinstance(loss, float) for loss in losses):
        raise CheckpointError(f"{path} holds no list of numbers 'losses'; {REPAIR}")
    return losses


def trim_log(path: Path, recipe: Recipe, begin: tuple[int, int]) -> None:
    """Drop the lines of steps that will be taken again, and a last line that was cut short."""
    if not path.exists():
        return
    order = {stage.name: number for number, stage in enumerate(recipe.stages)}
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            line: Any = json.loads(text)
            if (order.get(line["stage"], -1), int(line["step"])) <= begin:
                kept.append(text + "\n")
    replace_text(path, "".join(kept))


def _reason(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
