"""`longview bench serve`: what it asks, what it says of the answers, and runs against servers, real and scripted."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from longview.bench import serving
from longview.bench.load import Judge, ask_one, run_clients
from longview.bench.serving import LoadOptions, own_server, serve
from longview.bench.workload import CYCLE, QUESTIONS_EACH, make_requests
from longview.errors import RequestError
from longview.http_client import Client
from longview.media import open_media


def test_the_kinds_come_in_turn_and_no_two_share_a_picture():
    made = make_requests(16, 1, "m", 4, frames=3)
    assert [each.kind for each in made] == [*CYCLE, *CYCLE]
    pictures = [each.messages[0].media[0].source for each in made if each.kind == "picture"]
    assert len(set(pictures)) == len(pictures)
    assert [each.body for each in made] == [each.body for each in make_requests(16, 1, "m", 4, frames=3)]
    again = {each.body for each in make_requests(16, 2, "m", 4, frames=3) if each.kind != "text"}
    assert not again & {each.body for each in made}


def test_a_few_questions_are_asked_about_each_video_of_so_many_frames():
    made = make_requests(2 * QUESTIONS_EACH, 1, "m", 4, ["video"], frames=5)
    sources = [each.messages[0].media[0].source for each in made]
    assert len(set(sources)) == 2
    assert len(set(sources[:QUESTIONS_EACH])) == 1
    (medium,) = open_media(made[0].messages[0].media)
    assert medium.num_frames == 5
    assert json.loads(made[0].body)["media_io_kwargs"] == {"video": {"num_frames": 5}}


def test_an_answer_is_its_own_if_its_first_known_word_is():
    (asked,) = make_requests(1, 3, "m", 4, ["picture"])
    other = "zoo" if asked.word != "zoo" else "tea"
    assert asked.is_answered_by(f"It says “{asked.word.upper()}”, not {other}.")
    assert not asked.is_answered_by(f"{other} {asked.word}")
    assert not asked.is_answered_by("")


class Scripted(BaseHTTPRequestHandler):
    """A server whose answer to a picture is a function of how often it was asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        asked = self.server.asked  # type: ignore[attr-defined]
        times = asked[data] = asked.get(data, 0) + 1
        status, events = self.server.answer(times)  # type: ignore[attr-defined]
        body = "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in events).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.asked = {}  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def said(*texts: str) -> list:
    return [*({"choices": [{"delta": {"content": text}}]} for text in texts), "[DONE]"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda times: (200, said("no", "thing")), "misread"),
        (lambda times: (200, said("zebra") if times == 1 else said("nothing")), "crossed"),
        (lambda times: (200, said("nothing")[:-1]), "lost"),
        (lambda times: (200, [{"error": {"message": "out of memory"}}]), "errors"),
        (lambda times: (503, ["busy"]), "errors"),
    ],
)
def test_answers_are_judged_by_those_to_the_same_request_alone(scripted, answer, verdict):
    scripted.answer = answer
    client = Client(f"http://127.0.0.1:{scripted.server_port}")

    async def run():
        seen, _ = await run_clients(client, make_requests(3, 1, "m", 4, ["picture"]), 2)
        return await Judge(client).judge(seen)

    found = asyncio.run(run())
    assert getattr(found, verdict) == 3
    assert sum((found.errors, found.lost, found.crossed, found.misread, found.unchecked, found.right)) == 3


def test_texts_are_timed_as_they_come(scripted):
    scripted.answer = lambda times: (200, said("a", "b", "", "c"))
    client = Client(f"http://127.0.0.1:{scripted.server_port}")
    seen = asyncio.run(ask_one(client, make_requests(1, 1, "m", 4, ["text"])[0]))
    assert (seen.text, seen.finished, len(seen.gaps)) == ("abc", True, 2)
    assert 0 < seen.first <= seen.whole


def test_percentiles_and_medians_of_runs():
    found = serving._percentiles("s", [float(n) for n in range(100)])
    assert found == {"s p50": 50.0, "s p95": 95.0, "s p99": 99.0}
    assert serving._percentiles("s", []) == {"s p50": None, "s p95": None, "s p99": None}
    runs = [{"clients": 2, "requests/s": rate, "errors": 1} for rate in (1.0, 9.0, 4.0)]
    assert serving._middle(runs) == {"clients": 2, "requests/s": 4.0, "errors": 3}


def test_a_run_against_a_server_of_its_own_loses_and_crosses_nothing(monkeypatch):
    monkeypatch.setattr(serving, "IDLE_STREAMS", 16)
    monkeypatch.setattr(serving, "BEHIND", 2)
    monkeypatch.setattr(serving, "ENGINE", 4)
    options = LoadOptions(clients=(1, 4), tokens=3, repeats=1, frames=4, requests=8)
    with own_server("demo", {}) as (address, pid):
        assert serving.resident(pid) > 100 << 20
        assert serving.processor_seconds(pid) > 0.5
        result = serve("bench", {}, LoadOptions(**{**vars(options), "url": address}))
        assert [row["clients"] for row in result.rows] == [1, 4]
        for row in result.rows:
            assert (row["errors"], row["lost"], row["crossed"], row["unchecked"]) == (0, 0, 0, 0)
            assert row["right"] + row["misread"] == 8
            assert row["right"] >= 3  # of four with a picture or a video
            assert row["first token s p50"] <= row["first token s p99"]
        assert result.settings["server"] == "another"
        assert "× the requests/s of one" in result.findings[0]
        assert "Behind 2 clients that ask about videos" in result.findings[1]
        with pytest.raises(RequestError, match="has no model demo; it serves bench"):
            serve("demo", {}, LoadOptions(url=address))
        bench = serving._Bench(Client(address), "demo", pid, {}, options)
        bench._model = "bench"
        assert "16 open streams cost" in asyncio.run(bench._idle_streams(pid))


def test_where_there_is_no_server_it_says_so():
    with pytest.raises(RequestError, match="does not answer"):
        serve(None, {}, LoadOptions(url="http://127.0.0.1:9"))


def test_the_command_says_how_many_requests_a_run_has(monkeypatch):
    from typer.testing import CliRunner

    from longview.bench.report import Result
    from longview.cli import app

    given = []
    made = Result("serve", "", {"dims": "demo"}, [{"clients": 1}])
    monkeypatch.setattr(serving, "serve", lambda dims, load, options: given.append(options.requests) or made)
    for options in (["--requests", "5"], []):
        done = CliRunner().invoke(app, ["bench", "serve", "--clients", "1", *options])
        assert done.exit_code == 0, done.output
    assert given == [5, 0]
