"""What the walks of docs/retrieval.md are about: three films, and a small base of things and their names.

    python examples/to_find.py FOLDER

FOLDER/films/friday.mp4 and two more show unrelated scenes, three seconds each. FOLDER/things/knowledge.jsonl has a
picture and a sentence for each of twelve kinds of things, with a name drawn by chance; FOLDER/photo.jpg shows one of
them elsewhere. All of them are scenes that no embedded model was trained on.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from longview.world.knowledge import KINDS, alone, draw_alone, draw_names
from longview.world.needle import NeedleVideo, Shot
from longview.world.questions import Question
from longview.world.render import write_needle_video, write_picture
from longview.world.scenes import draw_picture

FILMS, SHOTS, SECONDS = ("friday", "saturday", "sunday"), 12, 3
THINGS, PHOTO = 12, 5  # that many; which of them the photo shows


def draw_films(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(FILMS):
        shots = tuple(Shot(draw_picture(rng, held_out=True), SECONDS) for _ in range(SHOTS))
        write_needle_video(NeedleVideo(shots, 0, Question("", "", "")), folder / f"{name}.mp4", 1000 * number)


def draw_base(folder: Path, photo: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in KINDS if len(alone(kind, held_out=True)) > 1]
    lines = []
    for number, named in enumerate(draw_names(rng, THINGS, kinds)):
        known, elsewhere = draw_alone(rng, named.kind, held_out=True, count=2)
        write_picture(known, folder / f"{number}.jpg", number)
        lines.append(json.dumps({"image": f"{number}.jpg", "text": f"It is called {named.name}."}) + "\n")
        if number == PHOTO:
            write_picture(elsewhere, photo, THINGS)
    (folder / "knowledge.jsonl").write_text("".join(lines), encoding="utf-8")


def main(folder: Path) -> None:
    rng = random.Random(5)
    draw_films(folder / "films", rng)
    draw_base(folder / "things", folder / "photo.jpg", rng)
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
