"""Questions about scenes, and their true answers.

Each kind of question has several phrasings, so that a person's own wording has a chance; its answers are short. A
question is asked only where it has one answer: "What colour is the circle?" needs exactly one circle.

    question.py           Question, and the phrases that questions and answers are made of
    one_picture.py        ten kinds of questions about a picture
    several_pictures.py   about one of several pictures, or all of them
    clips.py              about what happens in a clip
    ask.py                about any scenes; the vocabulary of them all
"""

from longview.world.questions.ask import ask_about, vocabulary
from longview.world.questions.clips import ask_about_clip, describe_clip
from longview.world.questions.one_picture import PICTURE_KINDS, ask_about_picture
from longview.world.questions.question import Question, describe, plural
from longview.world.questions.several_pictures import SET_KINDS, ask_about_one_of, ask_about_pictures, which_image

__all__ = [
    "PICTURE_KINDS",
    "SET_KINDS",
    "Question",
    "ask_about",
    "ask_about_clip",
    "ask_about_one_of",
    "ask_about_picture",
    "ask_about_pictures",
    "describe",
    "describe_clip",
    "plural",
    "vocabulary",
    "which_image",
]
