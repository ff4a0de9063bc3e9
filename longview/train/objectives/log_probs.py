"""Log-probabilities of learned tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from longview.models.base import IGNORED


def token_log_probs(model: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the learned tokens of a batch, and the row of each: (tokens,) both.

    The head reads those hidden states alone from which something is learned: the logits of a large vocabulary take
    more memory than all else.
    """
    labels = functional.pad(arguments.pop("labels")[:, 1:], (0, 1), value=IGNORED)  # (B, T), of the next token
    columns = (labels != IGNORED).any(0).nonzero().flatten()
    logits = model(**arguments, use_cache=False, logits_to_keep=columns).logits  # (B, columns, V)
    kept = labels[:, columns]
    learned = kept != IGNORED
    log_probs = -functional.cross_entropy(logits[learned].float(), kept[learned], reduction="none")
    return log_probs, learned.nonzero()[:, 0]


def answer_log_probs(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Log-probability of each row's answer, (B,)."""
    rows = len(arguments["labels"])
    log_probs, row = token_log_probs(model, arguments)
    return log_probs.new_zeros(rows).index_add(0, row, log_probs)
