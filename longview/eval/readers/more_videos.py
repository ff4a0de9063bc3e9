"""Multiple choices about videos: NextQA, LongVideoBench, MLVU, LVBench.

NextQA           MC/test-*.parquet or mc.csv: video, question, a0 … a4, answer (a number); NExTVideo/ID.mp4
LongVideoBench   lvb_val.json: video_path, question, candidates, correct_choice (a number); videos/
MLVU             json/N_TASK.json: video, question, candidates, answer (a text); video/N_TASK/
LVBench          video_info.meta.jsonl: key, qa: [{uid, question and options, answer, question_type}]; videos/KEY.mp4
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.readers.files import Found
from longview.eval.readers.tables import check_columns, read_json, read_rows
from longview.eval.readers.videos import late, lettered_answer, unlettered

TYPES = {"C": "causal", "T": "temporal", "D": "descriptive"}


def read_nextqa(found: Found) -> Iterator[Item]:
    """Parquet, or the authors' CSV."""
    needed = ("video", "question", "answer", "a0", "a4")
    rows: Iterator[Mapping[str, Any]] = _csv(found, needed) if found.path.suffix == ".csv" else found.rows(needed)
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
        yield Item(id, str(row["question"]), lettered_answer(f"question {id}", str(row["answer"]), options),
                   (late(f"question {id}", *videos),), options, labels=labels)  # fmt: skip


def _csv(found: Found, needed: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    with found.path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        check_columns(found.path, list(rows.fieldnames or ()), needed)
        yield from rows


def read_longvideobench(found: Found) -> Iterator[Item]:
    """The authors' JSON of the validation split."""
    for row in read_rows(found.path, ("id", "video_path", "question", "candidates", "correct_choice")):
        options = tuple(str(each) for each in row["candidates"])
        where = f"question {row['id']}"
        labels = {"duration": str(row["duration_group"])} if row.get("duration_group") else {}
        labels |= {"category": row["question_category"]} if row.get("question_category") else {}
        yield Item(str(row["id"]), row["question"], lettered_answer(where, str(row["correct_choice"]), options),
                   (late(where, found.folder / "videos" / row["video_path"]),), options, labels=labels)  # fmt: skip


def read_mlvu(found: Found) -> Iterator[Item]:
    """The files of its multiple-choice tasks; those of free answers are left out."""
    for path in found.paths[0]:
        for number, row in enumerate(read_json(path)):
            if not row.get("candidates"):
                continue
            options = tuple(str(each) for each in row["candidates"])
            where = f"{path}, question {number + 1}"
            truth = lettered_answer(where, str(row["answer"]), options)
            folder = found.folder / "video"
            shown = late(where, folder / path.stem / row["video"], folder / row["video"])
            labels = {"task": str(row.get("question_type") or path.stem)}
            yield Item(f"{path.stem}/{number}", row["question"], truth, (shown,), options, labels=labels)


def read_lvbench(found: Found) -> Iterator[Item]:
    """The authors' lines, a video each."""
    for line in read_rows(found.path, ("key", "qa")):
        for row in line["qa"]:
            question, *listed = re.split(r"\n\s*(?=\([A-H]\)|[A-H][.)] )", row["question"].strip())
            options = unlettered(listed)
            if len(options) < 2:
                raise RequestError(
                    f"{found.path}, question {row.get('uid')} has no options (A) … in its text; fetch it again"
                )
            where, name = f"question {row['uid']}", str(line["key"])
            folders = ("videos", "all_videos", "video", "")
            kinds = row.get("question_type") or []
            labels = {"type": ", ".join(kinds) if isinstance(kinds, list) else str(kinds)}
            truth = lettered_answer(where, str(row["answer"]), options)
            shown = late(where, *(found.folder / folder / name for folder in folders))
            yield Item(str(row["uid"]), question, truth, (shown,), options, labels=labels)
