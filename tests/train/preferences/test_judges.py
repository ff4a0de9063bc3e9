"""Whether an answer is right, by the true answer and by a model behind HTTP."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from longview.errors import RequestError
from longview.train.preferences import remote
from longview.train.preferences.judges import final_answer, is_true_answer, means_true_answer
from longview.train.preferences.remote import JudgeOptions, RemoteJudge, verdict_in


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("First 2. Then 3. The answer is 5.", "5"),
        ("The answer is 4? No: the answer is: **5**.\nDone.", "5"),
        (r"So \boxed{12}.", "12"),
        ("Answer: B", "B"),
        ("It is 5.", None),
        ("the answer is", None),
    ],
)
def test_the_final_answer_stands_last_behind_the_answer_is(answer, final):
    assert final_answer(answer) == final


@pytest.mark.parametrize(
    ("answer", "truth", "style", "verdict"),
    [
        (" red \n", "red", "direct", True),
        ("Red", "red", "direct", False),
        ("It is red. The answer is red.", "red", "cot", True),
        ("It is red. The answer is red.", "red.", "cot", True),
        ("It is red. The answer is blue.", "red", "cot", False),
        ("It is red.", "red", "cot", None),
    ],
)
def test_an_exact_answer_is_the_true_one_letter_for_letter(answer, truth, style, verdict):
    assert is_true_answer(answer, truth, style) is verdict


@pytest.mark.parametrize(
    ("answer", "truth", "verdict"),
    [
        ("B", "B", True),
        ("(B) a cat", "B", True),
        ("B. a cat", "(B)", True),
        ("The answer is B.", "B.", True),
        ("Option C", "B", False),
        ("A cat sits there", "A", None),
        ("a cat", "B. a cat", None),
        ("Yes, it is.", "yes", True),
        ("no", "yes", False),
        ("perhaps", "yes", None),
        ("1,200", "1200", True),
        ("0.50", "1/2", True),
        ("12 cm", "12", True),
        ("$3", "3", True),
        ("13", "12", False),
        ("between 2 and 3", "2", None),
        ("-4", "4", False),
        ("The Red square.", "red square", True),
        ("a red square", "the red circle", False),
        ("x2", "2", None),
        ("1/0", "3", None),
    ],
)
def test_a_parsed_answer_means_the_same_option_number_or_words(answer, truth, verdict):
    assert means_true_answer(answer, truth) is verdict


def test_a_step_by_step_answer_without_an_end_has_no_verdict():
    assert means_true_answer("2 and 2 is 4", "4", "cot") is None
    assert means_true_answer("2 and 2 is 5. The answer is 4.", "4", "cot") is True
    assert means_true_answer("2 and 2 is 4. The answer is 5.", "4", "cot") is False


# ── behind HTTP ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """An OpenAI-compatible server that says what it is given: texts, or (status, headers)."""

    def __init__(self, *replies):
        self.replies, self.asked, lock = list(replies), [], threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append((self.path, dict(self.headers), body))
                    reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                status, headers, data = reply if isinstance(reply, tuple) else (200, {}, completion(reply))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.01)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("RIGHT", True), ("wrong.", False), ("Incorrect", False), ("It looks wrong, but: RIGHT", True), ("?", None)],
)
def test_the_last_of_the_two_words_counts(reply, verdict):
    assert verdict_in(reply) is verdict


def test_a_remote_judge_is_told_question_truth_and_answer():
    with Server("RIGHT", "WRONG") as server:
        judge = RemoteJudge(server.url + "/", "a-model", "secret")
        assert judge("How many?", "two", ["2", "3"], "direct") == [True, False]
    (path, headers, body), (_, _, second) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("a-model", 0)
    told = body["messages"][-1]["content"]
    assert "How many?" in told
    assert "two" in told
    assert "Answer to be judged:\n2" in told
    assert "Answer to be judged:\n3" in second["messages"][-1]["content"]


@pytest.mark.parametrize(
    "broken", [(503, {}, b""), (429, {"Retry-After": "0"}, b""), (200, {}, b"[]"), (200, {}, b"<")]
)
def test_what_may_pass_is_tried_again(impatient, broken):
    with Server(broken, broken, "RIGHT") as server:
        assert RemoteJudge(server.url, "m")("?", "a", ["a"], "direct") == [True]
    assert len(server.asked) == 3


def test_tries_are_bounded(impatient):
    with (
        Server((500, {}, b"")) as server,
        pytest.raises(RequestError, match=r"does not answer \(500 .*, after 4 tries"),
    ):
        RemoteJudge(server.url, "m")("?", "a", ["a"], "direct")
    assert len(server.asked) == remote.TRIES
    with pytest.raises(RequestError, match="does not answer"):  # nobody listens there now
        RemoteJudge(server.url, "m")("?", "a", ["a"], "direct")


def test_a_refusal_is_not_tried_again(impatient):
    refusal = (401, {}, b'{"error": "no such\nkey"}')
    with Server(refusal) as server, pytest.raises(RequestError, match=r"refuses \(401: .*no such key"):
        RemoteJudge(server.url, "m")("?", "a", ["a"], "direct")
    assert len(server.asked) == 1


def test_a_redirect_takes_the_key_nowhere(impatient):
    with Server("RIGHT") as other, Server((302, {"Location": other.url}, b"")) as server:
        with pytest.raises(RequestError, match="refuses"):
            RemoteJudge(server.url, "m", "secret")("?", "a", ["a"], "direct")
        assert other.asked == []


def test_a_judge_that_hangs_is_given_up(impatient, monkeypatch):
    import socket

    monkeypatch.setattr(remote, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        judge = RemoteJudge(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "m", seconds=0.05)
        with pytest.raises(RequestError, match="timed out"):
            judge("?", "a", ["a"], "direct")


def test_waiting_can_be_given_up(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 30.0)
    with Server((500, {}, b"")) as server:
        judge = RemoteJudge(server.url, "m")
        threading.Timer(0.1, judge.close).start()
        began = time.monotonic()
        with pytest.raises(RequestError):
            judge("?", "a", ["a"], "direct")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"judge": "parser"}, "did you mean 'parse'"),
        ({"judge_model": "x"}, "judge_model means nothing to judge 'parse'"),
        ({"judge": "openai", "judge_url": "http://x/v1"}, "needs --judge-url and --judge-model"),
        ({"judge": "openai", "judge_url": "x/v1", "judge_model": "m"}, "give an http"),
        ({"judge": "openai", "judge_url": "http://x", "judge_model": "m", "judge_key_env": "NOT_SET"}, "is not set"),
    ],
)
def test_options_of_a_judge_that_contradict_each_other_are_refused(options, told):
    with pytest.raises(RequestError, match=told):
        JudgeOptions(**options)


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_KEY", "abc")
    with Server("RIGHT") as server:
        options = JudgeOptions("openai", server.url, "m", "MY_KEY")
        assert options.open()("?", "a", ["a"], "cot") == [True]
    assert server.asked[0][1]["Authorization"] == "Bearer abc"
