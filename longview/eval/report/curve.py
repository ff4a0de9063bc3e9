"""Accuracy against the number of pictures: points with their intervals, and what guessing gives; PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.errors import MissingExtraError
from longview.figures import new_figure
from longview.files import write_file

FILES = ("curve.png", "curve.svg")


def write_curve(folder: Path, numbers: Mapping[str, Any]) -> list[Path]:
    """curve.png and curve.svg; none where matplotlib is not installed."""
    try:
        for name in FILES:
            write_file(folder / name, drawn(numbers, name.rpartition(".")[2]))
    except MissingExtraError:
        return []
    return [folder / name for name in FILES]


def svg(numbers: Mapping[str, Any]) -> str:
    """The curve for a page; a note where matplotlib is not installed."""
    try:
        text = drawn(numbers, "svg").decode()
    except MissingExtraError as error:
        return f'<p class="faint">{error}</p>'
    return text[text.index("<svg") :]


def drawn(numbers: Mapping[str, Any], form: str) -> bytes:
    """
    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure("a curve", 7.2, 4.4, facecolor="#ffffff")
    axes = figure.add_subplot()
    points = numbers["curve"]
    counts = [point["pictures"] for point in points]
    scores = [point["score"] for point in points]
    below = [point["score"] - point["low"] for point in points]
    above = [point["high"] - point["score"] for point in points]
    label = f"{numbers['model']}: all variants right"
    axes.errorbar(counts, scores, yerr=[below, above], marker="o", capsize=3, color="#3c6e91", label=label)
    axes.plot(counts, [point["each"] for point in points], marker=".", ls=":", color="#7fb3d5", label="each by itself")
    guesses = [point["guessing"] for point in points]
    if None not in guesses:
        axes.plot(counts, guesses, ls="--", color="#e4572e", label="guessing")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    axes.set_xlabel("pictures in the prompt")
    axes.set_ylabel(f"{numbers['metric']}, %")
    axes.set_title(f"{numbers['title']} (95 % intervals)", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    data = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {}
    figure.savefig(data, format=form, dpi=130, metadata=metadata)
    return data.getvalue()
