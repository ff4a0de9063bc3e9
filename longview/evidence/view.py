"""What a page and a plot show of one answer: its evidence as plain data, its pictures, and the axes that they stand on.

Report.as_dict() ── View ─┬─ PictureView     one picture: its share, what the check says of it
                          └─ Axis            one video, or all pictures: shares and changes, with relevance
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from longview.curves import Curve, Pick, format_time
from longview.evidence.sentences import CLEARLY, signed

MOST_DETAILED = 24
"""Pictures, those with the highest shares, that are shown large; the others are shown small."""
MOST_TOKENS = 400
"""Tokens of an answer whose own maps are shown, the first ones."""
CAUTION = (
    "Attention is not an explanation by itself: it says where the model looked, and the deletion check, what the "
    "answer loses without that."
)
STOPS = ((255, 241, 168), (253, 141, 60), (189, 0, 38))
"""Colours of a map's cells, from the lowest to the highest."""


def ramp() -> np.ndarray:
    """Red, green, blue and opacity of 256 values of a cell, from 0 to its scale's highest: (256, 4), uint8."""
    values = np.linspace(0, 1, 256)
    colours = [np.interp(values, np.linspace(0, 1, len(STOPS)), channel) for channel in zip(*STOPS, strict=True)]
    return np.stack([*colours, 255 * 0.85 * values**0.7], -1).round().astype(np.uint8)


@dataclass(frozen=True)
class PictureView:
    """One picture of the evidence.

    Args:
        data: `PictureEvidence.as_dict()`.
        rank: From 1, by share.
        change: Of the answer's log-probability without it, in nats; None: it was not left out alone.
    """

    data: Mapping[str, Any]
    rank: int
    change: float | None

    @property
    def number(self) -> int:
        return self.data["number"]

    @property
    def label(self) -> str:
        """What it is, beside its number: the time of a frame, or the name."""
        if self.data["kind"] == "image":
            return self.data["name"]
        seconds = self.data.get("seconds")
        return f"frame {self.data['index'] + 1}" if seconds is None else format_time(seconds)

    @property
    def shares(self) -> list[float]:
        """The mean over the tokens, then that of each token that is shown."""
        return [self.data["share"], *self.data["shares"][:MOST_TOKENS]]

    @property
    def maps(self) -> np.ndarray:
        """The mean over the tokens, then that of each token that is shown: (1 + A, rows, columns)."""
        mean, each = np.array(self.data["map"], np.float32), self.data["token_maps"][:MOST_TOKENS]
        every = np.concatenate([mean[None], np.array(each, np.float32).reshape(-1, *mean.shape)])
        return every * self.data["map_unit"]

    @property
    def said(self) -> str:
        """What the deletion check says of it, in words."""
        if self.change is None:
            return "it was not left out alone"
        return f"{signed(self.change)} nats without it: the answer {_becomes(self.change)}"

    def packed(self, words: bool) -> dict[str, Any]:
        """What the page's program draws. A map is bytes in units of its own.

        Args:
            words: With the visual words, where there are some.
        """
        maps = self.maps
        units = np.maximum(maps.max((1, 2), initial=0) / 255, 1e-12)
        cells = (maps / units[:, None, None]).round().astype(np.uint8)
        found = {
            "number": self.number,
            "size": [self.data["width"], self.data["height"]],
            "cells": list(cells.shape[1:]),
            "units": [float(f"{unit:.4g}") for unit in units],
            "maps": base64.b64encode(cells.tobytes()).decode(),
            "shares": self.shares,
        }
        if words and "words" in self.data:
            grids = [
                [*(round(grid[side], 2) for side in ("left", "upper", "right", "lower")), grid["rows"], grid["columns"]]
                + [round(side, 2) for side in grid["shown"]]
                for grid in self.data["grids"]
            ]
            found |= {"grids": grids, "words": self.data["words"]}
        if "mined" in self.data:
            found["mined"] = [{"box": each["box"], "weights": each["weights"]} for each in self.data["mined"]]
        return found


def _becomes(change: float) -> str:
    if change <= -CLEARLY:
        return "becomes clearly less likely"
    return "becomes clearly more likely" if change >= CLEARLY else "hardly changes"


@dataclass(frozen=True)
class Axis:
    """Pictures beside one another: the frames of a video over its time, or the pictures in their order.

    Args:
        curve: Of the relevance, its picks the chosen frames; without values where nothing was compared.
    """

    title: str
    pictures: Sequence[PictureView]
    curve: Curve

    def place(self, position: float) -> float:
        """Where a position is, from 0 to 1."""
        begin, end = self.curve.span
        return (position - begin) / (end - begin)

    @property
    def places(self) -> list[float]:
        return [self.place(position_of(picture)) for picture in self.pictures]


