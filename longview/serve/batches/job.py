"""Rows → replies, many at a time, each once in the journal; then the files that OpenAI's batches end in.

    DIR/journal.jsonl    {"row": 3, "reply": {…}} as rows end, in any order; what is in it is done
    DIR/output.jsonl     the answered rows, in their order
    DIR/errors.jsonl     the others, in their order; not there when there are none

A line of both: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longview.deadlines import end
from longview.errors import RequestError
from longview.files import new_file
from longview.journal import Journal
from longview.messages import Progress
from longview.serve.batches.rows import Row, Rows
from longview.serve.batches.servers import Outcome
from longview.serve.errors import APIError

JOURNAL, OUTPUT, ERRORS = "journal.jsonl", "output.jsonl", "errors.jsonl"
MAX_UNWRITTEN = 64
"""Replies that wait for the disk."""
MAX_LISTED = 10
LEFT, ANSWERED, FAILED = 0, 1, 2
"""States of a row."""

Answer = Callable[[Row], Awaitable[Outcome]]


@dataclass(frozen=True)
class Summary:
    """What became of the rows."""

    output: str
    errors: str | None
    rows: int
    answered: int
    failed: int
    reasons: dict[str, str] = field(default_factory=dict)
    """Of the first rows that failed: place and reason."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class BatchJob:
    """Answers rows, and writes their replies down.

    Args:
        folder: Where the files go.
        job: What must be the same for a killed job to go on, besides the rows.
    """

    def __init__(self, rows: Rows, folder: Path, job: Mapping[str, Any], retry_failed: bool = False) -> None:
        self._rows, self._folder, self._retry_failed = rows, folder, retry_failed
        self._job = {"rows": len(rows), "digest of rows": rows.digest, **job}
        self._states = np.zeros(len(rows), np.uint8)
        self._places = np.zeros(len(rows), np.int64)
        self.journal = Journal(folder / JOURNAL, self._job, self._recall)

    def _recall(self, place: int, line: Mapping[str, Any]) -> None:
        self._places[line["row"]] = place
        self._states[line["row"]] = ANSWERED if _answered(line["reply"]) else FAILED

    @property
    def num_left(self) -> int:
        return len(self._left())

    def _left(self) -> list[int]:
        left = self._states == LEFT
        if self._retry_failed:
            left |= self._states == FAILED
        return np.flatnonzero(left).tolist()

    async def run(self, answer: Answer, concurrency: int, progress: Progress | None = None) -> None:
        """Do the rows that are left.

        Args:
            answer: Raises RequestError where the job cannot go on.
            concurrency: Rows that are asked at a time.

        Raises:
            RequestError: the job cannot go on; what is finished is in the journal.
        """
        left = iter(self._left())
        unwritten: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue(MAX_UNWRITTEN)
        writing = asyncio.create_task(self._write_journal(unwritten, progress))
        asking = [asyncio.create_task(self._ask(left, answer, unwritten)) for _ in range(concurrency)]
        asked: asyncio.Future[Any] = asyncio.gather(*asking)
        both: list[asyncio.Future[Any]] = [asked, writing]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                asked.result()
                await unwritten.put(None)
            await writing
        except RequestError as error:
            await end(*asking)
            if not writing.done():
                await unwritten.put(None)
                await writing
            done_now = len(self._rows) - int((self._states == LEFT).sum())
            raise RequestError(
                f"{error}; {done_now:,} of {len(self._rows):,} rows are finished and kept in {self.journal.path}: give "
                "the same command again to go on"
            ) from error
        finally:
            asked.cancel()
            await end(*asking, writing)

    async def _ask(self, left: Iterator[int], answer: Answer, unwritten: asyncio.Queue[Any]) -> None:
        for number in left:
            try:
                row = await asyncio.to_thread(self._rows.row, number)
            except APIError as error:
                outcome = Outcome.of_error(error)
            else:
                outcome = await answer(row)
            await unwritten.put((number, self._reply(number, outcome)))

    async def _write_journal(self, unwritten: asyncio.Queue[Any], progress: Progress | None) -> None:
        """The one writer. Replies that have come while it wrote are written together."""
        report = progress or (lambda done, total, label: None)
        total, done = len(self._rows), len(self._rows) - self.num_left
        report(done, total, "rows")
        ended = False
        while not ended:
            found = [await unwritten.get()]
            while not unwritten.empty():
                found.append(unwritten.get_nowait())
            ended = found[-1] is None
            lines = [{"row": number, "reply": reply} for number, reply in filter(None, found)]
            places = await asyncio.to_thread(self.journal.append, *lines)
            for place, line in zip(places, lines, strict=True):
                self._recall(place, line)
            report(done := done + len(lines), total, "rows")

    def _reply(self, number: int, outcome: Outcome) -> dict[str, Any]:
        """A line of the output."""
        digest = hashlib.sha256(f"{self._rows.digest} {number}".encode()).hexdigest()
        reply: dict[str, Any] = {"id": f"batch_req_{digest[:24]}", "custom_id": self._rows.ids[number]}
        if not outcome.status:
            return {**reply, "response": None, "error": {"code": "server_unreachable", "message": outcome.body}}
        request_id = outcome.body.get("id") if isinstance(outcome.body, Mapping) else None
        response = {"status_code": outcome.status, "request_id": request_id, "body": outcome.body}
        return {**reply, "response": response, "error": None}

    def finish(self) -> Summary:
        """Write the output, each file whole or not at all; all rows are in the journal.

        Raises:
            RequestError: there is no room; all is in the journal.
        """
        answered, failed = (np.flatnonzero(self._states == state) for state in (ANSWERED, FAILED))
        output, errors = self._folder / OUTPUT, self._folder / ERRORS
        reasons: dict[str, str] = {}
        self._write(output, answered)
        if failed.size:
            self._write(errors, failed)
            for line in self.journal.lines_at(self._places[failed[:MAX_LISTED]].tolist()):
                reasons[self._rows.place(line["row"])] = _reason(line["reply"])
        else:
            errors.unlink(missing_ok=True)
        told = str(errors) if failed.size else None
        return Summary(str(output), told, len(self._rows), answered.size, failed.size, reasons)

    def _write(self, path: Path, rows: Any) -> None:
        with new_file(path) as file:
            for line in self.journal.lines_at(self._places[rows].tolist()):
                file.write(json.dumps(line["reply"], ensure_ascii=False).encode(errors="replace") + b"\n")

    def close(self) -> None:
        self.journal.close()


def _answered(reply: Mapping[str, Any]) -> bool:
    return reply["response"] is not None and reply["response"]["status_code"] == 200


def _reason(reply: Mapping[str, Any]) -> str:
    if reply["error"] is not None:
        return reply["error"]["message"]
    body = reply["response"]["body"]
    error = body.get("error") if isinstance(body, Mapping) else None
    return str(error.get("message") if isinstance(error, Mapping) else body)[:300]
