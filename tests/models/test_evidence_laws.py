"""Laws of evidence at the model and the processor: each family's variants inherit them.

Attention is that of transformers' own eager attention where pictures stand in the sequence; owl3's is held in its own
folder. A patch's place on the user's picture is held by pictures whose colours say where each pixel is.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from PIL import Image
from samples import noise
from tolerances import SAME_MATHS
from torch.nn.functional import avg_pool2d
from transformers import DynamicCache

from longview.media import Frame, Medium
from longview.messages import Part, ask
from longview.models.families import families
from longview.models.mgm.fusion import small_views


def photo(picture: Image.Image) -> Medium:
    return Medium("image", "photo", [Frame(picture, 0, None)], *picture.size, 1, None, None, "digest")


def prepared(processor, *pictures: Image.Image, **fields):
    parts = [Part("image", source=picture, **fields) for picture in pictures]
    return processor.prepare([ask("Which one?", *parts)], [photo(picture) for picture in pictures])


@pytest.fixture
def inputs(tiny):
    return prepared(tiny[1], noise(1), noise(2, 30, 60), noise(3))


def positions_of(tiny, inputs) -> torch.Tensor:
    return tiny[1].placeholder_positions(inputs.text_inputs)[..., 1]


@torch.no_grad()
def evidence(tiny, inputs) -> torch.Tensor:
    arguments = tiny[0].embed_pictures(inputs.load_pixels())
    return tiny[0].evidence(positions_of(tiny, inputs), **arguments)[0]


def test_shares_are_no_less_than_zero_and_no_more_than_all_attention(tiny, inputs):
    found = evidence(tiny, inputs)
    assert found.dtype == torch.float32
    assert found.shape == (inputs.length, inputs.num_pictures, tiny[0].config.patches_per_picture)
    assert found.min() >= 0
    assert found.sum((1, 2)).max() <= 1 + SAME_MATHS
    assert found[-1].sum(-1).min() > 0, "the last token attends to every picture"


def test_a_picture_that_a_token_cannot_see_has_none(tiny, inputs):
    found, positions = evidence(tiny, inputs), positions_of(tiny, inputs)
    for number, own in enumerate(positions.tolist()):
        assert not found[: own[0], number].any()
        assert (found[own[-1] + 1 :, number].sum(-1) > 0).all()


@torch.no_grad()
def test_tokens_behind_a_cache_have_what_they_have_in_one_pass(tiny, inputs):
    model, _ = tiny
    whole, positions = evidence(tiny, inputs), positions_of(tiny, inputs)
    arguments = model.embed_pictures(inputs.load_pixels())
    name = "inputs_embeds" if "inputs_embeds" in arguments else "input_ids"
    begin, cache = inputs.length - 5, DynamicCache(config=model.config)
    rest = arguments[name][:, begin:]
    arguments |= {name: arguments[name][:, :begin], "attention_mask": arguments["attention_mask"][:, :begin]}
    output = model(**arguments, past_key_values=cache)
    beside = {"side_cache": output.side_cache} if getattr(output, "side_cache", None) is not None else {}
    found, _ = model.evidence(positions, **{name: rest}, past_key_values=cache, **beside)
    torch.testing.assert_close(found, whole[begin:], atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_it_is_the_attention_that_transformers_reports_and_nothing_stays_changed(tiny, inputs):
    model, _ = tiny
    arguments = model.embed_pictures(inputs.load_pixels())
    before = model(**arguments).logits
    found, layers = model.evidence(positions_of(tiny, inputs), **arguments)
    assert torch.equal(model(**arguments).logits, before)
    if "inputs_embeds" not in arguments:
        assert layers == tuple(number - 1 for number in model.config.hyper_layers)
        return
    model.set_attn_implementation("eager")
    attentions = model(**arguments, output_attentions=True).attentions
    again, _ = model.evidence(positions_of(tiny, inputs), **arguments)
    model.set_attn_implementation("sdpa")
    expected = torch.stack(attentions)[:, 0].mean((0, 1))[:, positions_of(tiny, inputs)]
    torch.testing.assert_close(found, expected, atol=SAME_MATHS, rtol=0)
    torch.testing.assert_close(again, expected, atol=SAME_MATHS, rtol=0)
    assert list(layers) == list(range(model.language_model.config.num_hidden_layers))


@torch.no_grad()
def test_what_an_encoder_says_of_patches_changes_no_feature_and_comes_with_each(tiny, inputs):
    model, _ = tiny
    pixels, details = inputs.load_pixels()["pixel_values"], []
    assert torch.equal(model.encode(pixels, details=details), model.encode(pixels))
    assert bool(details) == bool(model.detail)
    if details:
        found = torch.cat(details)
        assert found.shape[:2] == (inputs.num_pictures, model.config.patches_per_picture)
        weights = found[..., 1] if model.detail == "words" else found
        assert (weights[..., :-1] >= weights[..., 1:]).all() or model.detail == "mined"
        assert model.detail == "words" or torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


# ── where patches are ──


def of_owl3(config, pixels):
    return [avg_pool2d(each, config.vision_config.patch_size) for each in pixels]


def of_ovis2(config, pixels):
    visual = config.visual_tokenizer_config
    cell = visual.backbone_config.patch_size * visual.hidden_stride
    pooled = [avg_pool2d(each, cell, ceil_mode=True) for each in pixels]
    if len(pooled[0][0].flatten()) == config.patches_per_picture:
        return pooled
    whole = [avg_pool2d(each, each.shape[-1]) for each in pixels]
    return [each for pair in zip(whole, pooled, strict=True) for each in pair]


def of_mgm(config, pixels):
    views = small_views(pixels, config.vision_config.image_size, config.image_grid)
    views = views[:, None] if views.dim() == 4 else views
    (views,) = torch.cat([views[:, -1:], views[:, :-1]], dim=1)
    return [avg_pool2d(view, config.vision_config.patch_size) for view in views]


def of_halves(config, pixels):
    return [each.unflatten(-1, (2, -1)).mean((1, 3))[:, None] for each in pixels]


SEEN = {"mplugowl3": of_owl3, "ovis": of_ovis2, "mgm": of_mgm, "halves": of_halves}
"""The mean colour of what each patch is made of, (3, rows, columns) for each grid, by type of model."""
SIZES = [(400, 300), (300, 700), (2000, 300), (330, 330), (770, 330)]


def coordinates(width: int, height: int) -> Image.Image:
    """Red grows to the right, and green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 128)], -1).round().astype(np.uint8))


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_patch_of_each_crop_is_told_to_be_where_its_pixels_come_from(tiny, size, detail):
    assert_placed(tiny[0].config, tiny[1], size, detail)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("family", "variant", "part", "field", "value"),
    [
        ("mgm", "plain", "", "image_aspect_ratio", None),
        ("mgm", "hd", "", "image_aspect_ratio", None),
        ("mgm", "plain", "vision_config", "image_size", 112),
        ("owl3", "240728", "vision_config", "image_size", 40),
        ("ovis2", "st_argmax", "visual_tokenizer_config.backbone_config", "image_size", 140),
        ("ovis2", "softmax", "visual_tokenizer_config.backbone_config", "image_size", 154),
    ],
)
def test_the_same_where_patches_are_many_the_middle_is_cut_out_or_the_tower_drops_pixels(
    family, variant, part, field, value, size, tokenizer
):
    found = families()[family]
    config = found.Config.tiny(variant)
    setattr(reduce(getattr, filter(None, part.split(".")), config), field, value)
    assert_placed(config, found.Processor(tokenizer, config), size, "auto")


