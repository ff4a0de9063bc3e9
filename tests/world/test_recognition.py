"""Embedded models know one drawn world, and say so of pictures from elsewhere."""

from __future__ import annotations

import io
import random
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import longview
from longview.world import draw_clip, draw_picture, render, write_clip
from longview.world.recognition import is_drawn

EXAMPLES = Path(__file__).parents[2] / "examples"


def photograph(seed: int, size: int = 240) -> Image.Image:
    """Light that falls off over a textured surface, as in any photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
    grain = rng.normal(0, 6, (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_held_out_scenes_are_recognised_whatever_their_size_and_compression():
    rng = random.Random(11)
    pictures = [
        compressed(
            render(draw_picture(rng, held_out=True), seed, rng.choice([120, 336, 700])), rng.choice([50, 75, 95])
        )
        for seed in range(150)
    ]
    assert sum(map(is_drawn, pictures)) >= 0.98 * len(pictures)


def test_frames_of_held_out_clips_and_of_the_examples_are_recognised(tmp_path):
    paths = [
        write_clip(draw_clip(random.Random(seed), held_out=True), tmp_path / f"{seed}.mp4", seed) for seed in (1, 2)
    ]
    for path in (*paths, EXAMPLES / "clip.mp4", EXAMPLES / "film.mp4"):
        with av.open(str(path)) as container:
            frames = [frame.to_image() for number, frame in enumerate(container.decode(video=0)) if number % 16 == 0]
        assert all(map(is_drawn, frames)), path.name
    assert all(is_drawn(Image.open(EXAMPLES / name)) for name in ("shapes.jpg", "pair.webp", "sign.png"))


def test_photographs_are_not():
    assert not any(is_drawn(photograph(seed)) for seed in range(50))
    assert not is_drawn(Image.new("RGB", (300, 200), (90, 120, 60)))


def test_photographs_of_others_are_not():
    data = pytest.importorskip("skimage.data", reason="photographs come with scikit-image, which is not installed")
    for name in ("astronaut", "camera", "coffee", "chelsea", "rocket", "moon", "coins", "grass", "gravel"):
        assert not is_drawn(Image.fromarray(getattr(data, name)())), name


@pytest.mark.parametrize("model", ["demo", "demo-ovis2", "demo-mgm"])
def test_an_embedded_model_says_that_it_does_not_know_photographs(model, tmp_path):
    photograph(1).save(tmp_path / "cat.jpg")
    engine = longview.load(model)
    answer = engine.answer([longview.ask("What animal is this?", longview.image(tmp_path / "cat.jpg"))], max_tokens=2)
    (warning,) = answer.receipt.warnings
    assert warning.startswith(f"{model} knows only drawn shapes, and cat.jpg is none of its scenes")
    assert "--model" in warning
    known = [longview.ask("What colour is the circle?", longview.image(EXAMPLES / "shapes.jpg"))]
    assert engine.answer(known).receipt.warnings == ()


def test_so_does_the_embedded_relevance_curve(tmp_path, capsys):
    from longview.cli import main

    with av.open(str(tmp_path / "street.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 240
        for seed in range(6):
            container.mux(stream.encode(av.VideoFrame.from_image(photograph(seed))))
        container.mux(stream.encode())
    for video, warned in ((tmp_path / "street.mp4", True), (EXAMPLES / "film.mp4", False)):
        with pytest.raises(SystemExit) as ended:
            main(["frames", str(video), "Where is the heart?", "--frames", "3"])
        assert not ended.value.code
        assert ("demo-siglip knows only drawn shapes" in capsys.readouterr().err) == warned
