"""Examples that work at once: files of the package, and questions that the embedded models answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longview.shipped import folder


@dataclass(frozen=True)
class Example:
    """A question about files of `examples/`."""

    title: str
    question: str
    files: Sequence[str]
    picture: str
    """What stands for it, beside this file."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        return [folder("examples") / name for name in self.files]


EXAMPLES = (
    Example("A clip", "Which way does the triangle move?", ["clip.mp4"], "clip.jpg"),
    Example("A picture", "What colour is the circle?", ["shapes.jpg"], "shapes.jpg"),
    Example("Two pictures", "In image 2, what colour is the triangle?", ["shapes.jpg", "pair.webp"], "pair.jpg"),
    Example("A film of four minutes", "Where is the heart?", ["film.mp4"], "film.jpg", {"select": "mdp3", "frames": 4}),
)


def available() -> list[Example]:
    """Those whose files are installed."""
    return [example for example in EXAMPLES if all(path.is_file() for path in example.paths)]
