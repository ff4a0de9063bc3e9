"""Files of a user's conversations as one stream of samples: which row stands where, and which could not be shown.

Nothing is drawn while training goes on: the row at each position of each epoch follows from the recipe's seed, so a
resumed run sees what an unbroken one would have. Every row is read and checked once, before the first step.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longview.errors import RecipeError
from longview.train.folder import fsync, replace_text, writing
from longview.train.recipe import DatasetPart
from longview.train.rows import Example, read_row

GRACE = 100
"""The share of broken samples is taken of so many at least, so that the first one does not end a run."""


class Place(NamedTuple):
    """A row of a file, as a user finds it."""

    path: Path
    unit: str  # line, or row of a JSON list
    number: int  # from 1

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


class Dataset:
    """The rows of one file, or as many of them as its name says; each is checked on opening.

    Raises:
        RecipeError: the file cannot be read or is empty, or a row does not add up; names its line.
    """

    def __init__(self, part: DatasetPart, seed: int, rejected: bool = False) -> None:
        """Args:
        rejected: Whether the rows are to hold rejected answers; else they must not.
        """
        name, wanted = split_count(part.path)
        self.path = Path(name).expanduser()
        self._folder = Path(part.folder).expanduser() if part.folder is not None else self.path.parent
        self._ignore = part.ignore
        self._rows: list[Any] = []
        self._offsets = np.zeros(0, np.int64)
        self._numbers = np.zeros(0, np.int64)
        try:
            with self.path.open("rb") as file:
                self.digest = _sha256(file)
                file.seek(0)
                self._is_list = file.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
                file.seek(0)
                if self._is_list:
                    self._rows = json.loads(file.read().decode("utf-8-sig"))
                else:
                    self._index(file)
        except OSError as error:
            raise RecipeError(
                f"dataset {self.path} cannot be read ({error.strerror}); give a JSON or JSONL file"
            ) from error
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"dataset {self.path} is not JSON: {' '.join(str(error).split())[:200]}") from error
        held = len(self._rows) if self._is_list else len(self._offsets)
        if not held:
            raise RecipeError(f"dataset {self.path} is empty; give a file with one row or more")
        if wanted > held:
            raise RecipeError(f"dataset {part.path} asks for {wanted} rows, and the file holds {held}; ask for fewer")
        chosen = random.Random(f"{seed} {part.path}").sample(range(held), wanted) if wanted else range(held)
        self._chosen = np.array(sorted(chosen), np.int64)
        for number in range(len(self)):
            if (self[number].rejected is not None) != rejected:
                raise RecipeError(
                    f"{self.place(number)}: "
                    + ("lacks a rejected_response, which objective preference learns from" if rejected else
                       "holds a rejected answer, which objective supervised does not learn from; use preference, or "
                       "name the column under ignore")
                )  # fmt: skip

    def _index(self, file: Any) -> None:
        """Where each line begins that holds something, so that a file need not fit into memory."""
        offsets, numbers, begin = [], [], 0
        for number, line in enumerate(file, 1):
            if line.strip():
                offsets.append(begin)
                numbers.append(number)
            begin += len(line)
        self._offsets, self._numbers = np.array(offsets, np.int64), np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._chosen)

    def place(self, number: int) -> Place:
        row = self._chosen[number]
        return Place(self.path, *(("row", int(row) + 1) if self._is_list else ("line", int(self._numbers[row]))))

    def __getitem__(self, number: int) -> Example:
        try:
            return read_row(self._row(number), self._folder, self._ignore)
        except RecipeError as error:
            raise RecipeError(f"{self.place(number)}: {error}") from error

    def _row(self, number: int) -> Any:
        if self._is_list:
            return self._rows[self._chosen[number]]
        with self.path.open("rb") as file:
            file.seek(self._offsets[self._chosen[number]])
            line = file.readline()
        try:
            return json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"not JSON ({' '.join(str(error).split())[:200]})") from error


def split_count(name: str) -> tuple[str, int]:
    """`rows.jsonl#2000` → the file's name, and how many of its rows; 0: all."""
    found = re.fullmatch(r"(.+)#([0-9]{1,12})", name)
    if not found:
        return name, 0
    if not int(found[2]):
        raise RecipeError(f"dataset {name} asks for no rows; write #1 or more, or leave it out")
    return found[1], int(found[2])


