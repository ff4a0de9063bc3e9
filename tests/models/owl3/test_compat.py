"""The authors' forms of arguments mean the same as ours, and contradictions are told."""

from __future__ import annotations

import pytest
import torch
from owl3_samples import prepared
from samples import noise, tiny_model

from longview.errors import RequestError
from longview.models import owl3
from longview.models.owl3.compat import read_media_offset, rows_of_starts, write_media_offset


@pytest.fixture(params=owl3.Config.variants)
def owl(request, tokenizer):
    return tiny_model(owl3, request.param, tokenizer)


@pytest.mark.parametrize("shape", ["list", "tensors", "single", "counts", "counts of a batch"])
def test_every_historic_form_of_media_offset_means_the_same(shape):
    starts = [[2, 7], [4]]
    if shape == "list":
        assert read_media_offset([[2, 7], [4], None, []]) == [*starts, [], []]
    elif shape == "tensors":
        assert read_media_offset([torch.tensor(row) for row in starts]) == starts
    elif shape == "single":
        assert read_media_offset(torch.tensor([2, 7])) == [[2, 7]]
    elif shape == "counts":
        counts = torch.tensor([[0, 0]] * 3 + [[0, 1]] * 5 + [[0, 2]] * 2)
        assert read_media_offset(counts) == read_media_offset(counts[None]) == [[2, 7]]
    else:
        counts = torch.stack(
            [torch.zeros(10, 2, dtype=torch.long), torch.full((10, 2), 2), torch.zeros(10, 2, dtype=torch.long)]
        )
        counts[0, :, 1] = torch.tensor([0] * 3 + [1] * 5 + [2] * 2)
        counts[1, :, 1] = torch.tensor([2] * 5 + [3] * 5)
        counts[2, :, 1] = -1_000_000
        assert read_media_offset(counts) == [*starts, []]


@pytest.mark.parametrize("release", owl3.Config.variants)
@pytest.mark.parametrize("starts", [[2, 7], [0], []])
def test_what_is_written_in_a_releases_form_is_read_again(release, starts):
    assert read_media_offset(write_media_offset(starts, 12, release)) == [starts]


def test_starts_of_another_batch_out_of_order_or_given_twice_are_refused():
    for form in (
        {"placeholder_starts": [[1]], "media_offset": None},
        {"placeholder_starts": None, "media_offset": [[1]]},
    ):
        with pytest.raises(RequestError, match="describes 1 rows, but input_ids has 2"):
            rows_of_starts(batch_size=2, **form)
    with pytest.raises(RequestError, match="must ascend"):
        rows_of_starts([[4, 2]], None, 1)
    with pytest.raises(RequestError, match="give one of them"):
        rows_of_starts([[1]], [[1]], 1)


@torch.no_grad()
def test_forward_and_generate_take_the_official_inputs_as_they_take_ours(owl):
    model, processor = owl
    processor.cut_enable = False
    strings = [{"role": "user", "content": "<|image|>\nCompare. <|image|>"}, {"role": "assistant", "content": ""}]
    official = processor(strings, images=[noise(1), noise(2)])
    ours = {name: value for name, value in official.items() if name != "media_offset"}
    ours["placeholder_starts"] = read_media_offset(official["media_offset"])
    assert torch.equal(model(**official).logits, model(**ours).logits)
    assert torch.equal(model.generate(**official, max_new_tokens=4), model.generate(**ours, max_new_tokens=4))
    assert isinstance(ours["placeholder_starts"][0][0], int)


@torch.no_grad()
def test_the_output_is_a_tuple_where_that_is_asked_for(owl):
    model, processor = owl
    inputs = prepared(processor, "What?", 1)
    output = model(**inputs)
    logits, cache, side_cache = model(**inputs, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert cache.side_cache is side_cache


def test_generate_says_what_it_needs(owl):
    model, processor = owl
    with pytest.raises(RequestError, match="input_ids"):
        model.generate()
    with pytest.raises(RequestError, match="needs tokenizer"):
        model.generate(**prepared(processor, "What?"), decode_text=True)
