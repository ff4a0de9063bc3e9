"""The seams to transformers hold under each version that is supported."""

from __future__ import annotations

import warnings

import pytest
import torch
from samples import tiny_model
from tolerances import EXACT_ATTENTION
from transformers import DynamicCache

from longview.models.families import families
from longview.models.transformers_seams import CACHE_NAMES


@pytest.mark.parametrize("family", families().values(), ids=families())
@pytest.mark.parametrize("name", CACHE_NAMES)
@torch.no_grad()
def test_forward_takes_the_cache_by_either_name_and_warns_of_neither(family, name, tokenizer):
    model, _ = tiny_model(family, family.Config.variants[0], tokenizer)
    ids = torch.arange(3, 10)[None]
    whole = model(input_ids=ids).logits
    cache = DynamicCache()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(input_ids=ids[:, :4], **{name: cache})
        rest = model(input_ids=ids[:, 4:], **{name: cache}).logits
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(rest, whole[:, 4:], atol=EXACT_ATTENTION, rtol=0)
