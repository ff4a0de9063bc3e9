"""Bytes in, frames out: fetch, decode and sample pictures and videos. No torch and no model here.

    open_medium(part, options, limits)          one message part → Medium
    open_media(parts, options, limits)          several, in parallel, in order
                          relevance_query=RelevanceQuery(…)   frames scored against a question
    sniff(path)                                 "image" or "video", by content

`fetch` gets the bytes of files, URLs and data URIs under limits; `decoders` decodes them; `select` holds the
frame samplers, `mdp3` selection by relevance to a question.
"""

from longview.media.candidates import Candidates, RelevanceQuery
from longview.media.medium import Frame, Medium, Relevance, distinctly_named
from longview.media.open import open_media, open_medium
from longview.media.sniff import sniff

__all__ = [
    "Candidates",
    "Frame",
    "Medium",
    "Relevance",
    "RelevanceQuery",
    "distinctly_named",
    "open_media",
    "open_medium",
    "sniff",
]
