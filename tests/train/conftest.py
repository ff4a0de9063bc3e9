"""What tests of fine-tuning share: a user's data, and models to start from."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from samples import tiny_model

from longview.models.families import families
from longview.train.distributed import processes
from longview.train.loop import Trainer

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Eight conversations: no picture, one, two, and a video of two frames; pairs for preferences; captions."""
    folder = tmp_path_factory.mktemp("data")
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (30, 24), colour).save(folder / f"{number}.png")
    rows = [
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]},
        *({"image": f"{n}.png", "query": "<image>\nColour?", "response": c} for n, c in enumerate(COLOURS)),
        {"images": ["0.png", "1.png"], "query": "<image><image>Both?", "response": "red and green"},
        {"videos": [["2.png", "3.png"]], "query": "<video>\nThen?", "response": "white"},
        {"image": "1.png", "query": "And?", "response": "ok", "history": [["<image>\nWhat?", "green"]]},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [row | {"rejected_response": "no"} for row in rows if "response" in row]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    captions = {"image_path": [f"{n}.png" for n in range(4)], "caption": list(COLOURS)}
    pyarrow.parquet.write_table(pyarrow.table(captions), folder / "captions.parquet")
    return folder


@pytest.fixture(scope="session")
def started(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny random models to start from, by family."""
    folders = {}
    for name, family in families().items():
        model, processor = tiny_model(family, next(iter(family.Config.variants)), tokenizer)
        folders[name] = tmp_path_factory.mktemp("started") / name
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture
def precise(monkeypatch, tmp_path):
    """Losses of runs as they are, not rounded for the log: a file beside each run's folder."""
    learn = Trainer.learn

    def noted(self, objective, step):
        found = learn(self, objective, step)
        if processes.is_first():
            with (self.output / "losses").open("a") as file:
                file.write(f"{step} {found[0]!r}\n")
        return found

    monkeypatch.setattr(Trainer, "learn", noted)
    return lambda output: [float(line.split()[1]) for line in (output / "losses").read_text().splitlines()]
