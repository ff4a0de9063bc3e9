"""Ask from Python: about a picture, piece by piece, and about a clip, with the frames the answer is based on."""

from pathlib import Path

import longview

here = Path(__file__).parent
engine = longview.load("demo")  # or a checkpoint folder, or a hub id such as "mPLUG/mPLUG-Owl3-7B-241101"
for piece in engine.stream([longview.ask("What is at the top left?", longview.image(here / "shapes.jpg"))]):
    print(piece.text, end="", flush=True)
answer = engine.answer([longview.ask("Which way does the triangle move?", longview.video(here / "clip.mp4"))])
print(f"\n{answer}, seen at {', '.join(f'{frame.seconds:g}' for frame in answer.receipt.frames)} s")
