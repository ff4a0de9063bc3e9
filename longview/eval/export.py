"""A task's questions as files of other evaluators.

evalscope    TASK_test.jsonl   of general_vqa: messages, just as the protocol asks
             TASK_val.jsonl    of general_vmcq, where all questions have options: question and options, around which
                               evalscope puts a prompt of its own
vlmevalkit   TASK.tsv          index, image (base64), question, A …, answer, hint, category

Questions are those of the files, each once: another evaluator turns options by itself. Pictures are inside, videos are
named by whole paths; those that are in no file yet are written into TASK_media. Tasks `messages` and `choices` read all
of them back to the same items.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from longview.errors import RequestError
from longview.eval.items import LETTERS, Item, Protocol, Shown
from longview.eval.readers.exported import COLUMN, kept
from longview.eval.server import data_uri, image_part
from longview.files import new_file, write_file
from longview.media.formats import HEAD, container_of
from longview.messages import Message, Part

Address: TypeAlias = Callable[[Any], str]
"""Gives the address of the source of an item's next video."""
SUFFIXES = {"matroska": ".mkv", "avi": ".avi"}
"""Of files of a container; others are MP4."""


def export(name: str, items: Sequence[Item], protocol: Protocol, form: str, folder: Path) -> list[Path]:
    """Write items for another evaluator.

    Returns:
        The files.

    Raises:
        RequestError: the form is unknown or cannot hold the items, a medium cannot be read, or a file not written.
    """
    if form not in FORMS:
        raise RequestError(f"--to is {form!r:.40}; expected {' or '.join(FORMS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made ({error.strerror}); choose another folder") from None
    return FORMS[form](name, items, protocol, folder)


# ── evalscope ──


def _evalscope(name: str, items: Sequence[Item], protocol: Protocol, folder: Path) -> list[Path]:
    media = folder / f"{name}_media"

    def addressed() -> Iterator[tuple[Item, Address]]:
        for number, item in enumerate(items, 1):
            yield item, _addresses(media, number)

    rows = (_vqa(item, protocol, address) for item, address in addressed())
    written = [_lines(folder / f"{name}_test.jsonl", rows)]
    if all(len(item.options) > 1 for item in items):
        choices = (_vmcq(item, address) for item, address in addressed())
        written.append(_lines(folder / f"{name}_val.jsonl", choices))
    return written


def _addresses(folder: Path, number: int) -> Address:
    """Those of the videos of one item, in their order."""
    places = (folder / f"{number}-{place}" for place in itertools.count(1))
    return lambda source: _address(source, next(places))


def _lines(path: Path, rows: Any) -> Path:
    with new_file(path) as file:
        for row in rows:
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
    return path


def _vqa(item: Item, protocol: Protocol, address: Address) -> dict[str, Any]:
    """Messages of OpenAI's API, and one answer: what most people said."""
    message = Message.of("user", *protocol.parts(item))
    content = [each for part in message.parts for each in _content(part, address)]
    messages = [{"role": "user", "content": content}]
    return {"id": item.id, "messages": messages, "answer": one_answer(item), **_category(item), COLUMN: kept(item)}


def _content(part: Part, address: Address) -> list[dict[str, Any]]:
    if part.type == "text":
        return [{"type": "text", "text": part.text}]
    if part.type == "image":
        return [image_part(part, ours=False)]
    source: Any = part.source
    if isinstance(source, (list, tuple)):
        return [{"type": "image_url", "image_url": {"url": data_uri(each, "image")}} for each in source]
    return [{"type": "video_url", "video_url": {"url": address(source)}}]


def _vmcq(item: Item, address: Address) -> dict[str, Any]:
    """The question behind its media, each of which its number names."""
    row: dict[str, Any] = {}
    tags = []
    numbers: Counter[str] = Counter()
    for shown in item.shown:
        numbers[shown.kind] += 1
        tag = f"{shown.kind} {numbers[shown.kind]}"
        source = shown.load()
        row[tag.replace(" ", "_")] = data_uri(source, "image") if shown.kind == "image" else address(source)
        if f"<{tag}>" not in item.question:
            tags.append(f"<{tag}>\n")
    question = "".join(tags) + "\n".join(filter(None, [item.hint, item.question]))
    fields = {"id": item.id, "question": question, "options": list(item.options), "answer": item.answer}
    return {**fields, **row, **_category(item), COLUMN: kept(item)}


def _address(source: Any, place: Path) -> str:
    """A video's address, or the whole path of its file; one that is in no file is written to a place.

    Raises:
        RequestError: it is frames, or cannot be written.
    """
    if isinstance(source, bytes):
        place.parent.mkdir(exist_ok=True)
        path = place.with_name(f"{place.name}{SUFFIXES.get(container_of(source[:HEAD]) or '', '.mp4')}")
        write_file(path, source)
        return str(path.resolve())
    if isinstance(source, (str, Path)):
        text = str(source)
        return text if text.startswith(("http://", "https://")) else str(Path(text).expanduser().resolve())
    raise RequestError("a video that is frames has no address for another evaluator; export tasks of files")


# ── VLMEvalKit ──


def _vlmevalkit(name: str, items: Sequence[Item], protocol: Protocol, folder: Path) -> list[Path]:
    if any(shown.kind == "video" for item in items for shown in item.shown):
        raise RequestError(f"{name} shows videos, which VLMEvalKit's TSV cannot hold; take --to evalscope")
    letters = LETTERS[: max((len(item.options) for item in items), default=0)]
    columns = ["index", "image", "question", *letters, "answer", "hint", "category", COLUMN]
    path = folder / f"{name}.tsv"
    with new_file(path) as file:
        for row in itertools.chain([dict(zip(columns, columns, strict=True))], (_tsv_row(i, letters) for i in items)):
            text = io.StringIO()
            csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", restval="").writerow(row)
            file.write(text.getvalue().encode())
    return [path]


def _tsv_row(item: Item, letters: str) -> dict[str, Any]:
    stored = [_base64(shown) for shown in item.shown]
    answer = json.dumps(item.answer, ensure_ascii=False) if isinstance(item.answer, list) else str(item.answer)
    return {
        "index": item.id,
        "image": stored[0] if len(stored) == 1 else json.dumps(stored) if stored else "",
        "question": item.question,
        **dict(zip(letters, item.options, strict=False)),
        "answer": answer,
        "hint": item.hint,
        **_category(item),
        COLUMN: json.dumps(kept(item), ensure_ascii=False),
    }


def _base64(shown: Shown) -> str:
    source = shown.load()
    if isinstance(source, bytes):
        return base64.b64encode(source).decode()
    return data_uri(source, "image").partition(",")[2]


# ── both ──


def one_answer(item: Item) -> str:
    """The truth as one text: what most people said, the first of these."""
    if not isinstance(item.answer, list):
        return str(item.answer)
    return str(Counter(map(str, item.answer)).most_common(1)[0][0]) if item.answer else ""


def _category(item: Item) -> dict[str, str]:
    """The label by which another evaluator tells scores apart."""
    value = item.labels.get("category") or next(iter(item.labels.values()), "")
    return {"category": value} if value else {}


FORMS: Mapping[str, Callable[[str, Sequence[Item], Protocol, Path], list[Path]]] = {
    "evalscope": _evalscope,
    "vlmevalkit": _vlmevalkit,
}
