"""VLMEvalKit's TSV: index, image (base64) or image_path, question, A … , answer, hint, category, split.

index     rows of one question have the same index modulo 1,000,000, where the file rotates options itself
image     base64, a list of base64, or the index of the row that has the picture
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from longview.errors import RequestError
from longview.eval.items import LETTERS, Item, Shown, picture
from longview.eval.readers.exported import COLUMN, restored
from longview.eval.readers.files import Found
from longview.eval.readers.tables import Row, decoded, filled, listed, options_of, read_tsv

ROTATED = 1_000_000
"""Added to the index of a question for each rotation of its options."""
LABELS = ("category", "l2-category", "subject", "topic", "subfield")


def rows_with_pictures(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[Row, tuple[Shown, ...]]]:
    """Each row, and its pictures."""
    by_index: dict[str, Row] = {}
    for row in read_tsv(path, ("index", *needed)):
        by_index[filled(row, "index")] = row
        yield row, _pictures(row, by_index)


def _pictures(row: Row, by_index: dict[str, Row]) -> tuple[Shown, ...]:
    """The pictures of a row.

    Raises:
        RequestError: it names a picture that no row before it has.
    """
    if "image" in row:
        named = row["image"]
        while named is not None and named.strip() not in ("", "nan"):
            if named not in by_index:
                raise RequestError(f"{row} takes the picture of row {named}, which is not there; fetch the file again")
            if by_index[named] is row:
                raise RequestError(f"{row} takes its own picture, and has none; fetch the file again")
            row = by_index[named]
            named = row["image"]
        if named is None:
            return stored_pictures(row)
    paths = [Path(str(name)) for name in listed(filled(row, "image_path"))] if filled(row, "image_path") else []
    return tuple(picture(row.path.parent / path, str(path)) for path in paths)


def stored_pictures(row: Row) -> tuple[Shown, ...]:
    """The pictures in a row's cell."""
    count = 1 if row.listed is None else row.listed
    paths = listed(filled(row, "image_path"))
    names = [f"row {row.number}" + (f", picture {number + 1}" if count > 1 else "") for number in range(count)]
    if len(paths) == count and all(paths):
        names = [str(path) for path in paths]

    def loader(number: int) -> Callable[[], bytes]:
        def load() -> bytes:
            cell = row.cell("image")
            return decoded(cell if row.listed is None else listed(cell)[number], str(row))

        return load

    return tuple(Shown("image", loader(number), name) for number, name in enumerate(names))


def read_choices(found: Found) -> Iterator[Item]:
    """Multiple choices."""
    for row, shown in rows_with_pictures(found.path, ("question", "A", "B", "answer", "image|image_path")):
        options, answer = options_of(row), filled(row, "answer").strip().upper()
        if len(answer) != 1 or answer not in LETTERS[: len(options)]:
            raise RequestError(
                f"{row}: the answer is {filled(row, 'answer')!r:.40}, and there are {len(options)} options; this file "
                "has no truths to score by (take the dev split), or is damaged"
            )
        index = filled(row, "index").removesuffix(".0")
        if row.get(COLUMN):
            yield restored(str(row), row, index, shown)
            continue
        group = str(int(index) % ROTATED) if index.isdigit() else index
        yield Item(
            index,
            filled(row, "question"),
            answer,
            shown,
            options,
            filled(row, "hint"),
            group,
            {name: filled(row, name) for name in LABELS if filled(row, name)},
        )
