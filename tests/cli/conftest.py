"""The program run in this process, on a tiny random model in a folder of its own."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from longview.cli import main
from longview.models.owl3 import Config, Model, Processor
from longview.world import Picture, Thing, draw_clip, write_clip, write_picture


@dataclass
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Program = Callable[..., Ran]


@pytest.fixture
def longview(capsys, monkeypatch) -> Program:
    """`longview("ask", …, stdin=…)`: the whole program, but for starting Python."""

    def run(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(exit.value.code or 0, out, err)

    return run


@pytest.fixture
def refused(longview) -> Callable[..., str]:
    """A run that must end as a user's mistake does; returns the message."""

    def run(*arguments: object, stdin: str = "") -> str:
        ran = longview(*arguments, stdin=stdin)
        assert ran.code == 2, ran
        assert ran.out == "", ran
        assert ran.err.startswith("longview: "), ran
        assert ran.err.count("\n") == 1, ran
        return ran.err.removeprefix("longview: ").rstrip("\n")

    return run


@pytest.fixture(scope="session")
def random_model(tokenizer, tmp_path_factory) -> Path:
    """A checkpoint folder in three shards. Its answers are nonsense, always the same."""
    torch.manual_seed(0)
    config = Config.tiny(vocab_size=len(tokenizer), max_position_embeddings=4096)
    folder = tmp_path_factory.mktemp("models") / "random"
    Model(config).save_pretrained(folder, max_shard_size="300KB")
    Processor(tokenizer, config).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def broken_model(random_model, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(random_model, tmp_path / "broken"))


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """A folder with a picture, another, a wide one and a clip."""
    folder = tmp_path_factory.mktemp("media")
    write_picture(Picture((Thing("red", "circle", "large", 0.5, 0.5),)), folder / "red.jpg")
    write_picture(Picture((Thing("blue", "star", "large", 0.5, 0.5),)), folder / "blue.png")
    Image.new("RGB", (80, 20), "green").save(folder / "wide.bmp")
    import random

    write_clip(draw_clip(random.Random(0)), folder / "clip.mp4")
    return folder
