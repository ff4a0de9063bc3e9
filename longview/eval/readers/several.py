"""Questions about several pictures.

LLaVA-NeXT-Interleave-Bench   multi_image_out_domain.json with eval_images_fix/: Mantis, BLINK, MathVerse, SciVerse
NLVR2                         Parquet with two pictures a row; or the authors' lines with dev/ID-img0.png, …
Q-Bench2                      Parquet: image1, image2, question, option0 …, correct_choice
VMCQ                          evalscope's: question with <image 1>, options, image_1 …, answer
messages                      OpenAI's messages with a column answer
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import LETTERS, Item, Shown, clip, picture
from longview.eval.readers.columns import Fields, checked, either, rows_of
from longview.eval.readers.exported import COLUMN, restored
from longview.eval.readers.files import Found
from longview.eval.readers.tables import below, listed, read_json, read_rows, read_tsv, stored_picture
from longview.eval.readers.truths import by_letter, guessed
from longview.eval.readers.tsv import stored_pictures
from longview.eval.readers.videos import SUFFIXES, unlettered

_OPTION = re.compile(r"^\s*\(?([A-H])[).:]\s*(.+?)\s*$", re.MULTILINE)


_IMAGES = ("eval_images_fix", "eval_images", "interleave_data")
_INTERLEAVE = {"image": "texts", "conversations": "objects", "sample_id": "value", "metadata": "object"}


def read_interleave(dataset: str) -> Callable[[Found], Iterator[Item]]:
    """One of the data sets in the file."""

    def read(found: Found) -> Iterator[Item]:
        for row in rows_of(found.path, read_json(found.path), {"metadata?": "object"}):
            meta = row.get("metadata") or {}
            if str(meta.get("dataset")) != dataset:
                continue
            row = checked(row.where, row, _INTERLEAVE)
            shown = tuple(picture(below(found.folder, name, *_IMAGES), name) for name in row["image"])
            question, answer = _conversation(row)
            choice = meta.get("question_type") == "multi-choice"
            letters = [letter for letter, _ in _OPTION.findall(question)] if choice else []
            named = re.fullmatch(r"\(?([A-H])[).]?", answer)
            options = tuple(text for _, text in _OPTION.findall(question))
            if choice and (letters != list(LETTERS[: len(letters)]) or not named or named[1] not in letters):
                options = tuple(LETTERS[:8]) if named else ()
            labels = {"sub_task": str(row["sub_task"])} if row.get("sub_task") else {}
            truth, facts = named[1] if named and choice else answer, {"dataset": dataset, "choice": choice}
            kept = options if choice else ()
            yield Item(str(row["sample_id"]), question, truth, shown, kept, labels=labels, facts=facts)

    return read


def _conversation(row: Fields) -> tuple[str, str]:
    """The question and the answer.

    Raises:
        RequestError: it is no question with an answer.
    """
    said = [turn.get("value") for turn in row["conversations"][:2]]
    if len(said) < 2 or not all(isinstance(each, str) for each in said):
        raise RequestError(
            f"{row}: 'conversations' is {row['conversations']!r:.40}; expected a question and its answer, each with a "
            "value; fetch the file again"
        )
    return said[0], said[1].strip()


# ── NLVR2, Q-Bench2 ──


def read_nlvr2(found: Found) -> Iterator[Item]:
    """Parquet: two pictures, a sentence, True or False."""
    kinds = {"question|sentence": "text", "answer|label": "value", "images?": "list"}
    for number, row in enumerate(found.rows(kinds)):
        stored = row.get("images") or [row.get("left_image"), row.get("right_image")]
        if row.get("image_0") is not None:
            stored = [row["image_0"], row["image_1"]]
        if len(stored) != 2:
            raise RequestError(f"{row} has {len(stored)} pictures; expected two; fetch the file again")
        names = [f"row {number + 1}, {side}" for side in ("left", "right")]
        shown = tuple(stored_picture(row, each, found.folder, name) for each, name in zip(stored, names, strict=True))
        yield _nlvr2(str(either(row, "question_id", default=number)), row, shown)


def read_nlvr2_lines(found: Found) -> Iterator[Item]:
    """The authors' lines, whose pictures lie in a folder beside them."""
    for row in read_rows(found.path, {"identifier": "text", "sentence": "text", "label": "value"}):
        stem, split = row["identifier"].rpartition("-")[0], row["identifier"].partition("-")[0]
        names = [f"{stem}-img{side}.png" for side in (0, 1)]
        shown = tuple(picture(below(found.folder, name, split, "images"), name) for name in names)
        yield _nlvr2(row["identifier"], row, shown)


