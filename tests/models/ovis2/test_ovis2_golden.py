"""Ours against the authors' numbers, on their tiny random checkpoint, through the production loader."""

from __future__ import annotations

import json

import pytest
import torch
from ovis2_golden import CASES, GOLDEN, TINY, folder_of, pixels_of, tensors_of
from safetensors import safe_open
from tolerances import GOLDEN_EMBEDS, GOLDEN_GRADIENTS, GOLDEN_LOGITS, GOLDEN_TOKENS

from longview.models.ovis2 import Model
from longview.models.ovis2.convert import trainable
from longview.models.ovis2.fusion import tokenize

SINGLE = [case for case in CASES if "greedy_ids" in CASES[case]["tensors"] and "input_ids_list" in CASES[case]]


@pytest.fixture(scope="module")
def tiny():
    return Model.from_pretrained(TINY).eval()


@pytest.fixture(scope="module", params=SINGLE)
def solved(request, tmp_path_factory):
    """A case, its model, and the authors' numbers."""
    case = request.param
    return Model.from_pretrained(folder_of(case, tmp_path_factory.mktemp(case))).eval(), tensors_of(case)


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_every_official_tensor_has_its_own_name_here_and_there_are_no_others(tiny):
    mapped = json.loads((GOLDEN / "key_map_official_to_port.json").read_text())
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        official = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert set(mapped) == set(official) == set(tiny.state_dict())
    assert all(torch.equal(tiny.state_dict()[name], tensor) for name, tensor in official.items())


def test_features_tokens_and_embeddings_of_pictures_are_the_authors(solved):
    model, golden = solved
    pixels = pixels_of(golden)
    if pixels is None:
        return
    with torch.no_grad():
        features = model.visual_tokenizer.encode(pixels)
        same(features, golden["encoded_features"], GOLDEN_EMBEDS)
        same(model.visual_tokenizer.head(features), golden["head_logits"], GOLDEN_EMBEDS)
        tokens = model.visual_tokenizer(pixels)
    same(tokens, golden["visual_tokens"], GOLDEN_TOKENS)
    assert not tokens[..., -5:].any()


@torch.no_grad()
def test_the_merged_sequence_and_its_logits_are_the_authors(solved):
    model, golden = solved
    arguments = {"input_ids": golden["input_ids"][None], "attention_mask": golden["attention_mask"][None]}
    arguments["pixel_values"] = [pixels_of(golden)]
    embedded = model.embed_pictures(arguments)
    same(embedded["inputs_embeds"], golden["merged_embeds"], GOLDEN_EMBEDS)
    assert torch.equal(embedded["attention_mask"].bool(), golden["merged_attention_mask"])
    same(model(**embedded).logits, golden["prefill_logits"], GOLDEN_LOGITS)
    same(model(**arguments).logits, golden["prefill_logits"], GOLDEN_LOGITS)


