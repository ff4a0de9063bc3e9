"""The folder of a run: its files, its lock, and errors of reading and writing as one line.

output/
  .lock                   locked by the process that trains here
  recipe.json             the resolved recipe
  log.jsonl               a line every few steps
  sessions.jsonl          when and where it was begun and resumed
  tensorboard/            the same as the log, where wanted
  datasets.json           which files it learns from, with their SHA-256
  init_from.json          which files its parts were initialised from, with their SHA-256
  quarantine.jsonl        samples of them that could not be opened, each with its reason
  checkpoint-<steps>/     the newest complete state, from which --resume continues bit for bit (in fp32); manifest.py;
                          with validation beside it the best one of the stage
  .unfinished/            a checkpoint that is being written; ignored
  after/<stage>/          the model as it was after a stage that keeps it
  model/                  the trained model as a checkpoint folder, at the end
  adapter/                in its place, where an adapter was trained
  answers.json            answers to some questions before and after the run
  report.html             all of it on one page
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from longview.errors import CheckpointError, RecipeError
from longview.files import COMPLETE, replace_text, write_failure
from longview.train.recipe import Recipe, from_tree, to_tree

RECIPE = "recipe.json"
REPAIR = "restore the file from a copy, or train anew in another folder"


@contextlib.contextmanager
def lock_folder(output: Path, resume: bool) -> Iterator[None]:
    """Keep other runs out of the folder; the system releases the lock when the process ends, however it ends.

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
    path = output / RECIPE
    if not resume:
        if path.exists():
            raise RecipeError(f"{output} already holds a run; add --resume to continue it, or choose another folder")
        return
    # Keys may have been added since, with defaults; and a run may go on in another number of processes.
    begun = dataclasses.replace(read_recipe(output), parallel=recipe.parallel, deepspeed=recipe.deepspeed)
    if begun != from_tree(json.loads(recipe_text(recipe))):
        raise RecipeError(f"{output} was begun with another recipe; resume with {path}, or choose another folder")


def read_recipe(output: Path) -> Recipe:
    """The resolved recipe of a run.

    Raises:
        CheckpointError: it is missing or damaged.
        RecipeError: it was written by a version that spelt recipes in another way; says how they are spelt now.
    """
    path = output / RECIPE
    with reading(path):
        tree = json.loads(path.read_text(encoding="utf-8"))
    try:
        return from_tree(tree)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def recipe_text(recipe: Recipe) -> str:
    """The text of recipe.json."""
    return json.dumps(to_tree(recipe), indent=2)


@contextlib.contextmanager
def writing(path: Path, output: Path) -> Iterator[None]:
    """Errors of writing a file, such as a full disk, as one line.

    Raises:
        CheckpointError: says which checkpoint is still whole.
    """
    try:
        yield
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        newest = newest_checkpoint(output)
        kept = f"the last checkpoint is intact in {newest}" if newest else "there is no checkpoint yet"
        raise CheckpointError(
            f"{path} could not be written ({reason}); {kept}; make room and go on with --resume"
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of reading a file of the run, missing or damaged, as one line."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}); {REPAIR}") from error


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run; unfinished ones have other names."""
    return max(checkpoints(output), key=steps_of, default=None)


def checkpoint_after(output: Path, recipe: Recipe, stage: int, step: int) -> Path:
    """The checkpoint that is written after a step of a stage."""
    return output / f"checkpoint-{sum(each.steps for each in recipe.stages[:stage]) + step:07d}"


def exported(output: Path) -> Path | None:
    """The folder of the model or the adapter that a run has left behind, complete."""
    made = (output / kind / name for kind in ("model", "adapter") for name in COMPLETE)
    return next((path.parent for path in made if path.exists()), None)


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
    """The losses of the steps before a checkpoint that are in no line of the log yet.

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
    """Drop the log lines of steps that will be repeated, and a last line that was cut short."""
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
