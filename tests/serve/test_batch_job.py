"""A batch's record: whatever is killed, and whenever, each row is answered once, and comes in its place."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from longview.errors import RequestError
from longview.serve.batches import job as jobs
from longview.serve.batches.job import ERRORS, JOURNAL, OUTPUT, BatchJob
from longview.serve.batches.rows import Row, Rows
from longview.serve.batches.servers import Outcome

CONCURRENCY = 8


def write_rows(folder: Path, count: int) -> Path:
    """Rows, of which each tenth is no request, and the last has the id of the first."""
    rows = [{"id": f"id {n}", "question": f"What is {n}?"} for n in range(count - 1)] + [
        {"id": "id 0", "question": "?"}
    ]
    for row in rows[5::10]:
        row["colour"] = "red"
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def open_job(path: Path, folder: Path, **more) -> BatchJob:
    return BatchJob(Rows(path, model="demo"), folder, {"model": "demo"}, **more)


def answering(asked: Path, seconds: float = 0.0, padding: int = 0):
    """Answers a row with its own question, after it has noted that it was asked."""
    log = os.open(asked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def answer(row: Row) -> Outcome:
        os.write(log, f"{row.id}\n".encode())
        await asyncio.sleep(random.random() * seconds)
        text = row.body["messages"][0]["content"]
        return Outcome(200, {"id": "x", "said": text, "padding": "x" * padding})

    return answer


def run(path: Path, folder: Path, asked: Path, seconds: float = 0.0, padding: int = 0) -> jobs.Summary:
    job = open_job(path, folder)
    try:
        asyncio.run(job.run(answering(asked, seconds, padding), CONCURRENCY))
        return job.finish()
    finally:
        job.close()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(folder: Path, count: int) -> None:
    """Every row is in one of the two files, once, in its place, with its own answer."""
    bad = {*range(5, count - 1, 10)}
    output, errors = lines(folder / OUTPUT), lines(folder / ERRORS)
    assert [each["custom_id"] for each in output] == [f"id {n}" for n in range(count - 1) if n not in bad]
    assert [each["custom_id"] for each in errors] == [*(f"id {n}" for n in sorted(bad)), "id 0"]
    for each in output:
        assert each["response"]["body"]["said"] == f"What is {each['custom_id'][3:]}?"
    assert {each["response"]["status_code"] for each in errors} == {400}
    assert len({each["id"] for each in [*output, *errors]}) == count


def in_child(work) -> int:
    """The pid of a process that does some work."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_killed_twenty_times_it_ends_with_each_row_once_and_asks_few_again(tmp_path):
    count, folder, asked = 400, tmp_path / "out", tmp_path / "asked"
    path = write_rows(tmp_path, count)
    kills = 0
    while kills < 20:
        child = in_child(lambda: run(path, folder, asked, seconds=0.004))
        until = time.monotonic() + random.uniform(0.0, 0.06)
        while time.monotonic() < until:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        kills += 1
        os.waitpid(child, 0)
    summary = run(path, folder, asked)
    assert (summary.rows, summary.answered, summary.failed) == (count, 359, 41)
    check(folder, count)
    times = asked.read_text().splitlines()
    assert len(set(times)) == 359
    window = CONCURRENCY + jobs.MAX_UNWRITTEN  # asked, but not on the disk
    assert len(times) <= 359 + kills * window