def test_greedy_tokens_and_the_logits_of_each_step_are_the_authors(solved):
    model, golden = solved
    output = model.generate(
        golden["input_ids"][None],
        pixel_values=[pixels_of(golden)],
        attention_mask=golden["attention_mask"][None],
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=[],
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert output.sequences.tolist() == golden["greedy_ids"].tolist()
    same(torch.stack(output.logits, 1), golden["greedy_step_logits"], GOLDEN_LOGITS)


def batch() -> tuple[dict, dict[str, torch.Tensor]]:
    golden = tensors_of("batch3_left_pad")
    rows = [pixels_of(golden, f"_{row}") for row in range(3)]
    masks = {"input_ids": golden["input_ids"], "attention_mask": golden["attention_mask"]}
    return {**masks, "pixel_values": rows}, golden


@torch.no_grad()
def test_a_batch_padded_on_the_left_is_the_authors(tiny):
    arguments, golden = batch()
    embedded = tiny.embed_pictures({**arguments, "left_padding": True})
    mask = golden["merged_attention_mask"]
    assert torch.equal(embedded["attention_mask"].bool(), mask)
    same(embedded["inputs_embeds"], golden["merged_embeds"], GOLDEN_EMBEDS)
    same(tiny(**embedded).logits[mask], golden["prefill_logits"][mask], GOLDEN_LOGITS)
    tokens = tiny.generate(**arguments, max_new_tokens=6, do_sample=False, eos_token_id=[])
    assert tokens.tolist() == golden["greedy_ids"].tolist()


@torch.no_grad()
def test_a_sequence_that_is_too_long_keeps_its_end_for_generation_and_its_beginning_for_training():
    model = Model.from_pretrained(TINY, multimodal_max_length=24).eval()
    golden = tensors_of("truncate24")
    arguments = {"input_ids": golden["input_ids"][None], "pixel_values": pixels_of(golden)}
    for side, left in (("left", True), ("right", False)):
        with pytest.warns(UserWarning, match=r"only the \w+ 24 of \d+ positions of text and pictures are kept"):
            embedded = model.embed_pictures({**arguments, "left_padding": left})
        same(embedded["inputs_embeds"], golden[f"{side}_embeds"], GOLDEN_EMBEDS)
        assert torch.equal(embedded["attention_mask"].bool(), golden[f"{side}_mask"])


def test_a_visual_word_drawn_with_the_recorded_noise_is_the_authors(tmp_path):
    model = Model.from_pretrained(folder_of("gumbel_argmax", tmp_path)).eval()
    golden = tensors_of("gumbel_argmax")
    with torch.no_grad():
        logits = model.visual_tokenizer.head(model.visual_tokenizer.encode(pixels_of(golden)))
    same(logits, golden["head_logits"], GOLDEN_EMBEDS)
    tau = model.visual_tokenizer.config.tau
    assert (model.visual_tokenizer.config.tokenize_function, tau) == ("gumbel_argmax", 0.7)
    drawn = tokenize(logits, "gumbel_argmax", tau, golden["gumbel_noise"])
    same(drawn, golden["visual_tokens_unpadded"], GOLDEN_TOKENS)


@pytest.mark.parametrize("case", ["train_step", "train_step_st_argmax"])
def test_a_training_step_has_the_authors_loss_and_gradients(case, tmp_path):
    def best_word(folder):
        config = json.loads((folder / "config.json").read_text())
        if case.endswith("st_argmax"):
            config["visual_tokenizer_config"]["tokenize_function"] = "st_argmax"
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    model = Model.from_pretrained(best_word(folder_of(case, tmp_path))).train()
    inputs, golden = tensors_of("train_step"), tensors_of(case)
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
    arguments["pixel_values"] = [pixels_of(inputs, "_0"), pixels_of(inputs, "_1")]
    if case == "train_step":
        embedded = model.embed_pictures(arguments)
        assert torch.equal(embedded["labels"], golden["merged_labels"])
        same(embedded["inputs_embeds"], golden["merged_embeds"], GOLDEN_EMBEDS)
    output = model(**arguments)
    if case == "train_step":
        mask = golden["merged_attention_mask"]
        same(output.logits[mask], golden["logits"][mask], GOLDEN_LOGITS)
    same(output.loss, golden["loss"][0], GOLDEN_EMBEDS)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in golden.items():
        if name.startswith("grad."):
            same(gradients[name.removeprefix("grad.")], expected, GOLDEN_GRADIENTS)
    for name, norm in CASES[case]["grad_norms"].items():
        found = 0.0 if gradients[name] is None else float(gradients[name].norm())
        assert found == pytest.approx(norm or 0.0, abs=GOLDEN_GRADIENTS, rel=GOLDEN_GRADIENTS), name


def test_text_alone_gives_every_used_parameter_a_gradient_in_training(tiny):
    golden = tensors_of("text_only")
    tiny.train()
    for pixels in (None, [None], [torch.zeros(1, 3, 56, 56)]):
        tiny.zero_grad()
        tiny(input_ids=golden["input_ids"][None], labels=golden["input_ids"][None], pixel_values=pixels).loss.backward()
        without = [name for name, parameter in tiny.named_parameters() if parameter.grad is None]
        assert without == ["visual_tokenizer.backbone.trunk.post_trunk_norm.weight"]
        assert not tiny.vte.weight.grad.any()
    tiny.zero_grad()
    tiny.eval()


@pytest.mark.parametrize("modules", json.loads((GOLDEN / "train_modules.json").read_text()))
def test_train_modules_open_the_parameters_that_the_official_trainer_opens(tiny, modules):
    expected = json.loads((GOLDEN / "train_modules.json").read_text())[modules]
    names = [name for name, _ in tiny.named_parameters()]
    assert sorted(trainable(modules, names)) == sorted(names if expected == "every parameter" else expected)
