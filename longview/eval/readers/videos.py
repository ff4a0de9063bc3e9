"""Multiple choices about videos.

VideoMME    videomme/test-*.parquet, data/ID.mp4, subtitle/ID.srt; or VLMEvalKit's Video-MME.tsv
MVBench     json/TASK.json, video/SOURCE/…; or VLMEvalKit's MVBench.tsv beside video/
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import LETTERS, Item, Shown, clip
from longview.eval.readers.columns import Fields, rows_of
from longview.eval.readers.files import Found
from longview.eval.readers.subtitles import read_subtitles
from longview.eval.readers.tables import Row, filled, listed, listed_options, read_json, read_tsv
from longview.eval.readers.truths import by_letter, by_words

SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


def unlettered(options: Sequence[Any]) -> tuple[str, ...]:
    """Options without the letters that they begin with: "A. Apples." → "Apples."."""
    found = [str(option).strip() for option in options]
    marked = [re.match(rf"\(?{letter}[.):]\s*", text) for letter, text in zip(LETTERS, found, strict=False)]
    if not all(marked):
        return tuple(found)
    return tuple(text[mark.end() :] for text, mark in zip(found, marked, strict=True) if mark)


def find_video(where: str, *stems: Path) -> Path:
    """The first that exists, of paths with or without a suffix.

    Raises:
        RequestError: none does; names the first.
    """
    for stem in stems:
        for path in (stem, *(stem.with_name(stem.name + suffix) for suffix in SUFFIXES)):
            if path.is_file():
                return path
    raise RequestError(f"{where}: there is no video {stems[0]}; fetch it, or give another folder")


def late(where: str, *stems: Path) -> Shown:
    """A video that is looked for when it is shown, so that one that is missing fails alone."""
    return Shown("video", lambda: find_video(where, *stems), stems[0].name)


# ── VideoMME ──

_LABELS = ("duration", "domain", "sub_category", "task_type")


def read_videomme(found: Found) -> Iterator[Item]:
    """Parquet as on the hub, or a JSON list or lines with the same columns."""
    root = found.folder
    kinds = {"videoID": "value", "question_id": "value", "question": "text", "options": "texts|text", "answer": "text"}
    for row in found.rows(kinds):
        name = str(row["videoID"])
        yield _videomme(row, str(row["question_id"]), name, row["options"], root / "subtitle" / f"{name}.srt",
                        (root / "data" / name, root / "video" / name, root / name))  # fmt: skip


def read_videomme_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's."""
    root = found.folder
    for row in read_tsv(found.path, ("index", "video", "video_path", "candidates", "question", "answer")):
        name, path = filled(row, "video"), filled(row, "video_path").removeprefix("./")
        subtitle = root / (filled(row, "subtitle_path").removeprefix("./") or f"subtitle/{name}.srt")
        yield _videomme(row, filled(row, "index"), name, row["candidates"], subtitle,
                        (root / path, root / "video" / name))  # fmt: skip


def _videomme(row: Fields, id: str, name: str, options: Any, subtitle: Path, videos: Sequence[Path]) -> Item:
    texts = unlettered(listed_options(row, options))
    facts = {"subtitles": partial(read_subtitles, subtitle)} if subtitle.is_file() else {}
    return Item(
        id,
        str(row["question"]),
        by_letter(row, row["answer"], texts),
        (late(f"question {id}", *videos),),
        texts,
        labels={label: filled(row, label) for label in _LABELS if filled(row, label)},
        facts=facts,
    )


# ── MVBench ──

MVBENCH = {
    "action_sequence": ("star/Charades_v1_480", True),
    "action_prediction": ("star/Charades_v1_480", True),
    "action_antonym": ("ssv2_video", False),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", False),
    "unexpected_action": ("FunQA_test/test", False),
    "object_existence": ("clevrer/video_validation", False),
    "object_interaction": ("star/Charades_v1_480", True),
    "object_shuffle": ("perception/videos", False),
    "moving_direction": ("clevrer/video_validation", False),
    "action_localization": ("sta/sta_video", True),
    "scene_transition": ("scene_qa/video", False),
    "action_count": ("perception/videos", False),
    "moving_count": ("clevrer/video_validation", False),
    "moving_attribute": ("clevrer/video_validation", False),
    "state_change": ("perception/videos", False),
    "fine_grained_pose": ("nturgbd", False),
    "character_order": ("perception/videos", False),
    "egocentric_navigation": ("vlnqa", False),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", True),
    "counterfactual_inference": ("clevrer/video_validation", False),
}
"""Of each task: where its videos are below video/, and whether a question is about some seconds of one."""
AS_PICTURES = ("episodic_reasoning",)
"""The tasks whose videos come as folders of pictures."""
FRAMES_A_SECOND = 3
"""Of these."""
PICTURES_OF_A_FOLDER = 16
"""Shown of such a folder, by mPLUG-Owl3's authors and here."""