def test_one_that_is_killed_while_it_writes_its_files_writes_them_again(tmp_path, monkeypatch):
    count, folder, asked = 40, tmp_path / "out", tmp_path / "asked"
    path = write_rows(tmp_path, count)

    def die_half_way() -> None:
        whole = jobs.Journal.lines_at

        def half(self, places):
            for number, line in enumerate(whole(self, places)):
                if number == 10:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield line

        monkeypatch.setattr(jobs.Journal, "lines_at", half)
        run(path, folder, asked)

    _, status = os.waitpid(in_child(die_half_way), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not (folder / OUTPUT).exists()
    before = asked.read_text()
    run(path, folder, asked)
    check(folder, count)
    assert asked.read_text() == before, "rows were asked again that were in the journal"


def test_a_torn_last_line_is_one_row_to_be_asked_again(tmp_path):
    count, folder, asked = 40, tmp_path / "out", tmp_path / "asked"
    path = write_rows(tmp_path, count)
    run(path, folder, asked)
    journal = folder / JOURNAL
    whole = journal.read_bytes()
    last = json.loads(whole.splitlines()[-1])["row"]
    journal.write_bytes(whole[:-20])
    asked.write_text("")
    run(path, folder, asked)
    check(folder, count)
    assert asked.read_text() in ("", f"id {last}\n")  # "": it was one of the bad ones


def test_a_finished_one_asks_nothing_and_says_the_same(tmp_path):
    path = write_rows(tmp_path, 20)
    first = run(path, tmp_path / "out", tmp_path / "asked")
    again = run(path, tmp_path / "out", tmp_path / "again")
    assert first == again
    assert (tmp_path / "again").read_text() == ""


def test_rows_that_failed_are_asked_again_on_request(tmp_path):
    path, folder = write_rows(tmp_path, 20), tmp_path / "out"
    broken = True

    async def answer(row: Row) -> Outcome:
        if broken and row.id in ("id 3", "id 8"):
            return Outcome(0, "http://one: refused")
        return Outcome(200, {"said": row.body["messages"][0]["content"]})

    def once(**more) -> jobs.Summary:
        job = open_job(path, folder, **more)
        try:
            asyncio.run(job.run(answer, 4))
            return job.finish()
        finally:
            job.close()

    assert once().failed == 5
    assert lines(folder / ERRORS)[0] == {
        **lines(folder / ERRORS)[0],
        "custom_id": "id 3",
        "response": None,
        "error": {"code": "server_unreachable", "message": "http://one: refused"},
    }
    broken = False
    assert once().failed == 5
    assert once(retry_failed=True).failed == 3
    check(folder, 20)


def test_other_rows_or_settings_do_not_go_on_in_it(tmp_path):
    path = write_rows(tmp_path, 20)
    run(path, tmp_path / "out", tmp_path / "asked")
    with pytest.raises(RequestError, match="begun with model 'demo', not 'other'"):
        BatchJob(Rows(path), tmp_path / "out", {"model": "other"})
    path.write_text(path.read_text() + '{"question": "One more?"}\n')
    with pytest.raises(RequestError, match="begun with rows 20, not 21"):
        open_job(path, tmp_path / "out")


def test_one_that_cannot_go_on_keeps_what_is_finished_and_says_so(tmp_path):
    path, folder = write_rows(tmp_path, 40), tmp_path / "out"

    async def answer(row: Row) -> Outcome:
        if row.number > 20:
            raise RequestError("no server answers: http://one (refused)")
        return Outcome(200, {"said": row.body["messages"][0]["content"]})

    job = open_job(path, folder)
    with pytest.raises(RequestError, match=r"no server answers: .*; \d+ of 40 rows are finished and kept in"):
        asyncio.run(job.run(answer, 4))
    job.close()
    assert len(lines(folder / JOURNAL)) > 15
    run(path, folder, tmp_path / "asked")
    check(folder, 40)


def test_ten_thousand_rows_take_no_more_memory_than_a_few(tmp_path):
    """60 MB of replies; what grows is an id and a number a row."""
    path = write_rows(tmp_path, 10_000)

    def measure() -> None:
        before = peak()
        run(path, tmp_path / "out", tmp_path / "asked", padding=6_000)
        (tmp_path / "grown").write_text(str(peak() - before))

    os.waitpid(in_child(measure), 0)
    assert (tmp_path / "out" / OUTPUT).stat().st_size > 50 << 20
    assert int((tmp_path / "grown").read_text()) < 30 << 20


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