def _nlvr2(id: str, row: Fields, shown: tuple[Shown, ...]) -> Item:
    truth = str(either(row, "answer", "label")).strip().lower()
    if truth not in ("true", "false", "yes", "no"):
        raise RequestError(f"{row}: the answer is {truth!r:.40}; expected True or False; mend it")
    question = either(row, "question", "sentence")
    return Item(id, question, "yes" if truth in ("true", "yes") else "no", shown)


_QBENCH2 = {
    "image1": "any",
    "image2": "any",
    "question": "text",
    "option0": "value",
    **{f"option{n}?": "value" for n in range(1, 5)},
    "correct_choice": "text",
}


def read_qbench2(found: Found) -> Iterator[Item]:
    """Parquet as on the hub."""
    for number, row in enumerate(found.rows(_QBENCH2)):
        options = tuple(
            str(row[name]) for name in (f"option{n}" for n in range(5)) if row.get(name) not in (None, "", "N/A")
        )
        id = str(either(row, "id", default=number))
        shown = tuple(stored_picture(row, row[f"image{n}"], found.folder, f"{id}, image {n}") for n in (1, 2))
        labels = {name: str(row[name]) for name in ("question_type", "question_concern") if row.get(name) is not None}
        yield Item(id, row["question"], by_letter(row, row["correct_choice"], options), shown, options, labels=labels)


# ── users' own ──


def read_vmcq(found: Found) -> Iterator[Item]:
    """evalscope's VMCQ: lines or TSV, with options and image_1 …, or with messages."""
    for number, row in enumerate(_rows(found), 1):
        if row.get("messages"):
            yield _of_messages(found, row, number)
            continue
        checked(row.where, row, {"question": "text", "options": "texts|text", "answer": "value"})
        names = [name for name in (f"image_{n}" for n in range(1, 101)) if row.get(name)]
        shown = [stored_picture(row, _local(row[name]), found.folder, f"row {number}, {name}") for name in names]
        shown += [clip(found.folder / str(row[name])) for name in ("video", "video_1") if row.get(name)]
        id = str(either(row, "id", default=number))
        if row.get(COLUMN):
            yield restored(row.where, row, id, shown)
            continue
        given = listed(row["options"])
        options = unlettered(given)
        truth = guessed(row, row["answer"], options, given)
        yield Item(id, row["question"], truth, tuple(shown), options, labels=_category(row))


def read_messages(found: Found) -> Iterator[Item]:
    """Lines or TSV of OpenAI's messages with an answer; or LLaVA's questions with answers."""
    for number, (row, stored) in enumerate(_rows_with_pictures(found), 1):
        if row.get("messages"):
            yield _of_messages(found, row, number)
            continue
        if row.get(COLUMN):
            yield restored(row.where, row, str(row.get("index") or row.get("id") or number), stored)
            continue
        checked(row.where, row, {"question|text": "text", "answer": "texts|value"})
        given = row.get("image") or row.get("images") or ()
        names = [given] if isinstance(given, (str, Mapping)) else list(given)
        shown = stored or tuple(stored_picture(row, _local(name), found.folder, f"row {number}") for name in names)
        answers = row["answer"] if isinstance(row["answer"], list) else str(row["answer"])
        id = str(either(row, "question_id", "id", "index", default=number))
        yield Item(id, either(row, "question", "text"), answers, shown, labels=_category(row))


def _category(row: Mapping[str, Any]) -> dict[str, str]:
    return {"category": str(row["category"])} if row.get("category") else {}


def _rows(found: Found) -> Iterator[Fields]:
    if found.path.suffix == ".tsv":
        yield from read_tsv(found.path, ("answer",))
    else:
        yield from found.rows(("messages|question", "answer"))


