"""The walks of docs/retrieval.md print what they show, one command after another, in a folder of their own."""

from __future__ import annotations

import re
import runpy
import shlex
import sys

import pytest
from test_readme import ROOT, assert_as_shown, blocks

from longview.cli import main

WALKS = [text for language, text in blocks(ROOT / "docs" / "retrieval.md") if language == "shell"]


def test_a_walk_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    assert len(WALKS) == 2
    monkeypatch.chdir(tmp_path)
    for shown in [step for walk in WALKS for step in re.split(r"^\$ ", walk, flags=re.MULTILINE)[1:]]:
        command, _, output = shown.partition("\n")
        program, *words = shlex.split(command)
        if program == "python":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        else:
            assert program == "longview"
            with pytest.raises(SystemExit):
                main(words)
        assert_as_shown(capsys.readouterr().out, output)
