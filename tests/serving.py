"""A server in a process of its own, with the embedded demo; questions for it in OpenAI's form."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai

ROOT = Path(__file__).parents[1]
START_SECONDS = 180  # on a busy machine
KEY = "not needed"


class Server:
    """`longview serve`, started, with some options; without its page, which takes seconds, unless that is wanted."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None, page: bool = False) -> None:
        port = [] if "--to" in options else ["--port", "0"]  # with --to, its models join another server
        command = [sys.executable, "-m", "longview", "serve", *port, *options]
        if not (page or "--to" in options):
            command.append("--no-page")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        if not self.said:
            assert self.process.stderr is not None
            raise RuntimeError(self.process.stderr.read())
        self.address = self.said.split()[-1]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def client(self, key: str = KEY, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=120, **options)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; returns the exit status and what was written on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextlib.contextmanager
def running(*options: str, **more) -> Iterator[Server]:
    """A server that is stopped at the end, whatever happens."""
    server = Server(*options, **more)
    try:
        yield server
    finally:
        server.stop()


def data_uri(name: str, kind: str = "image/jpeg") -> str:
    """A file of examples/ as a data URI."""
    return f"data:{kind};base64,{base64.b64encode((ROOT / 'examples' / name).read_bytes()).decode()}"


def shapes(question: str = "What colour is the star?") -> list[dict]:
    """A question about examples/shapes.jpg, whose answer is "blue"."""
    picture = {"type": "image_url", "image_url": {"url": data_uri("shapes.jpg")}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


def clip(question: str = "What happens?") -> list[dict]:
    """A question about examples/clip.mp4."""
    video = {"type": "video_url", "video_url": {"url": data_uri("clip.mp4", "video/mp4")}}
    return [{"role": "user", "content": [video, {"type": "text", "text": question}]}]


def eventually(happens, seconds: float) -> bool:
    """Whether something becomes true in so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if happens():
            return True
        time.sleep(0.02)
    return bool(happens())