def _rows_with_pictures(found: Found) -> Iterator[tuple[Fields, tuple[Shown, ...]]]:
    """Rows, and the pictures that the column `image` of a TSV holds."""
    if found.path.suffix != ".tsv":
        yield from ((row, ()) for row in found.rows(("messages|question|text", "answer")))
        return
    for row in read_tsv(found.path, ("answer",)):
        yield row, stored_pictures(row) if row.get("image", "") is None else ()


def _of_messages(found: Found, row: Fields, number: int) -> Item:
    """The user's messages as texts and media in their order."""
    where, id = row.where, str(either(row, "id", default=number))
    messages = row["messages"] if isinstance(row["messages"], list) else listed(row["messages"])
    parts: list[str | Shown] = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") != "user":
            continue
        content = message.get("content")
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
            parts.append(_part(found, part, f"{where}, medium {len(parts) + 1}"))
    if row.get(COLUMN):
        return restored(where, row, id, _media(parts), parts)
    text = "".join(part for part in parts if isinstance(part, str))
    if not text.strip():
        raise RequestError(f"{where}: the messages hold no question; expected one of the role user; mend it")
    answer, named = row["answer"], _OPTION.findall(text)
    options: tuple[str, ...] = ()
    if isinstance(answer, str) and [letter for letter, _ in named] == list(LETTERS[: len(named)]) and len(named) > 1:
        options = tuple(option for _, option in named) if answer.strip() in LETTERS[: len(named)] else ()
    truth = answer.strip() if isinstance(answer, str) else answer if isinstance(answer, list) else str(answer)
    return Item(id, text.strip(), truth, _media(parts), options, labels=_category(row), facts={"parts": parts})


def _media(parts: Sequence[str | Shown]) -> tuple[Shown, ...]:
    return tuple(part for part in parts if isinstance(part, Shown))


def _part(found: Found, part: Mapping[str, Any], where: str) -> str | Shown:
    if not isinstance(part, Mapping):
        raise RequestError(f"{where} is {part!r:.40}; expected an object with a type")
    kind = part.get("type")
    if kind == "text":
        return str(part.get("text", ""))
    value = part.get(str(kind))
    address = value.get("url") if isinstance(value, Mapping) else value
    if kind in ("image_url", "image") and isinstance(address, str):
        detail = value.get("detail") if isinstance(value, Mapping) else None
        return replace(stored_picture(where, _local(address), found.folder, where), detail=detail)
    if kind in ("video_url", "video") and isinstance(address, str):
        return Shown("video", lambda: _video_source(found.folder, address), Path(address[:200]).name)
    raise RequestError(f"{where} is a part of type {kind!r:.40}; expected text, image_url or video_url")


def _video_source(folder: Path, address: str) -> Any:
    return address if address.startswith(("http", "data:")) else folder / address.removeprefix("file://")


def _local(address: Any) -> Any:
    return address.removeprefix("file://") if isinstance(address, str) else address


_VIDEO_CHOICES = {
    "video|video_path": "value",
    "question": "text",
    "options|candidates": "texts|text|object",
    "answer": "text|number",
    "start?": "number",
    "end?": "number",
}


def read_video_choices(found: Found) -> Iterator[Item]:
    """Rows of a video, a question, options (or candidates) and an answer, in JSON, JSONL or Parquet."""
    for number, row in enumerate(found.rows(_VIDEO_CHOICES), 1):
        held = either(row, "options", "candidates")
        given = list(held.values()) if isinstance(held, Mapping) else listed(held)
        options = unlettered(given)
        labels = {n: str(row[n]) for n in ("category", "task_type", "duration", "type") if row.get(n)}
        path = found.folder / str(either(row, "video", "video_path"))
        shown = clip(
            path if path.suffix in SUFFIXES else path.with_name(path.name + ".mp4"), row.get("start"), row.get("end")
        )
        id = str(either(row, "id", "question_id", default=number))
        truth = guessed(row, row["answer"], options, given)
        yield Item(id, row["question"], truth, (shown,), options, labels=labels)
