"""Ours against the authors', on tiny checkpoints of every language model: a ladder from features to greedy tokens."""

from __future__ import annotations

import pytest
import torch
from mgm_golden import CASES, GOLDEN, VARIANTS, change, folder_of
from safetensors.torch import load_file
from tolerances import GOLDEN_EMBEDS, GOLDEN_MGM_LOGITS

from longview.models.mgm import Model
from longview.models.mgm.compat import TwoSizes
from longview.models.mgm.fusion import views
from longview.models.mgm.towers import coarse_features

CHECKED = [pytest.param(variant, case, id=f"{variant}-{case}") for variant in VARIANTS for case in CASES]


@pytest.fixture(scope="module")
def opened():
    models: dict = {}

    def get(variant: str) -> Model:
        if variant not in models:
            folder = GOLDEN / variant
            models[variant] = Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        return models[variant]

    return get


def pictures(golden: dict, count: int) -> dict:
    both = {name: golden[name][:count].float() for name in ("images", "images_aux")}
    return both if count else {}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = GOLDEN_EMBEDS) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("variant", "case"), [pair for pair in CHECKED if CASES[pair.values[1]]])
@torch.no_grad()
def test_pictures_become_the_authors_features_and_embeddings(opened, variant, case):
    model, golden = opened(variant), load_file(GOLDEN / variant / "golden.safetensors")
    given = pictures(golden, CASES[case])
    grid, images = model.config.image_grid, given["images"]
    images = images if grid > 1 else images[:, None]
    coarse = coarse_features(model.vision_tower, images.flatten(0, 1), model.config.mm_vision_select_layer)
    coarse = coarse.unflatten(0, images.shape[:2])
    if f"{case}.low_res_features" in golden:  # theirs are the crops of all pictures, then the whole of each
        close(torch.cat([coarse[:, :-1].flatten(0, 1), coarse[:, -1]]), golden[f"{case}.low_res_features"])
    fine = model.vision_tower_aux(given["images_aux"])
    if f"{case}.high_res_features" in golden:
        expected = golden[f"{case}.high_res_features"]
        close(fine[:, :: fine.shape[1] // expected.shape[1]], expected)
    mined = [model.mining(view, under) for view, under in views(coarse, fine, grid)]
    if grid > 1:
        close(mined.pop(0), golden[f"{case}.mined_global"])
    if f"{case}.mined_local" in golden:
        close(torch.stack(mined, dim=1).flatten(0, 1), golden[f"{case}.mined_local"])
    embeds = model.encode_images(**given)
    assert embeds.shape[1] == model.config.patches_per_picture
    close(embeds, golden[f"{case}.image_embeds"])


@pytest.mark.parametrize(("variant", "case"), CHECKED)
def test_logits_and_greedy_tokens_are_the_authors(opened, variant, case):
    model, golden = opened(variant), load_file(GOLDEN / variant / "golden.safetensors")
    check_answers(model, golden, golden, case)


def check_answers(model: Model, inputs: dict, golden: dict, case: str) -> None:
    ids, given = inputs[f"{case}.input_ids"], pictures(inputs, CASES[case])
    with torch.no_grad():
        close(model(input_ids=ids, **given).logits, golden[f"{case}.prefill_logits"], GOLDEN_MGM_LOGITS)
    found = model.generate(
        ids, **given, do_sample=False, max_new_tokens=6, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert found.sequences.tolist() == golden[f"{case}.greedy_tokens"].tolist()
    close(torch.stack(found.logits, dim=1), golden[f"{case}.greedy_scores"], GOLDEN_MGM_LOGITS)


@pytest.mark.parametrize("case", CASES)
def test_gemma_with_the_other_gelu_has_the_other_answers(tmp_path, case):
    folder = folder_of("gemma", tmp_path)
    change(folder, hidden_activation="gelu_pytorch_tanh")
    model = Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    exact = load_file(GOLDEN / "gemma" / "golden.safetensors")
    check_answers(model, exact, load_file(GOLDEN / "gemma" / "golden_tanh.safetensors"), case)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_training_batch_has_the_authors_labels_and_loss(opened, variant):
    model, golden = opened(variant), load_file(GOLDEN / variant / "golden.safetensors")
    batch = {name: golden[f"train.{name}"] for name in ("input_ids", "attention_mask", "labels")}
    given = pictures(golden, 2)  # the second row has no placeholder, and holds a picture all the same
    merged = model.merge_pictures(**batch, pixel_values=TwoSizes(**given))
    assert merged.labels.tolist() == golden["train.merged_labels"].tolist()
    assert merged.mask.tolist() == golden["train.merged_attention_mask"].bool().tolist()
    if "train.merged_embeds" in golden:
        close(merged.embeds[merged.mask], golden["train.merged_embeds"][merged.mask])
    output = model(**batch, **given)
    close(output.loss[None], golden["train.loss"], GOLDEN_MGM_LOGITS)
    if "train.logits" in golden:
        close(output.logits[merged.mask], golden["train.logits"][merged.mask], GOLDEN_MGM_LOGITS)


@pytest.mark.filterwarnings("ignore:only 20 of 23 positions")
@torch.no_grad()
def test_what_is_too_long_is_cut_as_the_authors_cut_it_and_padding_may_stand_on_the_left(tmp_path):
    golden = load_file(GOLDEN / "plain" / "golden.safetensors")
    batch = [golden[f"train.{name}"] for name in ("input_ids", "attention_mask", "labels")]
    folder = folder_of("plain", tmp_path)
    for name, left, changes in (
        ("trunc20", False, {"tokenizer_model_max_length": 20}),
        ("leftpad", True, {"tokenizer_model_max_length": 2048, "tokenizer_padding_side": "left"}),
    ):
        change(folder, **changes)
        model = Model.from_pretrained(folder).eval()
        merged = model.merge_pictures(*batch, TwoSizes(**pictures(golden, 2)), left)
        assert merged.labels.tolist() == golden[f"{name}.merged_labels"].tolist()
        assert merged.mask.tolist() == golden[f"{name}.merged_attention_mask"].bool().tolist()
        output = model(input_ids=batch[0], attention_mask=batch[1], labels=batch[2], **pictures(golden, 2))
        assert output.logits.shape[1] == merged.labels.shape[1]
        if left:
            close(output.loss[None], golden["train.loss"], GOLDEN_MGM_LOGITS)
