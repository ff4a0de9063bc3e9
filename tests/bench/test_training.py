"""`longview bench train`: each row follows a recipe, on the same samples, and counts right. Nothing here is timed."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from samples import tiny_model

from longview.bench import training
from longview.bench.training import StepCosts, train, write_rows
from longview.errors import RequestError
from longview.models.families import families
from longview.train.loop import accumulate_gradients


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tiny model with rows of weights that suit bitsandbytes."""
    path = tmp_path_factory.mktemp("start") / "owl3"
    model, processor = tiny_model(
        families()["owl3"], "241101", tokenizer, intermediate_size=128, max_position_embeddings=2048
    )
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def here(monkeypatch):
    """Jobs run in this process, and are kept."""
    jobs = []
    monkeypatch.setattr(training, "_in_process", lambda job: jobs.append(job) or training.measure(job))
    monkeypatch.setattr(training, "reset_peak_memory", lambda device: None)
    return jobs


def test_every_method_is_measured_in_every_way_on_the_same_samples(folder, here):
    result = train(str(folder), None, "cpu", samples=4, frames=0, repeats=1)
    assert [row["training"] for row in result.rows] == [
        f"{method} {way}" for method in ("full", "LoRA", "QLoRA") for way in ("plain", "padded", "packed")
    ]
    assert all(row.keys() == result.rows[0].keys() for row in result.rows)
    tokens = {row["tokens/s"] * row["s a step"] for row in result.rows}
    assert max(tokens) == pytest.approx(min(tokens)), "padding is not counted"
    assert {row["padding"] for row in result.rows if "packed" in row["training"]} == {"0%"}
    assert len({row["padding"] for row in result.rows if "packed" not in row["training"]} - {"0%"}) == 1
    assert [row["samples/s"] * row["s a step"] for row in result.rows] == pytest.approx([4.0] * 9)
    assert [finding.split(":")[0] for finding in result.findings[:3]] == ["full", "LoRA", "QLoRA"]
    assert result.settings["dims"] == str(folder)
    assert {bool(job.recipe.model.adapter) for job in here[3:]} == {True}
    assert [job.recipe.model.quantize for job in here] == [None] * 6 + ["nf4"] * 3


