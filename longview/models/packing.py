"""Several samples as one row without padding, in which none attends to another.

    rows      t t p p t ·      positions  0 1 2 3 4     →    t t p p t a b b c
              a b b c · ·                 0 1 2 3            0 1 2 3 4 0 1 2 3

Positions that begin again at 0 are how transformers' models tell samples apart, in every implementation of attention:
a token attends to those before it back to the last 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from longview.models.base import IGNORED


def pack(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `forward` for B rows padded on the right → the same samples as one row, and their `position_ids`.

    Whatever is (B, T, …) becomes (1, sum of lengths, …). The first label of a sample is not learned, because the token
    before it is another sample's.
    """
    packed = dict(arguments)
    mask = packed.pop("attention_mask").bool()
    for key in ("input_ids", "inputs_embeds", "labels"):
        if key in packed:
            packed[key] = packed[key][mask].unsqueeze(0)
    lengths = mask.sum(1).tolist()
    positions = [torch.arange(length, device=mask.device) for length in lengths]
    packed["position_ids"] = torch.cat(positions).unsqueeze(0)
    if "labels" in packed:
        packed["labels"] = packed["labels"].masked_fill(packed["position_ids"] == 0, IGNORED)
    return packed