def position_of(picture: PictureView) -> float:
    if picture.data["kind"] == "image":
        return picture.number - 1.0
    seconds = picture.data.get("seconds")
    return float(picture.data["index"]) if seconds is None else seconds


@dataclass(frozen=True)
class View:
    """One answer, to be shown.

    Args:
        data: As `Report.as_dict()` has it.
        jpegs: By the number of the picture; one may be missing.
    """

    data: Mapping[str, Any]
    jpegs: Mapping[int, bytes]

    @property
    def evidence(self) -> Mapping[str, Any]:
        return self.data["evidence"]

    @property
    def deletion(self) -> Mapping[str, Any] | None:
        return self.data["deletion"]

    @property
    def tokens(self) -> list[str]:
        """Those whose own maps are shown."""
        return self.evidence["tokens"][:MOST_TOKENS]

    @property
    def sentences(self) -> Sequence[str]:
        """What the deletion check says; all but the first are where it contradicts the map."""
        return self.deletion["sentences"] if self.deletion else ()

    @property
    def model(self) -> str:
        return self.data["model"]

    @property
    def label(self) -> str:
        """The model, and how it chose frames of videos."""
        chosen = self.data["settings"].get("media", {})
        kinds = {picture.data["kind"] for picture in self.pictures}
        parts = [self.model]
        if "video" in kinds and "select" in chosen:
            parts.append(f"frames chosen by {chosen['select']}")
        return " · ".join(parts)

    @cached_property
    def pictures(self) -> list[PictureView]:
        alone = self.deletion["alone"] if self.deletion else []
        ranks = {number: rank for rank, number in enumerate(self.evidence["ranked"], 1)}
        return [
            PictureView(each, ranks[each["number"]], alone[place] if alone else None)
            for place, each in enumerate(self.evidence["pictures"])
        ]

    @property
    def detailed(self) -> list[PictureView]:
        """Those that are shown large, in their order."""
        return [picture for picture in self.pictures if picture.rank <= MOST_DETAILED]

    @property
    def others(self) -> list[PictureView]:
        """Those that are shown small, the highest share first."""
        return sorted((each for each in self.pictures if each.rank > MOST_DETAILED), key=lambda each: each.rank)

    @property
    def at_random(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the change without one picture at random."""
        steps = self.deletion["steps"] if self.deletion else []
        return (steps[0]["random_mean"], steps[0]["random_deviation"]) if steps else None

    @property
    def axes(self) -> list[Axis]:
        """Of each video, and of the pictures; none of a single picture."""
        found, images = [], [each for each in self.pictures if each.data["kind"] == "image"]
        if len(images) > 1:
            found.append(Axis("pictures", images, _curve(images, None)))
        relevance = {each["medium"]: each for each in self.evidence.get("relevance", ())}
        videos: dict[int, list[PictureView]] = {}
        for picture in self.pictures:
            if picture.data["kind"] == "video":
                videos.setdefault(picture.data["medium"], []).append(picture)
        for medium, frames in videos.items():
            found.append(Axis(frames[0].data["name"], frames, _curve(frames, relevance.get(medium))))
        return found


def axes_of(views: Sequence[View]) -> list[list[Axis]]:
    """The axes of each answer; those of the same video have the same range."""
    found, places = [view.axes for view in views], dict[str, list[float]]()
    for axis in (axis for axes in found for axis in axes):
        places.setdefault(axis.title, []).extend(axis.curve.span)
    return [
        [replace(axis, curve=replace(axis.curve, others=[*axis.curve.others, *places[axis.title]])) for axis in axes]
        for axes in found
    ]


def _curve(pictures: Sequence[PictureView], relevance: Mapping[str, Any] | None) -> Curve:
    timed = pictures[0].data.get("seconds") is not None
    positions, values = [], []
    if relevance is not None:
        positions = [float(each) for each in relevance["seconds"] or relevance["indices"]]
        values = relevance["values"]
    known = dict(zip(relevance["indices"], values, strict=True)) if relevance is not None else {}
    picks = [
        Pick(position_of(each), known[each.data["index"]], each.label)
        for each in pictures
        if each.data["index"] in known
    ]
    return Curve(positions, values, picks, timed, [position_of(each) for each in pictures])
