"""What a deletion check says, in words; and where it contradicts the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longview.answer_evidence import Evidence
from longview.wording import counted

if TYPE_CHECKING:
    from longview.evidence.deletion import Step

CLEARLY = 0.5
"""Nats that an answer loses without what it rests on, at least."""
MOST_NAMED = 4
"""Pictures that one sentence names."""


def sentences_of(
    evidence: Evidence, without_all: float, alone: Sequence[float], steps: Sequence[Step]
) -> tuple[str, ...]:
    """
    Args:
        without_all: Change of the answer's log-probability without any picture.
        alone: Without each picture alone; empty: it was not checked.
    """
    found = [_rests_on(evidence, without_all, alone)] if alone else [_of_all(without_all)]
    if len(alone) > 1:
        found += _against_the_highest(evidence, alone)
    found += [sentence for step in steps if (sentence := _against_the_ranking(step))]
    return tuple(found)


def _rests_on(evidence: Evidence, without_all: float, alone: Sequence[float]) -> str:
    order = sorted(range(len(alone)), key=lambda place: alone[place])
    clear = [place for place in order if alone[place] <= -CLEARLY]
    if len(alone) == 1:
        share = f"{evidence.pictures[0].share:.1%} of the attention is on it"
        rests = "rests on picture 1" if clear else "does not rest on picture 1"
        return f"The answer {rests}: {signed(alone[0])} nats without it; {share}."
    others = [alone[place] for place in order if place not in clear]
    at_most = f", {signed(min(others))} at most without any other" if others else ""
    if len(clear) == 1:
        return f"The answer rests on picture {clear[0] + 1}: {signed(alone[clear[0]])} nats without it{at_most}."
    if clear:
        named = clear[:MOST_NAMED]
        more = f" and {counted(len(clear) - len(named), 'other')}" if len(clear) > len(named) else ""
        numbers, losses = _listed([str(place + 1) for place in named]), _listed([signed(alone[p]) for p in named])
        return f"The answer rests on pictures {numbers}{more}: {losses} nats without each of them{at_most}."
    least = order[0]
    if without_all <= -CLEARLY:
        most = f"{signed(alone[least])} nats at most without one (picture {least + 1})"
        each = most if alone[least] < 0 else "no less likely without any one"
        return f"The answer rests on no picture alone: {each}, {signed(without_all)} without all of them."
    return _of_all(without_all)


def _of_all(without_all: float) -> str:
    if without_all <= -CLEARLY:
        return f"The answer rests on the pictures: {signed(without_all)} nats without all of them."
    return f"The answer does not rest on the pictures: {signed(without_all)} nats without all of them."


def _against_the_highest(evidence: Evidence, alone: Sequence[float]) -> list[str]:
    """Where the picture with most attention is none that the answer rests on, and another is."""
    first = evidence.ranked[0]
    if min(alone) > -CLEARLY or alone[first - 1] <= -CLEARLY:
        return []
    share = evidence.pictures[first - 1].share
    return [
        f"The map says otherwise: picture {first} has most attention ({share:.1%}), and the answer's change without it "
        f"is {signed(alone[first - 1])} nats."
    ]


def _against_the_ranking(step: Step) -> str:
    """Where pictures with much attention matter less than those with little, or than any, which do matter."""
    of_count = f"the {step.count} with" if step.count > 1 else "the picture with"
    if step.lowest <= -CLEARLY and step.highest - step.lowest >= CLEARLY:
        return (
            f"The map ranks otherwise: {signed(step.highest)} nats without {of_count} most attention, "
            f"{signed(step.lowest)} without {of_count} least."
        )
    if step.mean <= -CLEARLY and step.highest - step.mean >= max(CLEARLY, step.deviation):
        return (
            f"The map ranks no better than chance: {signed(step.highest)} nats without {of_count} most attention, "
            f"{signed(step.mean)} ± {step.deviation:.1f} without {step.count} at random."
        )
    return ""


def signed(nats: float) -> str:
    """−4.1, +0.2, 0.0."""
    text = f"{abs(nats):.1f}"
    return text if text == "0.0" else f"{'−' if nats < 0 else '+'}{text}"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
