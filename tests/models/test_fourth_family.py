"""One folder is enough: a family that the package knows nothing of is found, answers, learns, and keeps every law."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fourth_family" / "halves"
PLUGIN = """
import longview.models
longview.models.__path__.append({folder!r})
"""
PROGRAM = """
import json, sys
import with_halves
from transformers import PreTrainedTokenizerFast
from longview.cli import main
from longview.models.halves import Config, Model, Processor

place, verbs = sys.argv[1], json.loads(sys.argv[2])
config = Config.tiny()
Model(config).save_pretrained(place)
Processor(PreTrainedTokenizerFast.from_pretrained(place), config).save_pretrained(place)
for verb in verbs:
    try:
        main(verb)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{verb} ended with {ended.code}")
"""


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder with the family, and with a module that adds it to the path where families are looked for."""
    shutil.copytree(EXAMPLE, tmp_path / "families" / "halves", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "with_halves.py").write_text(PLUGIN.format(folder=str(tmp_path / "families")))
    return tmp_path


def run(place: Path, *command: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(place), str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *command], cwd=place, env=env, capture_output=True, text=True, timeout=400)


def test_a_family_in_a_folder_of_its_own_answers_and_learns_by_the_program(outside, tokenizer):
    tokenizer.save_pretrained(outside / "model")
    Image.new("RGB", (40, 30), "red").save(outside / "red.png")
    row = {"image": "red.png", "query": "<image>\nColour?", "response": "red"}
    (outside / "rows.jsonl").write_text(json.dumps(row) + "\n")
    stage = {"name": "tune", "objective": "supervised", "train": ["connector", "language"], "steps": 1, "warmup": 0,
             "data": {"batch": 1, "datasets": [{"path": "rows.jsonl"}]}}  # fmt: skip
    recipe = {"model": {"start": "model"}, "stages": [stage]}
    (outside / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    question = ["red.png", "Which colour?", "--max-tokens", "4"]
    verbs = [
        ["info", "model"],
        ["ask", "--model", "model", *question],
        ["train", "recipe.yaml", "--output", "run"],
        ["ask", "--json", "--model", "run/model", *question],
    ]
    (outside / "program.py").write_text(PROGRAM)
    ran = run(outside, "program.py", "model", json.dumps(verbs))
    assert not ran.returncode, ran.stderr[-3000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    assert answer["usage"]["visual_tokens"] == 2
    losses = [json.loads(line)["loss"] for line in (outside / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 1


def test_a_family_in_a_folder_of_its_own_keeps_the_contract_and_inherits_the_laws(outside):
    tests = [
        str(ROOT / "tests" / "models" / name) for name in ("test_contract.py", "test_laws.py", "test_evidence_laws.py")
    ]
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "with_halves", "-p", "no:cacheprovider", "-k", "halves"]
    ran = run(outside, "-m", "pytest", *options, *tests)
    assert not ran.returncode, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert ran.stdout.count(".") > 20, "as many tests as every family has"
