""".ci/gpu: its commands are commands of `longview bench`, and a dry run writes results."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from longview.bench.report import Result
from longview.bench.subject import DIMENSIONS
from longview.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    loader = importlib.machinery.SourceFileLoader("gpu_script", str(ROOT / ".ci" / "gpu"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_script", loader))
    loader.exec_module(module)
    return module


def test_its_commands_are_commands_of_bench(script):
    bench = typer.main.get_command(app).commands["bench"]
    for name, command in script.MEASURES.items():
        arguments = command.split()
        with bench.make_context("bench", list(arguments)) as context:
            assert context.params["dims"] in DIMENSIONS, name
        with bench.make_context("bench", script.dry(arguments)) as context:
            assert context.params["dims"] == "demo", name


def test_a_dry_run_writes_a_result(tmp_path):
    command = [sys.executable, str(ROOT / ".ci" / "gpu"), "--output", str(tmp_path), "--dry-run"]
    done = subprocess.run([*command, "--only", "memory-owl3-7b"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Result.read(tmp_path / "gpu-memory-owl3-7b.json").measure == "memory"
    wrong = subprocess.run([*command, "--only", "memory"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "unknown measure 'memory'" in wrong.stderr
