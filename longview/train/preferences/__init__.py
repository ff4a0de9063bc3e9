"""Preferences from a model's own answers: questions are answered several times, answers judged, right and wrong paired.

settings.py    how many answers, how they are asked for, which of them make a pair
sample.py      rows → answers → verdicts, a journal beside them; many rows at a time through one engine
judges.py      whether an answer is right: by the true answer, exactly or parsed
remote.py      the same by a model behind an OpenAI-compatible server
pairs.py       verdicts → pairs, and what became of each question; a pair as a row that `objective: preference` reads
"""
