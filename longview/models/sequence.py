"""Pictures that stand among the words: where the ids hold one placeholder, the sequence holds all tokens of a picture.

    ids          What  is  ▣  ?          a placeholder for each picture
    embeddings    w    w  vvvv w         T positions for each

For families whose language model reads pictures as words. mPLUG-Owl3's never enter the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

IGNORED = -100
"""A label that is not learned."""


class Merged(NamedTuple):
    """Words and pictures in one sequence."""

    embeds: Tensor  # (B, L, D)
    mask: Tensor  # (B, L), boolean
    labels: Tensor | None  # (B, L)


def merge(
    words: Tensor,
    placeholders: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    pictures: Sequence[Tensor],
    cut: slice = slice(None),
    left_padding: bool = False,
    compact: bool = False,
) -> Merged:
    """Put pictures where the placeholders are, and pad the rows, now of different lengths.

    Args:
        words: (B, T, D) embeddings; those at placeholders are replaced.
        placeholders: (B, T), boolean.
        mask, labels: (B, T); of a picture every position is attended to, and none is learned.
        pictures: One (n, T', D) a row, as many as it has placeholders.
        cut: The positions of each row that are kept.
        left_padding: Pad in front, as generation needs it.
        compact: Leave positions out that the mask hides, before anything is cut or padded.
    """
    embeds: list[Tensor] = []
    masks: list[Tensor] = []
    learned: list[Tensor] = []
    for row, shown in enumerate(pictures):
        length = shown.shape[1] if len(shown) else 1
        stands = placeholders[row]
        times = stands * (length - 1) + 1
        if compact:
            times = times * (mask[row] | stands)
        sources = torch.arange(len(stands), device=stands.device).repeat_interleave(times)
        is_picture = stands[sources]  # each placeholder T' times
        embeds.append(words[row, sources].masked_scatter(is_picture[:, None], shown.flatten(0, 1)))
        masks.append(mask[row, sources] | is_picture)
        if labels is not None:
            learned.append(labels[row, sources].masked_fill(is_picture, IGNORED))

    def padded(parts: list[Tensor], fill: float) -> Tensor:
        side = "left" if left_padding else "right"
        kept = [part[cut] for part in parts]
        return nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=fill, padding_side=side)

    return Merged(padded(embeds, 0.0), padded(masks, False), padded(learned, IGNORED) if learned else None)


def places(placeholders: Tensor, width: int) -> Tensor:
    """Where pictures of `width` positions come to stand in rows padded on the right: rows and positions, (N, W, 2).

    Args:
        placeholders: (B, T), boolean.
    """
    begins = (1 + placeholders * (width - 1)).cumsum(1)[placeholders] - width
    at = begins[:, None] + torch.arange(width)
    return torch.stack([placeholders.nonzero()[:, :1].expand_as(at), at], dim=-1)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Positions that count words only: (B, L) mask → (B, L); padding on the left does not shift a word."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def split_mask(attention_mask: Tensor | None, length: int) -> tuple[Tensor | None, Tensor | None]:
    """A mask (B, past + T) as what it says of a cache, (B, past), and of `length` new positions, (B, T)."""
    if attention_mask is None:
        return None, None
    border = attention_mask.shape[1] - length
    return attention_mask[:, :border], attention_mask[:, border:]


def mask_after(behind: Tensor | None, merged: Merged, past: int) -> Tensor | None:
    """The attention mask (B, past + L) of a sequence that pictures have made longer, behind what is in a cache.

    Args:
        behind: (B, past), of what is in the cache; None where no mask was given.
    """
    if behind is not None:
        return torch.cat([behind.to(merged.mask.device).bool(), merged.mask], dim=1).long()
    return None if past else merged.mask.long()
