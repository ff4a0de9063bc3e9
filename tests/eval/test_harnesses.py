"""Other evaluators ask a longview server, and its answers are those of `longview eval`, one by one.

Each has an environment of its own, as their dependencies and ours do not fit into one:

    python -m venv evalscope && evalscope/bin/pip install evalscope==1.14.1
    python -m venv lmms && lmms/bin/pip install --no-deps lmms-eval==0.7.3  # and what docs/evaluation.md lists

    LONGVIEW_EVALSCOPE=evalscope/bin/evalscope LONGVIEW_LMMS_EVAL=lmms/bin/lmms-eval \\
        pytest -n 0 -m slow tests/eval/test_harnesses.py
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import KEY, Server, running

import longview
from longview.eval.ask import EngineAsker
from longview.eval.export import export
from longview.eval.run import Plan, run
from longview.eval.tasks import Options, find_task

TASKS = Path(__file__).parents[2] / "examples" / "lmms_eval"
PROGRAMS = {name: os.environ.get(f"LONGVIEW_{name}") for name in ("EVALSCOPE", "LMMS_EVAL")}
MAX_TOKENS = 24
pytestmark = pytest.mark.slow


def program(name: str) -> str:
    found = PROGRAMS[name]
    if not found:
        pytest.skip(f"LONGVIEW_{name} does not name the program in its environment")
    return str(Path(found).resolve())


def asked(command: list[str], folder: Path) -> None:
    """A run that succeeds; of our environment it sees nothing."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    clean |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty questions about pictures of the world, as `longview eval export` writes them."""
    path = tmp_path_factory.mktemp("harnesses")
    world = find_task("world")
    items = [item for item in world.unexpanded(Options(per_kind=4)) if all(x.kind == "image" for x in item.shown)]
    # one in four of the first eighty, so that questions about one picture and about several are among them
    export("messages", items[:80:4], world.protocol(None)[1], "evalscope", path / "exported")
    return path


@pytest.fixture(scope="module")
def ours(folder) -> list[str]:
    """What `longview eval` is answered, by an engine in this process."""
    task = find_task("messages")
    items = task.items(Options(folder / "exported" / "messages_test.jsonl"))
    assert len(items) == 20
    assert {len(item.shown) for item in items} > {1}
    found = run(Plan(task, items, EngineAsker(longview.load("demo")), max_tokens=MAX_TOKENS))
    answers = [sample["answer"] for sample in found.samples]
    assert len(set(answers)) > 5  # they tell questions apart
    return answers


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--model", "demo") as found:
        yield found


def test_evalscope_is_given_the_same_answers(folder, ours, server):
    data = {"general_vqa": {"local_path": str(folder / "exported"), "subset_list": ["messages"]}}
    asked(
        [program("EVALSCOPE"), "eval", "--eval-type", "openai_api", "--api-url", f"{server.address}/v1", "--api-key",
         KEY, "--model", "demo", "--datasets", "general_vqa", "--dataset-args", json.dumps(data),
         "--generation-config", json.dumps({"temperature": 0, "max_tokens": MAX_TOKENS}), "--work-dir", "evalscope"],
        folder,
    )  # fmt: skip
    (path,) = (folder / "evalscope").glob("*/predictions/demo/general_vqa_messages.jsonl")
    said = {row["index"]: row["model_output"]["choices"][0]["message"]["content"] for row in lines(path)}
    assert [said[number] for number in range(20)] == ours


def test_lmms_eval_is_given_the_same_answers(folder, ours, server):
    tasks = folder / "tasks"
    tasks.mkdir()
    for path in TASKS.iterdir():
        if path.is_file():
            text = path.read_text().replace("max_new_tokens: 1024", f"max_new_tokens: {MAX_TOKENS}")
            (tasks / path.name).write_text(text)
    model = f"model_version=demo,base_url={server.address}/v1,api_key={KEY},timeout=120,num_concurrent=2"
    asked(
        [program("LMMS_EVAL"), "--model", "openai", "--model_args", model, "--include_path", str(tasks), "--tasks",
         "longview_exported", "--batch_size", "1", "--log_samples", "--output_path", "lmms"],
        folder,
    )  # fmt: skip
    (path,) = (folder / "lmms").rglob("*_samples_longview_exported.jsonl")
    said = {int(row["doc_id"]): row["filtered_resps"] for row in lines(path)}
    assert [said[number] for number in range(20)] == ours
