"""longview train and longview eval: thin verbs over the trainer and the evaluation, through real folders."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from longview.train.loop import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = """
seed: 1
model:
  family: owl3
  processor: {cut_enable: false}
  config:
    {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2,
     hyper_layers: [1], tie_word_embeddings: true, max_position_embeddings: 512,
     vision_config: {image_size: 24, patch_size: 8, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,
                     num_attention_heads: 2, vision_use_head: false}}
pool: {pictures: 24, clips: 2}
stages:
  - {name: see, objective: contents, train: [vision, connector], steps: 2, world: {batch: 8}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    return path


def test_a_recipe_is_followed_and_its_model_answers(longview, refused, recipe, tmp_path):
    output = tmp_path / "run"
    ran = longview("train", recipe, "stages.0.steps=3", "--output", output)
    assert ran.code == 0
    assert ran.out == f"{output / 'model'}\n"
    assert longview("ask", "--model", output / "model", "--max-tokens", 3, "Hello?").code == 0
    assert "--resume" in refused("train", recipe, "stages.0.steps=3", "--output", output)
    assert "another recipe" in refused("train", recipe, "--output", output, "--resume")
    assert longview("train", recipe, "stages.0.steps=3", "--output", output, "--resume").code == 0


def test_ctrl_c_saves_the_state_and_ends_with_code_130_and_no_model(recipe, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "longview", "train", str(recipe), "stages.0.steps=100000", "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        while not (output / "log.jsonl").exists():
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (130, "")
    *lines, last = err.splitlines()
    assert re.fullmatch(r"longview: stopped in stage 'see' .* after step \d+ of 100000; .*--resume", last)
    assert re.fullmatch(r"see  step 10 of 100,000  rate \S+  loss \S+  .* left", lines[0])
    assert list(output.glob("checkpoint-*/state.json"))
    assert not list(output.glob("model/*.safetensors"))


def test_a_dry_run_prints_the_whole_recipe_and_trains_nothing(longview, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = longview("train", recipe, "seed=7", "stages.0.learning_rate=1e-4", "--dry-run")
    understood = yaml.safe_load(ran.out)
    assert understood["seed"] == 7
    assert understood["stages"][0]["learning_rate"] == 1e-4
    assert understood["stages"][0]["weight_decay"] == 0.01
    summary = ran.out.splitlines()[0]
    assert re.fullmatch(r"# a new owl3 · on the synthetic world: 2 steps, about \d.* GiB, 0:00:\d\d at least", summary)
    assert "# hint: the whole run has 2 steps" in ran.out
    assert re.search(r"# stage 1, see: contents, 2 steps of 8 pictures\n#   vision: [\d,]+ parameters, learns", ran.out)
    assert re.search(r"#   language: [\d,]+ parameters, frozen", ran.out)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted((RECIPES / "demo").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_demo_is_understood(longview, path):
    assert longview("train", path, "--dry-run").code == 0


def test_a_dry_run_takes_the_time_of_real_steps_when_asked(longview, refused, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = longview("train", recipe, "--dry-run", "--time-steps").out
    assert re.fullmatch(r"# .*: 2 steps, about .* GiB, 0:00:\d\d as timed", told.splitlines()[0])
    assert re.search(r"#   time: 0:00:\d\d, by 2 steps of [\d.]+ s each", told)
    assert not (tmp_path / "runs").exists()
    assert "--time-steps is for --dry-run" in refused("train", recipe, "--time-steps")


def test_the_time_of_steps_is_that_of_the_run(longview, recipe, tmp_path, monkeypatch):
    """Where a step takes long for what no count of operations knows."""
    learn = Trainer.learn
    monkeypatch.setattr(Trainer, "learn", lambda *arguments: time.sleep(0.5) or learn(*arguments))
    told = longview("train", recipe, "stages.0.steps=30", "--dry-run", "--time-steps").out
    seconds = float(re.search(r"by 2 steps of ([\d.]+) s each", told)[1])
    assert seconds >= 0.5


def test_what_is_wrong_with_a_recipe_is_named(refused, recipe, tmp_path):
    assert "no/recipe.yaml" in refused("train", "no/recipe.yaml")
    assert "nearest known key is 'seed'" in refused("train", recipe, "sede=1", "--dry-run")
    assert "no value" in refused("train", recipe, "seed", "--dry-run")
    assert "no run to resume" in refused("train", recipe, "--resume", "--output", tmp_path / "none")


def test_eval_prints_every_kind_with_what_guessing_scores(longview, broken_model):
    config = json.loads((broken_model / "config.json").read_text())
    (broken_model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200}))  # short answers
    arguments = ("eval", "--model", broken_model, "--per-kind", 1, "--group", "clip")
    found, text = longview(*arguments, "--json").json, longview(*arguments).out
    assert found["task"] == "world"
    assert [row["group"] for row in found["groups"]] == ["clip"]
    assert sum(row["total"] for row in found["kinds"]) == found["groups"][0]["total"]
    for row in found["kinds"]:
        assert any(row["kind"] in line and f"{row['right']}/{row['total']}" in line for line in text.splitlines())


def test_wrong_options_of_eval_are_named(refused):
    assert "unknown task 'nonsense'; did you mean 'choices'?" in refused("eval", "--task", "nonsense")
    assert re.search("unknown task 'zzzz'; did you mean '[a-z_0-9]+'", refused("eval", "--task", "zzzz"))
    assert "--shown" in refused("eval", "--shown", "half")
    assert "unknown group 'ten pictures'" in refused("eval", "--group", "ten pictures")
    assert "per_kind is 0" in refused("eval", "--per-kind", "0")
