"""longview eval --server: the same answers as from the engine; other servers; servers that go away."""

from __future__ import annotations

import base64
import io
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from evaluations import measure, mmbench_rows, write_tsv
from samples import noise
from serving import ROOT, running, shapes

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


@pytest.fixture(scope="module")
def ovis_server():
    with running("--model", "demo-ovis2") as started:
        yield started


@pytest.fixture(scope="module")
def ovis():
    return longview.load("demo-ovis2")


@pytest.mark.parametrize("mode", ["generate", "probability"])
def test_a_longview_server_cuts_pictures_into_the_protocols_crops(ovis_server, ovis, tmp_path, mode):
    rows = [row | {"image": base64.b64encode(noise_png(n)).decode()} for n, row in enumerate(mmbench_rows(2))]
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    task = find_task("mmbench_en")
    tokens = []
    for most in (12, 1):
        own = replace(task.protocols["ovis2"], max_partition=most)
        cut = replace(task, protocols={"ovis2": own})
        items = cut.items(Options(tmp_path))
        askers = EngineAsker(ovis), ServerAsker(Client(ovis_server.address, "demo-ovis2"))
        mine, theirs = (run(Plan(cut, items, asker, mode=mode, max_tokens=4)) for asker in askers)
        assert answers(mine) == answers(theirs)
        assert mine.numbers["failed"] == 0
        tokens.append([sample.get("tokens") or sample["logprobs"] for sample in theirs.samples])
        if mode == "generate":
            assert tokens[-1] == [sample["tokens"] for sample in mine.samples]
    assert tokens[0] != tokens[1]


def noise_png(seed: int) -> bytes:
    data = io.BytesIO()
    noise(seed, 420, 280).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (0, "longview.max_partition: input should be greater than or equal to 1, not 0"),
        (65, "longview.max_partition: input should be less than or equal to 64, not 65"),
        ("9", "longview.max_partition: input should be a valid integer, not '9'"),
    ],
)
def test_a_wrong_number_of_crops_is_refused(ovis_server, most, said):
    with pytest.raises(openai.BadRequestError) as refusal:
        ovis_server.client().chat.completions.create(
            model="demo-ovis2", messages=shapes(), extra_body={"longview": {"max_partition": most}}
        )
    assert (refusal.value.body["message"], refusal.value.param) == (said, "longview.max_partition")


def test_crops_are_counted_by_a_server_and_refused_by_a_model_that_does_not_ask(ovis_server, server):
    extra = {"longview": {"max_partition": 2}}
    asked = {"messages": shapes(), "max_tokens": 1, "extra_body": extra}
    reply = ovis_server.client().chat.completions.create(model="demo-ovis2", **asked)
    assert reply.model_extra["longview"]["settings"]["max_partition"] == 2
    with pytest.raises(openai.BadRequestError, match="max_partition is how many crops") as refusal:
        server.client().chat.completions.create(model="demo", **asked)
    assert refusal.value.param == "longview"


def test_frames_are_chosen_for_a_choice_by_probability_too(server, engine, tmp_path):
    (tmp_path / "clip.mp4").write_bytes((ROOT / "examples" / "clip.mp4").read_bytes())
    row = {"video": "clip.mp4", "question": "What moves?", "options": ["a star", "a ring"], "answer": "A", "end": 2}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    mine, theirs = both(server, engine, "video_choices", Options(tmp_path / "q.jsonl"), mode="probability")
    assert mine.numbers["failed"] == 0
    assert answers(mine) == answers(theirs)
    (first,), (second,) = mine.samples, theirs.samples
    assert [frame["seconds"] for frame in first["frames"]] == [frame["seconds"] for frame in second["frames"]]
    assert max(frame["seconds"] for frame in first["frames"]) < 2
    ahead = [sample["logprobs"]["A"] - sample["logprobs"]["B"] for sample in (first, second)]
    assert ahead[0] == pytest.approx(ahead[1], abs=1e-4)


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