class Mixture:
    """Datasets as one endless stream, epoch after epoch, each in an order of its own.

    An epoch takes weight · rows of each dataset; what a fraction leaves out comes in the epochs after it.
    """

    def __init__(self, parts: Sequence[DatasetPart], seed: int, stage: str, rejected: bool = False) -> None:
        if not parts:
            raise RecipeError(f"stages.{stage}.datasets is empty; name one file or more")
        self.datasets = [Dataset(part, seed, rejected) for part in parts]
        self._stream = f"{seed} {stage}"
        self._shares = [max(1, round(part.weight * len(data))) for part, data in zip(parts, self.datasets, strict=True)]
        self._ends = list(itertools.accumulate(self._shares))
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._pass = lru_cache(maxsize=2 * len(parts) + 2)(self._draw_pass)

    @property
    def epoch(self) -> int:
        """Samples of one epoch."""
        return self._ends[-1]

    def at(self, position: int) -> tuple[Dataset, int]:
        """The sample at a position of the stream: its dataset, and its number there."""
        epoch, within = divmod(position, self.epoch)
        slot = int(self._order(epoch)[within])
        number = bisect.bisect_right(self._ends, slot)
        data, share = self.datasets[number], self._shares[number]
        turn = epoch * share + slot - (self._ends[number] - share)  # how many of this dataset came before
        return data, int(self._pass(number, turn // len(data))[turn % len(data)])

    def digests(self) -> dict[str, str]:
        return {str(data.path): data.digest for data in self.datasets}

    def _draw_order(self, epoch: int) -> np.ndarray:
        return _shuffled(self.epoch, f"{self._stream} epoch {epoch}")

    def _draw_pass(self, number: int, passed: int) -> np.ndarray:
        return _shuffled(len(self.datasets[number]), f"{self._stream} dataset {number} pass {passed}")


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _shuffled(count: int, stream: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)


class Quarantine:
    """Samples that could not be shown: each is told in a report, and too many of them end the run.

    Args:
        path: The report: JSON lines with stage, step, where the row stands, and what was wrong.
        share: The most that may be broken, of the samples drawn so far.
    """

    def __init__(self, path: Path, share: float, stage: str, number: int) -> None:
        self.path, self.share, self.stage = path, share, stage
        self.broken = sum(line["stage"] == number for line in _lines(path))
        self._number = number

    def add(self, step: int, drawn: int, place: Place, reason: str) -> None:
        """Write a sample down.

        Args:
            drawn: Samples of the stage so far.

        Raises:
            RecipeError: more are broken than the recipe allows.
        """
        line = {"stage": self._number, "step": step, "file": str(place.path), place.unit: place.number}
        with writing(self.path, self.path.parent), self.path.open("a", encoding="utf-8") as report:
            report.write(json.dumps(line | {"reason": reason}, ensure_ascii=False) + "\n")
        self.broken += 1
        if self.broken > self.share * max(drawn, GRACE):
            fsync(self.path)
            raise RecipeError(
                f"{self.broken} of {drawn} samples are broken, more than stages.{self.stage}.quarantine={self.share:g} "
                f"allows; the last is {place}: {reason}; {self.path} lists them: mend the data, or allow more"
            )


def trim_report(path: Path, begin: tuple[int, int]) -> None:
    """Drop what will be told again: lines of steps that are taken again, and a last line that was cut short."""
    if path.exists():
        kept = [json.dumps(x, ensure_ascii=False) + "\n" for x in _lines(path) if (x["stage"], x["step"]) < begin]
        replace_text(path, "".join(kept))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # cut short when the machine went down
            continue
        if isinstance(line, dict) and isinstance(line.get("stage"), int) and isinstance(line.get("step"), int):
            yield line
