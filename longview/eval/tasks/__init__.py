"""The table of tasks: what `longview eval` can measure.

task.py          what a task is: a dozen fields
choices.py       multiple choices about single pictures
videos.py        multiple choices about videos
pictures.py      yes and no, text in pictures, mathematics, mixed kinds
several.py       several pictures
answers.py       short and free answers about single pictures
own.py           a user's own questions
synthetic.py     questions that need no files
distractors.py   distractor resistance
"""

from __future__ import annotations

from difflib import get_close_matches

from longview.errors import RequestError
from longview.eval.tasks import answers, choices, distractors, own, pictures, several, synthetic, videos
from longview.eval.tasks.task import Options, Task

ROOMS = (choices, videos, pictures, several, answers, own, synthetic, distractors)
TASKS: dict[str, Task] = {task.name: task for room in ROOMS for task in room.TASKS}


def find_task(name: str) -> Task:
    """
    Raises:
        RequestError: there is none of that name; says which is nearest.
    """
    if name not in TASKS:
        said = name.lower()
        near = [task for task in TASKS if task.startswith(said)] or get_close_matches(said, TASKS, n=1, cutoff=0)
        raise RequestError(f"unknown task {name!r:.60}; did you mean {near[0]!r}? longview eval --list names all")
    return TASKS[name]


__all__ = ["TASKS", "Options", "Task", "find_task"]
