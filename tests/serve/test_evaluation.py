"""longview eval --server: the same answers as from the engine; other servers; servers that go away."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from evaluations import measure, mmbench_rows, write_tsv

import longview
from longview.errors import RequestError
from longview.eval.ask import EngineAsker
from longview.eval.run import Plan, run
from longview.eval.server import Client, ServerAsker
from longview.eval.tasks import Options, find_task


@pytest.fixture(scope="module")
def engine():
    return longview.load("demo")


@pytest.fixture
def data(tmp_path):
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", mmbench_rows(3))
    return tmp_path


def answers(result) -> list:
    return [(sample["id"], sample["prompt"], sample.get("answer"), sample["score"]) for sample in result.samples]


def both(server, engine, task, options, **more) -> list:
    found = find_task(task)
    items = found.items(options)
    askers = EngineAsker(engine), ServerAsker(Client(server.address, "demo"))
    return [run(Plan(found, items, asker, options, **more)) for asker in askers]


def test_a_longview_server_gives_the_answers_of_the_engine(server, engine, data):
    mine, theirs = both(server, engine, "mmbench_en", Options(data))
    assert answers(mine) == answers(theirs)
    assert theirs.numbers["family"] == "owl3"
    assert theirs.numbers["protocol"] == mine.numbers["protocol"]
    groups = ("two pictures", "clip")
    mine, theirs = both(server, engine, "world", Options(per_kind=1, groups=groups))
    assert answers(mine) == answers(theirs)
    assert mine.numbers["score"] > 50
    frames = [[frame.get("index") for frame in sample["frames"]] for sample in mine.samples]
    assert frames == [[frame.get("index") for frame in sample["frames"]] for sample in theirs.samples]


def test_a_longview_server_chooses_by_probability_as_the_engine_does(server, engine, data):
    mine, theirs = both(server, engine, "mmbench_en", Options(data), mode="probability")
    assert answers(mine) == answers(theirs)


def test_a_servers_models_are_named_where_one_has_to_be_chosen(server):
    with pytest.raises(RequestError, match="has no model 'owl'; it has demo"):
        Client(server.address, "owl")


class Foreign(BaseHTTPRequestHandler):
    """Another's server: one model, which says "A" so many times, and then fails or refuses."""

    said = 0
    last = 10**9
    status = 500

    def do_GET(self):
        self._reply(200, {"object": "list", "data": [{"id": "foreign", "object": "model", "owned_by": "someone"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).body = body
        if type(self).said >= type(self).last:
            self._reply(type(self).status, {"error": {"message": "out of order", "type": "x"}})
            return
        type(self).said += 1
        message = {"role": "assistant", "content": "A"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "foreign",
            "choices": choices,
            "usage": usage,
        }
        self._reply(200, reply)

    def _reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def foreign():
    handler = type("Handler", (Foreign,), {})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    listening.handler = handler
    yield listening
    listening.shutdown()
    listening.server_close()


def client(foreign) -> Client:
    return Client(f"http://127.0.0.1:{foreign.server_port}/v1", retries=0)


def test_another_server_is_asked_in_openais_words(foreign, data):
    found = measure("mmbench_en", ServerAsker(client(foreign)), data)
    assert (found.numbers["model"], found.numbers["score"], found.numbers["unparsed"]) == ("foreign", 0, 0)
    body = foreign.handler.body
    assert body.keys() == {"model", "messages", "max_tokens", "temperature"}
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert picture["image_url"]["detail"] == "high"
    assert text["text"].startswith("Context: ")
    with pytest.raises(RequestError, match="needs a longview server"):
        measure("mmbench_en", ServerAsker(client(foreign)), data, mode="probability")


def test_what_was_answered_before_a_server_failed_is_kept(foreign, data, tmp_path):
    foreign.handler.last = 5
    with pytest.raises(RequestError, match=r"says 500: out of order; .* finished answers are kept"):
        measure("mmbench_en", ServerAsker(client(foreign), threads=1), data, tmp_path / "run")
    with pytest.raises(RequestError, match="finished answers are not kept without --output FOLDER"):
        measure("mmbench_en", ServerAsker(client(foreign), threads=1), data)
    kept = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 5
    foreign.handler.last = 10**9
    found = measure("mmbench_en", ServerAsker(client(foreign)), data, tmp_path / "run")
    assert found.numbers["failed"] == 0
    assert foreign.handler.said == found.numbers["answers"]


def test_a_question_that_a_server_refuses_fails_alone(foreign, data):
    foreign.handler.last, foreign.handler.status = 5, 400
    found = measure("mmbench_en", ServerAsker(client(foreign), threads=1), data)
    assert found.numbers["failed"] == found.numbers["answers"] - 5
    assert "says 400: out of order" in found.samples[-1]["error"]