_MVBENCH_KINDS = {
    "video": "text",
    "question": "text",
    "candidates": "texts",
    "answer": "text|number",
    "start?": "number",
    "end?": "number",
}


def read_mvbench(found: Found) -> Iterator[Item]:
    """The files of its tasks; those that are not there are left out."""
    root = found.paths[1][0].parent
    for path in found.paths[0]:
        if path.stem not in MVBENCH:
            continue
        source, bounded = MVBENCH[path.stem]
        for number, row in enumerate(rows_of(path, read_json(path), _MVBENCH_KINDS, "question")):
            bounds = (row.get("start"), row.get("end")) if bounded else (None, None)
            yield _mvbench(row, f"{path.stem}/{number}", row["candidates"], root / source / row["video"], bounds)


def read_mvbench_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's, which names the folder of each video."""
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    for row in read_tsv(found.path, ("task_type", "prefix", "video", "question", "answer", "candidates")):
        task = re.sub(r"[ -]", "_", filled(row, "task_type").lower())
        if task not in MVBENCH:
            raise RequestError(f"{row}: task_type is {row['task_type']!r:.40}; expected one of MVBench's; mend it")
        path = found.folder / filled(row, "prefix") / filled(row, "video")
        bounds = (_seconds(row, "start"), _seconds(row, "end")) if MVBENCH[task][1] else (None, None)
        id = f"{task}/{next(numbers[task])}"
        yield _mvbench(row, id, listed(row["candidates"]), path, bounds)


def _seconds(row: Row, column: str) -> float | None:
    try:
        return float(filled(row, column)) if filled(row, column) else None
    except ValueError:
        raise RequestError(f"{row}: {column!r} is {row[column]!r:.40}; expected seconds; mend it") from None


def _mvbench(
    row: Fields, id: str, candidates: Sequence[Any], path: Path, bounds: tuple[float | None, float | None]
) -> Item:
    options = tuple(str(each) for each in candidates)
    truth = by_words(row, row["answer"], options)
    task = id.partition("/")[0]
    shown = _as_pictures(row.where, path, *bounds) if task in AS_PICTURES else (clip(path, *bounds),)
    return Item(id, row["question"], truth, shown, options, labels={"task": task})


def _as_pictures(where: str, path: Path, start: float | None, end: float | None) -> tuple[Shown, ...]:
    """The pictures of some seconds of a folder, which is read when they are shown: one that is missing fails alone."""
    chosen = cache(lambda: _chosen(where, path, start, end))

    def one(number: int) -> Shown:
        return Shown("image", lambda: chosen()[number], f"{path.name}, picture {number + 1}")

    return tuple(map(one, range(PICTURES_OF_A_FOLDER)))


def _chosen(where: str, path: Path, start: float | None, end: float | None) -> list[Path]:
    """The middles of so many equal parts of these seconds.

    Raises:
        RequestError: the folder is not there, or has no pictures of these seconds.
    """
    if not path.is_dir():
        raise RequestError(f"{where}: there is no folder {path}; fetch it, or give another folder")
    frames = sorted(each for each in path.iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    first = max(1, round((start or 0) * FRAMES_A_SECOND))
    last = len(frames) if end is None else min(len(frames), round(end * FRAMES_A_SECOND))
    if last < first:
        raise RequestError(f"{where}: the folder {path} has no pictures of these seconds; fetch it again")
    part = (last - first) / PICTURES_OF_A_FOLDER
    numbers = [int(first + part / 2 + round(part * number)) for number in range(PICTURES_OF_A_FOLDER)]
    return [frames[number - 1] for number in numbers]
