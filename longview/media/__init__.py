"""Bytes in, frames out. No torch, no model: only what a picture or a video shows, when, and how large it is.

    open_medium(part, options, limits)          one part of a message → Medium
    open_media(parts, options, limits)          several, decoded side by side, in order
                          relevance_query=RelevanceQuery(…)   frames held against a question
    sniff(path)                                 "image" or "video", by content

`fetch` gets bytes from anywhere behind the guards; `decode` and `video` make frames of them; `select` says which, and
`mdp3` which of them tell most about a question.
"""

from longview.media.candidates import Candidates, RelevanceQuery
from longview.media.medium import Frame, Medium, Progress, Relevance
from longview.media.open import open_media, open_medium
from longview.media.sniff import sniff

__all__ = [
    "Candidates",
    "Frame",
    "Medium",
    "Progress",
    "Relevance",
    "RelevanceQuery",
    "open_media",
    "open_medium",
    "sniff",
]
