"""Tasks that need no files: scenes of the synthetic world, which are drawn, rendered and asked about."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval import prompts
from longview.eval.items import Item, Protocol, Shown, Verdict
from longview.eval.tasks.task import Options, Task
from longview.eval.world import GROUPS, Case, case_media, draw_cases, normalise, write_media
from longview.world.scenes import Clip

PER_KIND = 50
"""Questions of each kind, unless told."""
SHOWN = ("shown", "blank", "swapped")


class CaseFiles:
    """The files of a case, rendered when the first of them is read, and kept until all have been."""

    def __init__(self, case: Case, shown: str) -> None:
        self._case, self._shown = case, shown
        self._lock = threading.Lock()
        self._rendered: dict[int, bytes] = {}

    def load(self, number: int) -> bytes:
        """One of them, encoded."""
        with self._lock:
            if number not in self._rendered:
                with tempfile.TemporaryDirectory(prefix="longview-world-") as folder:
                    scenes = case_media(self._case, self._shown)  # type: ignore[arg-type]
                    parts = write_media(scenes, Path(folder), self._case.seed)
                    self._rendered = {n: Path(str(part.source)).read_bytes() for n, part in enumerate(parts)}
            return self._rendered.pop(number)


def world_items(options: Options) -> Iterable[Item]:
    """The questions of `longview.eval.world` as items.

    Raises:
        RequestError: an option is out of range, or names a group that there is not.
    """
    if options.shown not in SHOWN:
        raise RequestError(f"unknown value {options.shown!r} of --shown; expected {', '.join(SHOWN)}")
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        raise RequestError(f"unknown group {unknown[0]!r}; expected {', '.join(GROUPS)}")
    cases = draw_cases(options.seed, options.per_kind or PER_KIND, options.groups or tuple(GROUPS))
    return [case_item(str(number), case, options.shown) for number, case in enumerate(cases)]


def case_item(id: str, case: Case, shown: str = "shown") -> Item:
    """A case as an item."""
    files = CaseFiles(case, shown)

    def of(number: int, scene: Any) -> Shown:
        return Shown("video" if isinstance(scene, Clip) else "image", lambda: files.load(number), f"scene {number + 1}")

    media = tuple(of(number, scene) for number, scene in enumerate(case.media))
    labels = {"group": case.group, "kind": case.question.kind}
    return Item(id, case.question.text, case.question.answer, media, labels=labels)


def said(item: Item, answer: str) -> Verdict:
    """The answer, but for case and a final full stop."""
    text = normalise(answer)
    return Verdict(text, bool(text))


TASKS = (
    Task(
        name="world",
        title="The synthetic world",
        about="Held-out scenes of the world that the embedded models know, as JPEG, PNG and MP4 files; short answers, "
        "exactly right or wrong. --shown blank or swapped shows what can be guessed.",
        protocols={"numbered": Protocol(prompts.numbered, 512)},
        parse=said,
        grade=lambda item, verdict: float(verdict.value == normalise(item.answer)),
        citation="longview/world",
        make=world_items,
        get="nothing: it is drawn",
        ran=True,
        free=True,
    ),
)