def assert_placed(config, processor, size: tuple[int, int], detail: str) -> None:
    (encoder_input,) = prepared(processor, coordinates(*size), detail=detail).encoder_inputs
    grids = encoder_input.grids(*size)
    assert sum(map(len, grids)) == encoder_input.num_pictures * config.patches_per_picture

    def seen(picture):
        pixels = encoder_input.pixels(picture)["pixel_values"]
        return [each.double() for each in SEEN[config.model_type](config, pixels)]

    shown, black, white = (seen(picture) for picture in (coordinates(*size), *plain(*size)))
    inside = 0
    for grid, colours, lowest, highest in zip(grids, shown, black, white, strict=True):
        assert colours.shape[1:] == (grid.rows, grid.columns)
        span = (highest - lowest)[:2].flatten(1)  # 0 where a patch shows a border only
        covered = (span / span.max()).amin(0)
        where = (colours - lowest)[:2].flatten(1) / span * torch.tensor(size)[:, None]
        for patch in range(len(grid)):
            box = grid.box(patch)
            if box is None:
                assert covered[patch] < 0.1
            elif covered[patch] > 0.1:
                inside += 1
                left, upper, right, lower = box
                assert float(where[0, patch]) == pytest.approx((left + right) / 2, abs=0.03 * size[0])
                assert float(where[1, patch]) == pytest.approx((upper + lower) / 2, abs=0.03 * size[1])
    assert inside


def plain(width: int, height: int) -> list[Image.Image]:
    return [Image.new("RGB", (width, height), colour) for colour in ("black", "white")]
