"""A small synthetic world: scenes with known contents, true answers about them, and real picture and video files.

The embedded demo models are trained on it, and evaluated on held-out scenes. No torch in this folder.

    scenes.py       things, signs, pictures and clips; which scenes are held out
    questions/      questions about scenes, and their true answers
    naming.py       which pictures a text fits
    scene_text.py   scenes as text, for a model that is given no pictures
    needle.py       long videos of which one short shot, the needle, answers the question
    render.py       scenes → images → JPEG, PNG and MP4 files
    recognition.py  whether a picture comes from this world
"""

from longview.world.questions import Question, ask_about
from longview.world.render import render, write_clip, write_picture, write_still
from longview.world.scenes import Clip, Picture, Sign, Thing, draw_clip, draw_picture, is_held_out

__all__ = [
    "Clip",
    "Picture",
    "Question",
    "Sign",
    "Thing",
    "ask_about",
    "draw_clip",
    "draw_picture",
    "is_held_out",
    "render",
    "write_clip",
    "write_picture",
    "write_still",
]