def test_each_row_has_a_process_of_its_own(folder, monkeypatch, tmp_path, capsys):
    from longview.cli import main

    monkeypatch.setattr(training, "WAYS", ("plain", "packed"))
    monkeypatch.setattr(training, "METHODS", {"LoRA": training.METHODS["LoRA"]})
    words = ["bench", "train", "--dims", str(folder), "--samples", "2", "--repeats", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as exit:
        main([*words, "--json", "--plot", str(tmp_path / "a.png")])
    assert not exit.value.code
    printed = json.loads(capsys.readouterr().out)
    assert [row["training"] for row in printed["rows"]] == ["LoRA plain", "LoRA packed"]
    assert all(row["peak GiB"] > 0.1 for row in printed["rows"])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_some_methods_and_ways_are_measured_alone(folder, monkeypatch, capsys):
    from longview.cli import main

    monkeypatch.setattr(training, "_in_process", lambda job: COST)
    words = ["bench", "train", "--dims", str(folder), "--methods", "lora,full", "--ways", "packed", "--json"]
    with pytest.raises(SystemExit):
        main(words)
    assert [row["training"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["full packed", "LoRA packed"]
    for wrong in (["--methods", "lora,dora"], ["--ways", "padded,packd"], ["--frames", "4", "--ways", "packed"]):
        with pytest.raises(SystemExit) as exit:
            main(["bench", "train", "--dims", str(folder), *wrong])
        assert exit.value.code == 2
        assert "here there are" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["bench", "decode", "--ways", "packed"])
    assert exit.value.code == 2
    assert "--ways is of train, not of decode; leave it out" in capsys.readouterr().err


def test_a_process_that_ends_early_is_a_row_that_does_not_fit(folder, monkeypatch):
    monkeypatch.setattr(training, "_in_process", lambda job: None if job.way == "plain" else COST)
    monkeypatch.setattr(training, "METHODS", {"full": {}})
    result = train(str(folder), None, "cpu", samples=2, frames=0, repeats=1)
    assert "full plain does not fit into memory." in result.findings
    assert [row["tokens/s"] for row in result.rows] == [None, 50.0, 50.0]
    assert "–" in result.table()


COST = StepCosts(seconds=2.0, processor_seconds=1.0, tokens=100, samples=4, positions=200, peak_bytes=1 << 30)


def test_findings_compare_methods_and_ways(folder, monkeypatch):
    def cost(job) -> StepCosts:
        faster = COST._replace(seconds=1.0, processor_seconds=0.4) if job.way == "packed" else COST
        return faster._replace(peak_bytes=(2 if job.recipe.model.adapter is None else 1) << 30)

    monkeypatch.setattr(training, "_in_process", cost)
    result = train(str(folder), None, "cpu", samples=2, frames=0, repeats=1)
    expected = "LoRA: packed 2.00× the plain loop's tokens/s (2.50× by processor time), in 1.00× its memory."
    assert expected in result.findings
    assert "LoRA packed needs 0.50× the memory of full packed." in result.findings
    assert "QLoRA packed needs 1.00× the memory of LoRA packed." in result.findings


def test_a_video_is_one_step_of_adapters(folder, here):
    result = train(str(folder), None, "cpu", samples=1, frames=3, repeats=1)
    assert [row["training"] for row in result.rows] == ["LoRA padded", "QLoRA padded"]
    assert all(job.recipe.stages[0].data.frames == 3 for job in here)
    assert "a video of 3 frames a step" in result.about


def test_the_data_are_drawn_from_a_seed_and_mixed(tmp_path):
    path = write_rows(tmp_path, 40)
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert {len(row["images"]) for row in rows} == {0, 1, 3}
    lengths = sorted(len(row["response"].split()) for row in rows)
    assert lengths[-1] > 10 * lengths[len(lengths) // 4]
    assert write_rows(tmp_path, 40).read_text() == text


def test_the_plain_loop_has_the_gradients_of_longviews_steps(folder, tmp_path):
    """One row, one loss: their gradients are the same, so what differs is what they cost."""
    found = []
    for way in ("plain", "packed"):
        data = {"batch": 2, "micro_batch": 1, "datasets": [{"path": str(write_rows(tmp_path, 4))}]}
        stage = {"name": "tune", "objective": "supervised", "train": ["language"], "steps": 2, "data": data}
        tree = {"model": {"start": str(folder), "adapter": {"dropout": 0.0}}, "stages": [stage]}
        job = training.Job(training.from_tree(tree), way, "cpu", 1)
        torch.manual_seed(0)
        objective, parameters = training._open_objective(job, tmp_path / "run")
        if way == "plain":
            objective.mixture.at = lambda position, at=objective.mixture.at: at(
                0
            )  # a mean of means is one of like rows
            training._plain(objective, half=False)(0)
        else:
            assert objective.settings.pack
            objective.mixture.at = lambda position, at=objective.mixture.at: at(0)
            accumulate_gradients(objective, 0)
        found.append({name: p.grad for name, p in parameters.items()})
    largest = max(slope.abs().max() for slope in found[0].values())
    assert largest > 0
    assert all((found[0][name] - found[1][name]).abs().max() < 1e-4 * largest for name in found[0])


def test_without_bitsandbytes_there_is_no_qlora(folder, here, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(training, "_in_process", lambda job: COST)
    result = train(str(folder), None, "cpu", samples=2, frames=0, repeats=1)
    assert {row["training"].split()[0] for row in result.rows} == {"full", "LoRA"}
    assert any(text.startswith("QLoRA is left out: bitsandbytes is not installed") for text in result.findings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dims": "owl3-9b"}, "unknown --dims 'owl3-9b'; give owl3-0.2b"),
        ({"dtype": "float16"}, "dtype is 'float16'; training computes in float32 or bfloat16"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, complaint):
    settings = {"dims": "demo", "dtype": None, "device": "cpu", "samples": 2, "frames": 0, "repeats": 1} | changes
    with pytest.raises(RequestError, match=complaint):
        train(**settings)


def test_training_on_mps_is_refused(monkeypatch):
    monkeypatch.setattr(training, "check_device", lambda device: None)
    with pytest.raises(RequestError, match="training runs on cpu and cuda, not on mps"):
        train("demo", None, "mps", 2, 0, 1)
