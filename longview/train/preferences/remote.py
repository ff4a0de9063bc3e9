"""A judge behind an OpenAI-compatible server: is the answer right, given the question and the true answer?"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longview.errors import RequestError
from longview.settings import setting, validate
from longview.train.preferences.judges import TRUTH_JUDGES, Judge, Verdict
from longview.train.preferences.settings import Style

TRIES = 4
"""Of one question to the judge, before it is given up."""
WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second try, twice as many before each further one; at most, whatever the server asks for."""
MAX_REPLY = 1 << 20
"""Bytes of a reply."""
PASSING = (408, 409, 425, 429)
"""States of HTTP that may pass, besides 500 and above."""

INSTRUCTION = (
    "You compare an answer with the true answer to a question about pictures or videos that you cannot see. Reply with "
    "one word: RIGHT if the answer, at its end, means the same as the true answer, and WRONG if it does not."
)
QUESTION = "Question:\n{question}\n\nTrue answer:\n{truth}\n\nAnswer to be judged:\n{answer}\n\nRIGHT or WRONG?"


@dataclass(frozen=True)
class JudgeOptions:
    """The judge

    Raises:
        RequestError: a value out of range, or options that contradict each other.
    """

    judge: str = setting(
        "parse",
        "parse: the same option, number, yes or no, or words as the row's answer; exact: letter for letter; openai: "
        "what a model behind --judge-url says.",
        choices=(*TRUTH_JUDGES, "openai"),
    )
    judge_url: str | None = setting(None, "OpenAI-compatible server, as in http://127.0.0.1:8000/v1.")
    judge_model: str | None = setting(None, "The model there.")
    judge_key_env: str | None = setting(None, "Environment variable that holds the key it wants.")
    judge_seconds: float = setting(60.0, "Seconds that it may take for one answer.", low=0, above=True)

    def __post_init__(self) -> None:
        validate(self)
        given = next((name for name in ("judge_url", "judge_model", "judge_key_env") if getattr(self, name)), None)
        if self.judge != "openai":
            if given:
                raise RequestError(
                    f"{given} means nothing to judge {self.judge!r}; add --judge openai, or leave it out"
                )
            return
        if not self.judge_url or not self.judge_model:
            raise RequestError("judge 'openai' needs --judge-url and --judge-model; give both")
        if not re.match(r"https?://[^\s/]", self.judge_url):
            raise RequestError(f"judge_url is {self.judge_url!r:.80}; give an http(s) address as far as /v1")
        if self.judge_key_env and not os.environ.get(self.judge_key_env):
            raise RequestError(f"judge_key_env names {self.judge_key_env!r:.80}, which is not set; set it to the key")

    def open(self) -> Judge:
        if self.judge != "openai":
            return TRUTH_JUDGES[self.judge]
        assert self.judge_url is not None
        assert self.judge_model is not None
        key = os.environ[self.judge_key_env] if self.judge_key_env else None
        return RemoteJudge(self.judge_url, self.judge_model, key, self.judge_seconds)


class RemoteJudge:
    """A model behind `POST {url}/chat/completions`.

    Args:
        key: Sent as `Authorization: Bearer`, to this address only: redirects are not followed.
        seconds: For one reply.
    """

    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = 60.0) -> None:
        self.name = f"openai {model}"
        self._address, self._model, self._seconds = url.rstrip("/") + "/chat/completions", model, seconds
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._closed = threading.Event()

    def __call__(self, question: str, truth: str, answers: Sequence[str], style: Style) -> list[Verdict]:
        """
        Raises:
            RequestError: no reply after all tries, or one that refuses.
        """
        return [
            verdict_in(self._ask(QUESTION.format(question=question, truth=truth, answer=answer))) for answer in answers
        ]

    def close(self) -> None:
        """Give up waiting, in whichever thread."""
        self._closed.set()

    def _ask(self, text: str) -> str:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
        body = json.dumps({"model": self._model, "messages": messages, "temperature": 0}).encode()
        reason = "stopped"
        for tried in range(TRIES):
            try:
                return self._post(body)
            except _PassingError as error:
                reason, wait = error.reason, min(LONGEST_WAIT, error.wait or WAIT * 2**tried)
            if tried < TRIES - 1 and self._closed.wait(wait):
                break
        raise RequestError(f"the judge at {self._address} does not answer ({reason}, after {TRIES} tries); see that "
                           "it runs")  # fmt: skip

    def _post(self, body: bytes) -> str:
        request = urllib.request.Request(self._address, body, self._headers)
        try:
            with self._opener.open(request, timeout=self._seconds) as response:
                return _content(response.read(MAX_REPLY))
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
            if error.code < 500 and error.code not in PASSING:
                raise RequestError(
                    f"the judge at {self._address} refuses ({error.code}: {said or error.reason}); check --judge-url, "
                    "--judge-model and the key"
                ) from None
            raise _PassingError(f"{error.code} {error.reason}", _seconds(error.headers.get("Retry-After"))) from None
        except (OSError, http.client.HTTPException) as error:  # refused, reset, cut short, no such host, out of time
            raise _PassingError(str(getattr(error, "reason", error)) or type(error).__name__) from None


class _PassingError(Exception):
    """A failure that may pass. `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _seconds(header: str | None) -> float | None:
    return float(header) if header and re.fullmatch(r"[0-9]{1,6}", header.strip()) else None


def _content(reply: bytes) -> str:
    try:
        content = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _PassingError("its reply is no chat completion") from None
    return content if isinstance(content, str) else ""


def verdict_in(reply: str) -> Verdict:
    """The last of the words RIGHT and WRONG in a reply; models that think say others before it."""
    found = re.findall(r"\b(?:in)?correct\b|\bright\b|\bwrong\b", reply, re.IGNORECASE)
    return found[-1].lower() in ("right", "correct") if found else None
