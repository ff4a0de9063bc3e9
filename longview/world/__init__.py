"""A small synthetic world: scenes with known contents, true answers about them, and real picture and video files.

The embedded demo model learns here and is measured here, on scenes it never saw. No torch in this folder.

    scenes.py      what there is: things, signs, pictures, clips; which scenes are held out
    questions.py   what can be asked, and the true answers
    naming.py      which pictures a text fits
    films.py       long films with a needle: one short shot that the question is about
    render.py      scenes → pictures → JPEG, PNG and MP4 files
"""

from longview.world.questions import Question, ask_about
from longview.world.render import render, write_clip, write_picture
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
]
