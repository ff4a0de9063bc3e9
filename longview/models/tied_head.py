"""A head that is the table of text embeddings, also where a checkpoint stores another one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch


def tie(language_model: Any, folder: Path) -> None:
    """Make the embeddings of a language model, whose config ties them, its head; warns if a head that differs is lost.

    transformers ties what is equal, and leaves a head that differs as it is stored.
    """
    head, table = language_model.lm_head, language_model.model.embed_tokens
    if head.weight is table.weight:
        return
    stored = "meta" not in (head.weight.device.type, table.weight.device.type)
    if stored and not torch.equal(head.weight.to(table.weight.device), table.weight):
        warnings.warn(
            f"{folder} stores a head (lm_head.weight) that differs from the embeddings, but its config.json ties them "
            "(tie_word_embeddings): the embeddings are the head here; if the stored one is to be, set that to false",
            stacklevel=4,
        )
    head.weight = table.weight
