"""The programs in docs/serve.md do what it shows."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from serving import ROOT, running

PROGRAM = re.compile(r"^```py\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def open_server():
    with running("--media-root", str(ROOT / "examples")) as started:
        yield started


@pytest.mark.parametrize(("program", "shown"), PROGRAM.findall(PAGE))
def test_a_program_of_the_page_prints_what_it_shows(open_server, monkeypatch, program, shown):
    monkeypatch.chdir(ROOT)
    program = program.replace("http://127.0.0.1:8000", open_server.address)
    program = program.replace("file:///films", (ROOT / "examples").as_uri())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "docs/serve.md", "exec"), {})
    assert printed.getvalue() == shown or not shown, printed.getvalue()
    assert printed.getvalue()


def test_every_route_is_in_the_page():
    import json

    for path in json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]:
        assert path.partition("{")[0].rstrip("/") in PAGE, path
