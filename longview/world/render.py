"""Render scenes as images, and write them as JPEG, PNG or MP4 files.

Tints and background vary, and no question asks about them. The same scene and the same seed give the same pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from longview.world.needle import NeedleVideo
from longview.world.scenes import CLIP_SECONDS, Clip, Picture, Sign, Thing

SIDE = 336  # pixels
FPS = 4  # of a clip
NEEDLE_FPS = 2  # minutes long, and little moves
RGB = {
    "red": (215, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 215, 30),
    "green": (35, 155, 60),
    "blue": (35, 80, 215),
    "purple": (125, 45, 165),
    "pink": (250, 130, 185),
    "black": (25, 25, 25),
}
BACKGROUNDS = ((255, 255, 255), (238, 238, 238), (250, 244, 226), (226, 238, 250), (230, 246, 230))
SMALL_PRINT = 0.055  # of the picture's side
RADIUS = {"small": 0.075, "large": 0.135}  # of the picture's side

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def _tint(colour: Colour, rng: random.Random, spread: int) -> Colour:
    red, green, blue = (max(0, min(255, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue


def _outline(shape: str, radius: float) -> Points:
    """The corners of a shape around (0, 0); y points down."""
    if shape == "square":
        half = radius * 0.86
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if shape == "triangle":
        return [(0, -radius), (radius, radius * 0.8), (-radius, radius * 0.8)]
    if shape == "star":
        turns = [(math.pi * corner / 5, radius * (1.08 if corner % 2 == 0 else 0.45)) for corner in range(10)]
        return [(reach * math.sin(turn), -reach * math.cos(turn)) for turn, reach in turns]
    if shape == "cross":
        long, arm = radius, radius * 0.34
        quarter = [(-arm, -long), (arm, -long), (arm, -arm)]
        return [
            point
            for cosine, sine in ((1, 0), (0, 1), (-1, 0), (0, -1))
            for point in ((x * cosine - y * sine, x * sine + y * cosine) for x, y in quarter)
        ]
    if shape == "heart":
        points = []
        for step in range(40):
            turn = 2 * math.pi * step / 40
            x = 16 * math.sin(turn) ** 3
            y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
            points.append((radius * x / 16, -radius * (y + 2) / 15))
        return points
    assert shape == "circle", shape
    return [(radius * math.cos(math.pi * step / 24), radius * math.sin(math.pi * step / 24)) for step in range(48)]


def _paint_thing(draw: ImageDraw.ImageDraw, thing: Thing, side: int, rng: random.Random) -> None:
    radius = RADIUS[thing.size] * rng.uniform(0.93, 1.07) * side
    tilt = rng.uniform(-0.12, 0.12)
    cosine, sine = math.cos(tilt), math.sin(tilt)
    points = [
        (thing.x * side + x * cosine - y * sine, thing.y * side + x * sine + y * cosine)
        for x, y in _outline(thing.shape, radius)
    ]
    draw.polygon(points, fill=_tint(RGB[thing.colour], rng, 12))


def _paint_sign(draw: ImageDraw.ImageDraw, sign: Sign, side: int, rng: random.Random) -> None:
    if sign.cell is not None:
        x, y = ((part + 0.5) / 3 * side + rng.uniform(-0.03, 0.03) * side for part in (sign.cell % 3, sign.cell // 3))
        font = ImageFont.load_default(SMALL_PRINT * side)
        draw.text((x, y), sign.text.upper(), font=font, fill=(20, 20, 20), anchor="mm")
        return
    middle = (sign.row + 0.5) / 3 * side
    half = 0.13 * side
    draw.rectangle(
        (0.03 * side, middle - half, 0.97 * side, middle + half), fill="white", outline=(60, 60, 60), width=3
    )
    text = sign.text.upper()
    font = ImageFont.load_default(0.24 * side)
    size = 0.24 * side * min(1.0, 0.86 * side / font.getlength(text))
    font = ImageFont.load_default(size)
    x = side / 2 + rng.uniform(-0.02, 0.02) * side
    draw.text((x, middle), text, font=font, fill=(20, 20, 20), anchor="mm")


def render(picture: Picture, seed: int = 0, side: int = SIDE) -> Image.Image:
    """Render a picture, `side` × `side` pixels, RGB. The seed decides tints, background and tilt."""
    rng = random.Random(seed)
    canvas = Image.new("RGB", (side, side), _tint(rng.choice(BACKGROUNDS), rng, 5))
    draw = ImageDraw.Draw(canvas)
    for thing in picture.things:
        # Each thing has its own random numbers, so that it looks the same in every frame of a clip.
        _paint_thing(draw, thing, side, random.Random(f"{seed} {thing.name}"))
    if picture.sign:
        _paint_sign(draw, picture.sign, side, rng)
    return canvas


def write_picture(picture: Picture, path: Path, seed: int = 0, quality: int = 85) -> Path:
    """Write a picture as the path's suffix says (.jpg, .png, .webp). Returns the path."""
    canvas = render(picture, seed)
    if path.suffix == ".png":
        canvas.save(path)
    else:
        canvas.save(path, quality=quality)
    return path


def write_clip(clip: Clip, path: Path, seed: int = 0) -> Path:
    """Write a clip of `CLIP_SECONDS` seconds at `FPS` frames a second, H.264 in the container the suffix names."""
    assert len(clip.frames) == CLIP_SECONDS
    return _write_frames(((render(picture, seed), FPS) for picture in clip.frames), path, FPS)


def write_needle_video(video: NeedleVideo, path: Path, seed: int = 0) -> Path:
    """Write a video at `NEEDLE_FPS` frames a second; each of its shots has a seed of its own."""
    shots = (
        (render(shot.picture, seed + number), shot.seconds * NEEDLE_FPS) for number, shot in enumerate(video.shots)
    )
    return _write_frames(shots, path, NEEDLE_FPS, preset="veryfast")


def write_still(picture: Picture, path: Path, num_frames: int, seed: int = 0, rate: int = 8) -> Path:
    """Write a video in which nothing but tints, background and tilt changes, from each frame to the next."""
    frames = ((render(picture, seed + number), 1) for number in range(num_frames))
    return _write_frames(frames, path, rate, preset="ultrafast")


def _write_frames(images: Iterable[tuple[Image.Image, int]], path: Path, rate: int, **options: str) -> Path:
    """Encode images, each for so many frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", **options}
        for image, count in images:
            frame = av.VideoFrame.from_image(image)
            for _ in range(count):
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
