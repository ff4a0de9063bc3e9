"""What a task is: a dozen fields. The table of all tasks is `longview.eval.tasks.TASKS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from longview.errors import RequestError
from longview.eval.items import Graded, Item, Parse, Protocol, Verdict
from longview.eval.judge import Judging
from longview.eval.readers.files import Form, find_form, numbered
from longview.eval.scoring import ACCURACY, Metric

Grade: TypeAlias = Callable[[Item, Verdict], float]


@dataclass(frozen=True)
class Options:
    """What decides a task's questions beside its files."""

    data: Path | None = None
    seed: int = 0
    per_kind: int | None = None
    groups: tuple[str, ...] = ()
    shown: str = "shown"
    source: str | None = None
    """Distractor resistance: the file that questions and distractors are drawn from, or "world"."""
    pictures: tuple[int, ...] = ()
    """Distractor resistance: numbers of pictures in a prompt."""

    def facts(self) -> dict[str, Any]:
        """Those that are not the default."""
        usual = Options()
        given = {name: getattr(self, name) for name in ("seed", "per_kind", "groups", "shown", "source", "pictures")}
        return {name: value for name, value in given.items() if value != getattr(usual, name)}


def same(item: Item, verdict: Verdict) -> float:
    return float(verdict.value == item.answer)


@dataclass(frozen=True)
class Task:
    """One benchmark: where its questions come from, how they are asked, what an answer means, how it counts."""

    name: str
    title: str
    about: str
    """What it asks, and what counts, in a sentence or two."""
    protocols: Mapping[str, Protocol]
    """How each family's authors ask it; the first is for all others."""
    parse: Parse
    citation: str
    forms: Sequence[Form] = ()
    make: Callable[[Options], Iterable[Item]] | None = None
    """Questions that need no files."""
    get: str = ""
    """Where its files come from."""
    expand: Callable[[Iterable[Item]], list[Item]] = list
    grade: Grade = same
    metric: Metric = ACCURACY
    judging: Judging | None = None
    """How another model, behind an OpenAI-compatible server, judges answers; None: rules alone."""
    ran: bool = False
    """Whether it ever ran here on the benchmark's real files."""
    checked: str = ""
    """Of which of its sources that is so, where they differ."""
    curve: str = ""
    """The label whose values, whole numbers, the score is drawn against; a limit counts questions of each."""
    shows: Literal["image", "video"] = "image"
    pictures: int = 1
    """Media of a question, in the example of its prompt."""
    free: bool = False
    """Whether its questions have no options."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """What else an item has, in that example."""

    def items(self, options: Options) -> list[Item]:
        """Its questions.

        Raises:
            LongviewError: its files are not there, or damaged.
        """
        return self._checked(self.expand(self._read(options)), options)

    def unexpanded(self, options: Options) -> list[Item]:
        """Its questions as the files have them, before options are turned.

        Raises:
            LongviewError: its files are not there, or damaged.
        """
        return self._checked(self._read(options), options)

    def _read(self, options: Options) -> Iterable[Item]:
        if self.make is not None:
            return self.make(options)
        form, files = find_form(self.name, self.forms, options.data)
        return form.items(files)

    def _checked(self, items: Iterable[Item], options: Options) -> list[Item]:
        found = list(numbered(items))
        if not found:
            raise RequestError(f"{self.name}: there are no questions in {options.data or 'its files'}; check the file")
        return found

    def protocol(self, family: str | None, wanted: str | None = None, model: str = "") -> tuple[str, Protocol]:
        """The protocol that is asked for by name, that of a model's family and size, or else the first.

        Sizes count for models of the protocol's own family alone.

        Args:
            model: Its name, which tells its size: AIDC-AI/Ovis2-8B.

        Raises:
            RequestError: there is none of that name.
        """
        if wanted is not None and wanted not in self.protocols:
            raise RequestError(f"{self.name} has no protocol {wanted!r}; there are {', '.join(self.protocols)}")
        usual = family if family is not None and family in self.protocols else next(iter(self.protocols))
        size = re.search(r"(?<![A-Za-z0-9.])\d+B(?![A-Za-z0-9])", model.rstrip("/").rpartition("/")[2])
        of_size = [name for name, each in self.protocols.items() if size and size[0] in each.sizes]
        of_family = next((name for name in of_size if name.partition("-")[0] == family), usual)
        name = wanted or of_family
        return name, self.protocols[name]

    def graded(self, item: Item, answer: str | None, protocol: Protocol, judged: str | None = None) -> Graded:
        """What an answer is worth; None, a question that failed, is worth nothing.

        Args:
            judged: What a judge replied about it.
        """
        if answer is None:
            return Graded(item, Verdict(None, False), 0.0)
        if judged is not None and self.judging is not None:
            verdict = self.judging.read(item, judged)
            if verdict.understood or self.judging.required:
                return Graded(item, verdict, self.grade(item, verdict))
        begins = answer.lower().find(protocol.cut_behind) if protocol.cut_behind else -1
        if begins >= 0:
            answer = answer[begins + len(protocol.cut_behind) :].lstrip(":").strip()
        verdict = (protocol.parse or self.parse)(item, answer)
        return Graded(item, verdict, self.grade(item, verdict))
