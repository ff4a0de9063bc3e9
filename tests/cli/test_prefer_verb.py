"""longview prefer: the embedded model's own answers become pairs, and recipes/dpo.yaml learns from them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from longview.world.questions import ask_about
from longview.world.render import write_picture
from longview.world.scenes import draw_picture

DPO = Path(__file__).parents[2] / "recipes" / "dpo.yaml"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Eight questions about a picture each, and one about a picture that is not there."""
    folder, rng, lines = tmp_path_factory.mktemp("rows"), random.Random(5), []
    for number in range(8):
        question = ask_about(rng, scene := draw_picture(rng, held_out=True))
        write_picture(scene, folder / f"{number}.png", number)
        lines.append({"image": f"{number}.png", "query": f"<image>\n{question.text}", "response": question.answer})
    lines.append({"image": "none.png", "query": "<image>\nWhat is it?", "response": "a star"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "rows.jsonl"


def test_pairs_of_a_models_own_answers_train_a_step(longview, rows, tmp_path):
    pairs, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    command = ("prefer", rows, "--direct", 6, "--cot", 0, "--temperature", 2.5, "--max-tokens", 24, "--true-answer",
               "--output", pairs)  # fmt: skip
    ran = longview(*command)
    assert ran.code == 0, ran
    heading, *table = [line.split("  ")[0].strip() for line in ran.out.splitlines()]
    assert heading == "rows"
    assert "gave a pair" in table
    assert "none: could not be asked" in table
    assert "line 9: there is no file" in ran.err
    again = longview(*command, "--json")  # nothing is left to do
    found = again.json
    written = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert found["rows"] == 9
    assert sum(found["pairs"].values()) == len(written) >= 2
    assert sum(found["outcomes"]["direct"].values()) == 9
    assert f"{found['with_pairs']} of 9 rows gave {len(written)} pairs: {pairs}\n" in ran.out
    stage = ("stages.0.epochs=0", "stages.0.steps=1", "stages.0.data.batch=2", "model.dtype=float32")
    trained = longview(
        "train",
        DPO,
        "model.start=demo",
        f"stages.0.data.datasets.0.path={pairs}",
        *stage,
        "--output",
        run,
        "--answers",
        0,
    )
    assert trained.code == 0, trained
    (line,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert line["samples"] == 2
    assert line["loss"] == pytest.approx(0.6931, abs=1e-3)  # adapters begin as the reference


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--temperature", 0), "temperature 0 gives the same answer each time"),
        (("--direct", 1, "--cot", 0), "one answer makes no pair"),
        (("--logprobs", 2), "logprobs are in no pair"),
        (("--regex", "a+"), "a step-by-step answer follows no --regex"),
        (("--judge", "human"), "unknown judge 'human'"),
        (("--judge-url", "http://x/v1"), "judge_url means nothing to judge 'parse'"),
        (("--similarity", "x"), "used by --select mdp3 only"),
        (("--folder", "nowhere", "--model", "no/such-model-here"), "no/such-model-here"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(refused, rows, tmp_path, options, told):
    assert told in refused("prefer", rows, "--output", tmp_path / "pairs.jsonl", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_output_of_this_stays(refused, rows, tmp_path):
    assert "exists, and no journal beside it" in refused("prefer", rows, "--output", rows)
    assert "dataset nothing.jsonl cannot be read" in refused("prefer", "nothing.jsonl", "--output", tmp_path / "x")
