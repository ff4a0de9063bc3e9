"""The log of a run while it trains: log.jsonl, TensorBoard and W&B where they are wanted, and the time left."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.errors import MissingExtraError
from longview.train.distributed import processes
from longview.train.recipe import Recipe
from longview.train.report.weights_and_biases import WandbRun
from longview.train.saved.folder import writing
from longview.wording import counted

LOG, EVENTS = "log.jsonl", "tensorboard"
LOG_EVERY = 10  # steps
COUNTED = ("samples", "tokens", "pictures")
"""Notes that count what a step has processed; the log has them by the second."""


class Journal:
    """The log of one run.

    Args:
        costs: What a step of each stage takes, in units of any kind; None: not known, so that all steps count the same.
        tensorboard: Write events, too, under `tensorboard/`, with the steps of all stages counted through.
        wandb: Send the same to Weights & Biases.
        deadline: When the run is to end at the latest, by `time.monotonic`.
    """

    def __init__(
        self,
        output: Path,
        recipe: Recipe,
        costs: Sequence[float | None] = (),
        tensorboard: bool = False,
        wandb: bool = False,
        deadline: float | None = None,
    ) -> None:
        self._output, self._deadline = output, deadline
        self._names = [stage.name for stage in recipe.stages]
        self._steps = [stage.steps for stage in recipe.stages]
        known = [cost for cost in costs if cost]
        self._costs = known if len(known) == len(self._steps) else [1.0] * len(self._steps)
        self._wants_events = tensorboard and processes.is_first()
        self._events: Any = None
        self._wandb = WandbRun(output, recipe) if wandb and processes.is_first() else None
        self.losses: list[float] = []
        """Of the steps that are in no line yet; they are part of a run's state."""

    def begin(self, stage: int, step: int) -> None:
        """A stage begins, or goes on, after `step` steps; later events, of a run that was killed, are dropped."""
        if self._wants_events and self._events is None:
            self._events = _writer(self._output / EVENTS, self._done(stage, step) + 1)
        self._began = step, time.monotonic()
        self._counts, self._since = Counter[str](), time.monotonic()

    def step(
        self, stage: int, step: int, loss: float, norm: float, rate: float, notes: Mapping[str, Any], over: bool = False
    ) -> str:
        """Log a step, the `step`-th of its stage, from 1; returns a text for the progress bar.

        Args:
            notes: Of the objective.
            over: The stage ends with it, whatever its steps.

        Raises:
            CheckpointError: the disk is full.
        """
        self.losses.append(loss)
        self._counts.update({what: notes[what] for what in COUNTED if what in notes})
        elapsed = time.monotonic() - self._since
        mean = sum(self.losses) / len(self.losses)
        speeds = {f"{what}_s": round(count / elapsed, 2) for what, count in self._counts.items()}
        text = [f"loss {mean:.3f}", *(f"{speeds[f'{what}_s']:,.0f} {what}/s" for what in COUNTED[1:] if what in notes)]
        if "validation" in notes:
            text.append(f"validation {notes['validation']:.3f}")
        if step < self._steps[stage]:
            text.append(f"{clock(self._left(stage, step))} left")
        if over or self.is_due(stage, step, notes):
            line = {"stage": self._names[stage], "step": step, "loss": round(mean, 4), "norm": round(norm, 3)}
            line |= {"rate": round(rate, 7), **speeds, "time": round(time.time()), **notes}
            if processes.is_first():
                with writing(self._output / LOG, self._output):
                    self._write(line, self._done(stage, step))
            self.losses.clear()
            self._counts, self._since = Counter(), time.monotonic()
        return "  ".join(text)

    def is_due(self, stage: int, step: int, notes: Mapping[str, Any]) -> bool:
        """Whether the log has a line of a step."""
        return step % LOG_EVERY == 0 or step == self._steps[stage] or "validation" in notes

    def _write(self, line: Mapping[str, Any], done: int) -> None:
        with (self._output / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        without = {"step", "time", *COUNTED}
        numbers = {n: value for n, value in line.items() if isinstance(value, (int, float)) and n not in without}
        if self._wandb is not None:
            self._wandb.log(numbers, done)
        if self._events is None:
            return
        for name, value in numbers.items():
            self._events.add_scalar(name, value, done, walltime=line["time"])
        self._events.flush()

    def _done(self, stage: int, step: int) -> int:
        """Steps of all stages until one."""
        return sum(self._steps[:stage]) + step

    def _left(self, stage: int, step: int) -> float:
        """Seconds until the end of the whole run, by the pace of this stage.

        A step of a later stage is taken to last as much longer than one of this stage as it costs more.
        """
        before, since = self._began
        pace = (time.monotonic() - since) / (step - before)
        later = sum(
            steps * cost for steps, cost in zip(self._steps[stage + 1 :], self._costs[stage + 1 :], strict=True)
        )
        left = pace * (self._steps[stage] - step + later / self._costs[stage])
        return left if self._deadline is None else max(0.0, min(left, self._deadline - time.monotonic()))

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()


def check_tensorboard() -> None:
    """
    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "tensorboard") from error


def _writer(folder: Path, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def clock(seconds: float) -> str:
    """Seconds for people: 0:02:05, 3 days 4:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    lead = f"{counted(days, 'day')} " if days else ""
    return f"{lead}{hours}:{minutes:02d}:{rest:02d}"
