"""How the authors put questions about videos; `longview.eval.prompts` has those about pictures.

`owl3_…` as in mPLUG-Owl3's evaluation programs, `ovis2_…` as VLMEvalKit asks Ovis2.
"""

from __future__ import annotations

from collections.abc import Sequence

from longview.eval.items import Item, Prompt
from longview.eval.prompts import LETTER, OWL3_LETTER, Parts, lettered, on_lines
from longview.eval.readers.subtitles import Subtitle
from longview.media import open_media
from longview.requests import MediaOptions


def owl3_video(item: Item) -> Parts:
    """NextQA, VideoMME."""
    return [*item.shown, f"\nQuestion: {item.question}\nOptions: {lettered(item)}\n{OWL3_LETTER}"]


def owl3_longvideobench(item: Item) -> Parts:
    """LongVideoBench."""
    return ["Question: ", *item.shown, f"\n{item.question}\nOptions: {lettered(item)}\n{OWL3_LETTER}"]


def owl3_mvbench(item: Item) -> Parts:
    """MVBench."""
    return [*item.shown, f"\nQuestion: {item.question}\nOptions:\n{lettered(item)}\n{OWL3_LETTER}"]


def ovis2_choice(item: Item) -> Parts:
    """LongVideoBench."""
    return [*on_lines(item), f"{item.question}\n{lettered(item)}\n{LETTER}"]


_WATCH_EVENTS = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)
_WATCH_DETAIL = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)


def _ovis2_best(item: Item, task: str) -> str:
    options = lettered(item, "({}) {}")
    return f"{task}\nQuestion: {item.question}\nOptions:\n{options}\nOnly give the best option."


def ovis2_mvbench(item: Item) -> Parts:
    """MVBench; how the answer is to begin stands at the end of the question."""
    return [*on_lines(item), f"{_ovis2_best(item, _WATCH_EVENTS)}\nBest option:("]


def ovis2_mlvu(item: Item) -> Parts:
    """MLVU."""
    return [*on_lines(item), _ovis2_best(item, _WATCH_DETAIL)]


def ovis2_videomme(item: Item, subtitles: str = " ") -> Parts:
    """VideoMME, with what is said of subtitles."""
    task = "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
    head = f"These are the frames of a video.{subtitles}{task}letter (A, B, C, or D) of the correct option."
    return [*on_lines(item), f"{head}\nQuestion: {item.question}\n{lettered(item)}\nAnswer:"]


def videomme(item: Item) -> Parts:
    """VideoMME's own prompt."""
    return [*on_lines(item), _videomme(item, "the video")]


def videomme_subtitled(options: MediaOptions) -> Prompt:
    """VideoMME's own prompt with the subtitles that are on the screen in the frames that are shown."""

    def prompt(item: Item) -> Parts:
        lines = subtitles_at(item, options)
        head = f"This video's subtitles are listed below:\n{lines}\n" if lines else ""
        return [*on_lines(item), head + _videomme(item, "the video and the subtitles" if lines else "the video")]

    return prompt


def ovis2_videomme_subtitled(options: MediaOptions) -> Prompt:
    """VideoMME with the subtitles of the frames that are shown, as VLMEvalKit asks it."""

    def prompt(item: Item) -> Parts:
        return ovis2_videomme(item, f" This video's subtitles are listed below:\n{subtitles_at(item, options)}\n")

    return prompt


def subtitles_at(item: Item, options: MediaOptions) -> str:
    """The subtitles that are on the screen in the frames that are shown, each once; "" where there are none."""
    subtitles: Sequence[Subtitle] = item.facts.get("subtitles", lambda: ())()
    if not subtitles:
        return ""
    (medium,) = open_media([item.shown[0].part(media=options)], options, decode=False)
    seconds = [frame.seconds or 0.0 for frame in medium.frames]
    shown = [each.text for each in subtitles if any(each.start <= second < each.end for second in seconds)]
    return "\n".join(dict.fromkeys(shown))


def _videomme(item: Item, by: str) -> str:
    letters = f"{', '.join(item.letters[:-1])}, or {item.letters[-1:]}"
    return (
        f"Select the best answer to the following multiple-choice question based on {by}. Respond with only the letter "
        f"({letters}) of the correct option.\n{item.question}\n{lettered(item)}\nThe best answer is:"
    )
