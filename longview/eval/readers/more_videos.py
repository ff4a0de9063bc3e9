"""Multiple choices about videos: NextQA, LongVideoBench, MLVU, LVBench.

NextQA           MC/test-*.parquet or mc.csv: video, question, a0 … a4, answer (a number); NExTVideo/ID.mp4
LongVideoBench   lvb_val.json: video_path, question, candidates, correct_choice (a number); videos/
MLVU             json/N_TASK.json: video, question, candidates, answer (a text); video/N_TASK/
LVBench          video_info.meta.jsonl: key, qa: [{uid, question and options, answer, question_type}]; videos/KEY.mp4
the second and third also as VLMEvalKit's TSV, beside their videos
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.readers.columns import Fields, rows_of
from longview.eval.readers.files import Found
from longview.eval.readers.tables import filled, listed, read_csv, read_json, read_rows, read_tsv
from longview.eval.readers.truths import by_index, by_letter, by_words
from longview.eval.readers.videos import late, unlettered

TYPES = {"C": "causal", "T": "temporal", "D": "descriptive"}
_NEXTQA = {"video": "value", "question": "text", "answer": "value", **{f"a{n}": "value" for n in range(5)}}
_LONGVIDEOBENCH = {
    "id": "value",
    "video_path": "text",
    "question": "text",
    "candidates": "texts",
    "correct_choice": "value",
}
_MLVU = {"video": "text", "question": "text", "candidates?": "texts", "answer": "text|number"}


def read_nextqa(found: Found) -> Iterator[Item]:
    """Parquet, or the authors' CSV."""
    rows: Iterator[Fields] = read_csv(found.path, list(_NEXTQA)) if found.path.suffix == ".csv" else found.rows(_NEXTQA)
    for number, row in enumerate(rows):
        options = tuple(str(row[f"a{n}"]) for n in range(5))
        name = str(row["video"])
        id = f"{name}/{row.get('qid', number)}"
        videos = (
            found.folder / "NExTVideo" / name,
            found.folder / "videos" / name,
            found.folder.parent / "NExTVideo" / name,
        )
        labels = {"type": TYPES.get(str(row.get("type", "?"))[:1], str(row.get("type")))}
        truth = by_index(row, row["answer"], options)
        yield Item(id, row["question"], truth, (late(f"question {id}", *videos),), options, labels=labels)


def read_longvideobench(found: Found) -> Iterator[Item]:
    """The authors' JSON of the validation split."""
    for row in read_rows(found.path, _LONGVIDEOBENCH):
        yield _longvideobench(row, row["candidates"], found.folder / "videos" / row["video_path"])


def read_longvideobench_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's, whose paths begin at its own folder."""
    for row in read_tsv(found.path, list(_LONGVIDEOBENCH)):
        yield _longvideobench(row, listed(row["candidates"]), found.folder / row["video_path"])


def _longvideobench(row: Fields, candidates: Sequence[Any], video: Path) -> Item:
    options = tuple(str(each) for each in candidates)
    named = {"duration": filled(row, "duration_group"), "category": filled(row, "question_category")}
    labels = {name: value for name, value in named.items() if value}
    truth, shown = by_index(row, row["correct_choice"], options), late(f"question {row['id']}", video)
    return Item(str(row["id"]), row["question"], truth, (shown,), options, labels=labels)


def read_mlvu(found: Found) -> Iterator[Item]:
    """The files of its multiple-choice tasks; those of free answers are left out."""
    folder = found.folder / "video"
    for path in found.paths[0]:
        for number, row in enumerate(rows_of(path, read_json(path), _MLVU, "question")):
            if row.get("candidates"):
                task = str(row.get("question_type") or path.stem)
                videos = (folder / path.stem / row["video"], folder / row["video"])
                yield _mlvu(row, f"{path.stem}/{number}", task, row["candidates"], videos)


def read_mlvu_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's, which names the folder of each video from that of the whole data set."""
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    for row in read_tsv(found.path, ("task_type", "prefix", "video", "question", "answer", "candidates")):
        prefix, name = Path(row["prefix"]), row["video"]
        id = f"{prefix.name}/{next(numbers[prefix.name])}"
        videos = (found.folder / prefix / name, found.folder.parent / prefix / name)
        yield _mlvu(row, id, filled(row, "task_type"), listed(row["candidates"]), videos)


def _mlvu(row: Fields, id: str, task: str, candidates: Sequence[Any], videos: Sequence[Path]) -> Item:
    options = tuple(str(each) for each in candidates)
    truth = by_words(row, row["answer"], options)
    return Item(id, row["question"], truth, (late(row.where, *videos),), options, labels={"task": task})


def read_lvbench(found: Found) -> Iterator[Item]:
    """The authors' lines, a video each."""
    for line in read_rows(found.path, {"key": "value", "qa": "objects"}):
        kinds = {"uid": "value", "question": "text", "answer": "text", "question_type?": "texts|text"}
        for row in rows_of(line, line["qa"], kinds, "question"):
            question, *choices = re.split(r"\n\s*(?=\([A-H]\)|[A-H][.)] )", row["question"].strip())
            options = unlettered(choices)
            if len(options) < 2:
                raise RequestError(
                    f"{row}: question {row['uid']} has no options (A) … in its text; fetch the file again"
                )
            name, folders = str(line["key"]), ("videos", "all_videos", "video", "")
            types = row.get("question_type") or []
            labels = {"type": ", ".join(map(str, types)) if isinstance(types, list) else str(types)}
            truth = by_letter(row, row["answer"], options)
            shown = late(f"question {row['uid']}", *(found.folder / folder / name for folder in folders))
            yield Item(str(row["uid"]), question, truth, (shown,), options, labels=labels)
