"""`longview batch` itself: the same answers from a model here, from a running server, and over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import ROOT, data_uri, eventually, shapes

from longview.cli import main
from longview.serve.batches.rows import CHAT

ROWS = [
    {"custom_id": "chat", "method": "POST", "url": CHAT, "body": {"model": "demo", "messages": shapes()}},
    {"id": "shapes", "question": "What colour is the circle?", "image": "shapes.jpg"},
    {"question": "In image 2, what colour is the triangle?", "files": ["shapes.jpg", "pair.webp"], "max_tokens": 2},
    {"id": "clip", "question": "Which way does the triangle move?", "video": "clip.mp4", "longview": {"frames": 4}},
    {"custom_id": "unknown", "body": {"model": "demo", "messages": shapes(), "max_token": 3}},
    {"id": "odd", "question": "?", "colour": "red"},
    {"custom_id": "two", "body": {"model": "demo", "messages": shapes(), "n": 2, "temperature": 1.0, "seed": 3}},
    {"custom_id": "response", "url": "/v1/responses", "body": {"model": "demo", "input": "What is two?"}},
    {"custom_id": "model", "body": {"model": "none", "messages": shapes()}},
]  # fmt: skip
OF_THE_RUN = ("id", "created", "created_at", "request_id", "timings", "cached_tokens", "usage", "name", "item_id")
"""What differs from one run to the next; where a picture comes from is no part of its answer."""


def write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["batch", *map(str, arguments)])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stable(found):
    """A reply without what differs from one run to the next."""
    if isinstance(found, dict):
        return {name: stable(value) for name, value in found.items() if name not in OF_THE_RUN}
    return [stable(each) for each in found] if isinstance(found, list) else found


def test_a_model_here_a_server_and_http_give_the_same(server, client, capsys, tmp_path):
    rows = write(tmp_path, ROWS)
    options = ["--folder", ROOT / "examples"]
    code, out, err = run(capsys, rows, "--output", tmp_path / "here", "--model", "demo", *options)
    assert (code, out) == (3, f"7 of 9 rows are answered: {tmp_path / 'here' / 'output.jsonl'}\n"
                              f"2 are not: {tmp_path / 'here' / 'errors.jsonl'}\n")  # fmt: skip
    assert err == (f"{rows}, line 5: max_token is not known here; leave it out, or check its spelling\n"
                   f"{rows}, line 6: unknown column 'colour'; the nearest known one is 'completion', or name it under "
                   "ignore\n")  # fmt: skip
    code, out, _ = run(capsys, rows, "--output", tmp_path / "there", "--server", server.address, *options, "--json")
    assert code == 3
    assert (found := json.loads(out))["answered"], found["failed"] == (6, 3)

    here, there = (lines(tmp_path / name / "output.jsonl") for name in ("here", "there"))
    assert [each["custom_id"] for each in here] == ["chat", "shapes", "row-3", "clip", "two", "response", "model"]
    assert stable(there) == stable(here[:-1])  # a server says what it thinks of a model that it does not have
    texts = [each["response"]["body"]["choices"][0]["message"]["content"] for each in here[:4]]
    assert texts == ["blue", "red", "purple", "right"]
    assert len(here[3]["response"]["body"]["longview"]["frames"]) == 4
    asked = client.chat.completions.create(**ROWS[6]["body"]).model_dump()
    assert [each["message"]["content"] for each in asked["choices"]] == [
        each["message"]["content"] for each in here[4]["response"]["body"]["choices"]
    ]
    errors = lines(tmp_path / "there" / "errors.jsonl")
    replies = [(each["custom_id"], each["response"]) for each in errors]
    told = [(id, reply["status_code"], reply["body"]["error"]["param"]) for id, reply in replies]
    assert told == [("unknown", 400, "max_token"), ("odd", 400, None), ("model", 404, "model")]


def test_a_film_of_the_simple_form_is_uploaded_once_and_asked_often(server, capsys, tmp_path, monkeypatch):
    from longview.serve.batches import servers

    monkeypatch.setattr(servers, "INLINE", 10)
    rows = write(tmp_path, [{"question": "Which way does the triangle move?", "video": "clip.mp4"}] * 4)
    before = len(server.client().files.list().data)
    options = ["--folder", ROOT / "examples", "--server", server.address]
    assert run(capsys, rows, "--output", tmp_path / "out", *options)[0] == 0
    answers = [
        each["response"]["body"]["choices"][0]["message"]["content"] for each in lines(tmp_path / "out/output.jsonl")
    ]
    assert answers == ["right"] * 4
    assert len(server.client().files.list().data) == before + 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.jsonl", "--output", "out"], "dataset none.jsonl cannot be read"),
        (["rows.jsonl", "--output", "out", "--model", "no/such-model-here"], "no/such-model-here"),
        (["rows.jsonl", "--output", "out", "--server", "localhost"], "'localhost' is no server"),
        (["rows.jsonl", "--output", "out", "--server", "http://127.0.0.1:9"], "no server answers: http://127.0.0.1:9"),
        (["rows.jsonl", "--output", "out", "--server", "http://x", "--attn", "eager"], "--attn is of a model here"),
        (["rows.jsonl", "--output", "out", "--server", "http://x", "--isolate"], "--isolate is of a model here"),
        (["rows.jsonl", "--output", "out", "--server-key-env", "X"], "means nothing without --server"),
        (["models.jsonl", "--output", "out"], "the rows name several models (a, b)"),
        (["rows.jsonl", "--output", "rows.jsonl/out"], "cannot be used"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_caller_is_one_line(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [{"question": "?"}])
    bodies = [{"custom_id": name, "body": {"model": name, "messages": []}} for name in "ab"]
    Path("models.jsonl").write_text("".join(json.dumps(body) + "\n" for body in bodies))
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("longview: ")
    assert err.count("\n") == 1


def start(rows: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "longview", "batch", str(rows), "--output", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(started: subprocess.Popen, journal: Path, least: int) -> None:
    """Kill the program when so many lines are in the journal; 0: while it opens the model."""
    if least:
        assert eventually(lambda: num_lines(journal) > least or started.poll() is not None, 120)
    else:
        time.sleep(1.0)
    workers = children(started.pid)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert eventually(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers), 10)


@pytest.mark.slow  # eight starts of the program
def test_the_program_killed_at_several_moments_ends_as_one_that_was_not(tmp_path):
    picture = {"question": "What colour is the star?", "image": data_uri("shapes.jpg"), "min_tokens": 20}
    film = {"question": "What happens?", "video": str(ROOT / "examples" / "clip.mp4")}
    rows = write(tmp_path, [{"id": n, "max_tokens": 20, **(picture if n % 3 else film)} for n in range(600)])
    for least in (0, 1, 50, 200, 350, 500):
        kill(start(rows, tmp_path / "out"), tmp_path / "out" / "journal.jsonl", least)
    for output in ("out", "whole"):
        _, errors = (ended := start(rows, tmp_path / output)).communicate(timeout=300)
        assert (ended.returncode, errors) == (0, "")
    killed, whole = (lines(tmp_path / output / "output.jsonl") for output in ("out", "whole"))
    assert [each["custom_id"] for each in killed] == [str(n) for n in range(600)]
    assert stable(killed) == stable(whole)


@pytest.mark.slow  # ten thousand rows take minutes
def test_ten_thousand_rows_of_the_demo_do_not_grow_the_memory(tmp_path):
    rows = write(tmp_path, [{"question": f"What is {n}?", "max_tokens": 1} for n in range(10_000)])
    started = start(rows, tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    sizes = []
    while started.poll() is None:
        if num_lines(journal) > 1000:
            pids = [started.pid, *children(started.pid)]
            sizes.append(sum(resident(pid) for pid in pids))
        time.sleep(1.0)
    assert started.returncode == 0
    assert num_lines(tmp_path / "out" / "output.jsonl") == 10_000
    third = len(sizes) // 3
    assert max(sizes[-third:]) - max(sizes[:third]) < 64 << 20


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def resident(pid: int) -> int:
    try:
        found = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in found.splitlines() if line.startswith("VmRSS"))
