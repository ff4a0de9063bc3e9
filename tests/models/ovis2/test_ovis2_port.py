"""The port of Ovis2 in transformers: its folders open here, ours open there, and logits agree both ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ovis2_golden import GOLDEN, TINY, pixels_of, synthetic, tensors_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tolerances import GOLDEN_LOGITS
from torch import nn
from transformers import AutoProcessor, Ovis2ForConditionalGeneration

import longview
from longview.errors import CheckpointError
from longview.media import open_media
from longview.messages import ask, image
from longview.models import checkpoint
from longview.models.official import make_official, make_transformers
from longview.models.ovis2 import Config, Model, Processor, port
from longview.models.ovis2.crops import choose_grid
from longview.models.ovis2.fusion import BEGIN, PLACEHOLDER
from longview.train.saved.export import export_model

CASES = ("one_image_1tile", "one_image_tall_1tile", "one_image_grid", "three_images", "video_5frames", "multi_turn")


@pytest.fixture(scope="module")
def ported(tmp_path_factory) -> Path:
    """The authors' tiny checkpoint in the port's form."""
    return export_model(str(TINY), tmp_path_factory.mktemp("port") / "ported", "transformers")


@pytest.fixture(scope="module")
def theirs(ported):
    model, info = Ovis2ForConditionalGeneration.from_pretrained(ported, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.fixture
def without_norm(theirs):
    """The port but for the norm after the tower, which the releases were trained without."""
    tower = theirs.model.vision_tower.transformer
    norm, tower.rms_norm = tower.rms_norm, nn.Identity()
    yield theirs
    tower.rms_norm = norm


@pytest.fixture(scope="module")
def ours(ported):
    return Model.from_pretrained(ported).eval()


def port_ids(ids: torch.Tensor, config) -> torch.Tensor:
    """Our ids (T,) as the port's (1, L): each placeholder as many times as a crop has visual tokens."""
    found: list[int] = []
    for token in ids.tolist():
        if token == PLACEHOLDER:
            found += [config.image_token_id] * 4
        else:
            found.append(config.visual_indicator_token_ids[BEGIN - token] if token <= BEGIN else token)
    return torch.tensor([found])


@torch.no_grad()
def logits_of(model, golden):
    ids = port_ids(golden["input_ids"], model.config)
    return model(input_ids=ids, pixel_values=pixels_of(golden)).logits[0]


def test_the_names_are_those_of_the_key_map():
    mapped = json.loads((GOLDEN / "key_map_official_to_port.json").read_text())
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        shapes = {name: tuple(weights.get_tensor(name).shape) for name in weights.keys()}  # noqa: SIM118
    assert set(shapes) == set(mapped)
    found: dict[str, tuple[int, ...]] = {}
    for name, names in mapped.items():
        if len(names) == 1:
            assert port.port_name(name) == names[0]
            assert port.official_name(names[0]) == name
        found |= dict.fromkeys(names, shapes[name])
        if len(names) == 3:
            found |= dict.fromkeys(names, (shapes[name][0] // 3, *shapes[name][1:]))
        if name.endswith("pos_embed"):
            found[names[0]] = shapes[name][1:]
    assert port.official_shapes(found) == shapes
    assert port.official_shapes(shapes) == shapes


def test_a_folder_of_the_port_opens_as_the_authors_model(ported, ours):
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        official = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    state = ours.state_dict()
    assert set(state) == set(official)
    for name, tensor in official.items():
        assert torch.equal(state[name], tensor), name
    theirs, own = ours.config.to_dict(), Config.from_pretrained(TINY).to_dict()
    for part in ("llm_config", "visual_tokenizer_config"):
        assert {key for key, value in theirs[part].items() if own[part].get(key) != value} <= {"dtype"}, part
    assert Processor.from_pretrained(ported).image_settings == Processor.from_pretrained(TINY).image_settings


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_both_ways(case, ours, without_norm):
    golden = tensors_of(case)
    with torch.no_grad():
        mine = ours(input_ids=golden["input_ids"][None], pixel_values=[pixels_of(golden)]).logits[0]
    torch.testing.assert_close(mine, golden["prefill_logits"][0], atol=GOLDEN_LOGITS, rtol=0)
    torch.testing.assert_close(logits_of(without_norm, golden), mine, atol=GOLDEN_LOGITS, rtol=0)


def test_the_port_as_it_is_agrees_in_text_and_not_in_pictures(theirs):
    golden = tensors_of("text_only")
    torch.testing.assert_close(logits_of(theirs, golden), golden["prefill_logits"][0], atol=GOLDEN_LOGITS, rtol=0)
    golden = tensors_of("one_image_1tile")
    apart = (logits_of(theirs, golden) - golden["prefill_logits"][0]).abs().max()
    assert apart > 1, "the port no longer applies the norm: docs/official-ovis2.md says that it does"


def test_a_model_that_was_trained_with_the_norm_computes_as_the_port_does(ported, theirs, tmp_path):
    folder = Path(shutil.copytree(ported, tmp_path / "tuned"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["tower_norm"] = True
    (folder / "config.json").write_text(json.dumps(config))
    model = Model.from_pretrained(folder).eval()
    golden = tensors_of("one_image_grid")
    with torch.no_grad():
        mine = model(input_ids=golden["input_ids"][None], pixel_values=[pixels_of(golden)]).logits[0]
    torch.testing.assert_close(mine, logits_of(theirs, golden), atol=GOLDEN_LOGITS, rtol=0)
    again = export_model(str(folder), tmp_path / "again", None)  # in our own form it is kept
    assert Model.from_pretrained(again).config.visual_tokenizer_config.backbone_config.tower_norm
    with pytest.raises(CheckpointError, match=r"tower_norm.*leave out --official"):
        make_official(again)


def test_what_is_opened_from_the_port_is_saved_in_the_authors_names(ours, ported, tmp_path):
    ours.save_pretrained(tmp_path)
    assert set(checkpoint.tensor_shapes(tmp_path)) == set(checkpoint.tensor_shapes(TINY))
    official = export_model(str(ported), tmp_path / "official", "official")
    config = checkpoint.read_config(official)
    assert config["model_type"] == "ovis"
    assert config["architectures"] == ["Ovis"]
    assert checkpoint.read_json(official, "preprocessor_config.json")["image_processor_type"] == "CLIPImageProcessor"
    assert not (official / "processor_config.json").exists()


@torch.no_grad()
def test_plain_transformers_answers_as_the_engine_does(ported, without_norm):
    processor = AutoProcessor.from_pretrained(ported)
    assert type(processor).__name__ == "Ovis2Processor"
    picture = synthetic(56, 56, 3)  # as large as a crop: neither cut nor resized
    content = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    engine = longview.load(str(ported))
    part = image(picture)
    prepared = engine.processor.prepare([ask("Describe the image.", part)], open_media([part])).load_pixels()
    assert inputs["input_ids"].tolist() == port_ids(prepared["input_ids"][0], without_norm.config).tolist()
    torch.testing.assert_close(inputs["pixel_values"], prepared["pixel_values"], atol=1e-5, rtol=0)
    tokens = without_norm.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert sorted(without_norm.generation_config.eos_token_id) == sorted(engine.processor.end_tokens)
    answer = engine.answer([ask("Describe the image.", part)], max_tokens=8)
    assert list(answer.tokens) == tokens.tolist()


def test_the_port_cuts_a_wide_picture_into_rows(ported):
    images = AutoProcessor.from_pretrained(ported).image_processor
    found = images(synthetic(112, 56, 0), return_tensors="pt")
    assert found["grids"].tolist() == [[2, 1]], "the port no longer swaps rows and columns: mend docs/official-ovis2.md"
    assert choose_grid(112, 56, 56, 9) == (1, 2)


def test_shards_stay_shards_and_a_full_vocabulary_grows(tmp_path, tokenizer):
    torch.manual_seed(0)
    config = Config.tiny("st_argmax")
    config.llm_config.vocab_size = len(tokenizer)
    Model(config).save_pretrained(tmp_path, max_shard_size="100KB")
    Processor(tokenizer, config).save_pretrained(tmp_path)
    before = checkpoint.tensor_shapes(tmp_path)
    make_transformers(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    after = checkpoint.tensor_shapes(tmp_path)
    assert after["lm_head.weight"][0] == before["llm.lm_head.weight"][0] + 6
    theirs, info = Ovis2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert torch.equal(theirs.lm_head.weight[-1], theirs.lm_head.weight[start])
    assert theirs.config.image_token_id == len(tokenizer)
    again = Model.from_pretrained(tmp_path)
    assert again.config.llm_config.vocab_size == len(tokenizer) + 6


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda config: config["vision_config"].update(num_visual_indicator_tokens=4), "num_visual_indicator_tokens 4"),
        (lambda config: config["vision_config"].update(hidden_act="gelu"), "hidden_act 'gelu'"),
        (lambda config: config["text_config"].update(model_type="llama"), "'llama' language model"),
        (lambda config: config.update(text_config="qwen2"), "does not describe this family"),
    ],
)
def test_a_config_of_the_port_that_is_no_ovis2_is_refused(ported, tmp_path, edit, told):
    folder = Path(shutil.copytree(ported, tmp_path / "edited"))
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=told):
        Model.from_pretrained(folder)


def test_a_folder_of_the_port_that_lacks_a_matrix_names_it(ported, tmp_path):
    folder = Path(shutil.copytree(ported, tmp_path / "cut"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.vision_tower.transformer.encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*trunk\.blocks\.1\.attn\.qkv\.weight"):
        Model.from_pretrained(folder)


@pytest.mark.parametrize(
    ("variant", "changes", "told"),
    [
        ("siglip", {}, "its tower is 'siglip'"),
        ("softmax", {}, "a crop has 3 × 3 patches"),
    ],
)
def test_what_the_port_cannot_compute_is_not_written(tmp_path, tokenizer, variant, changes, told):
    config = Config.tiny(variant, **changes)
    Model(config).save_pretrained(tmp_path)
    Processor(tokenizer, config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{told}.*leave out --transformers"):
        make_transformers(tmp_path)
    Model.from_pretrained(tmp_path)  # nothing was touched


def test_a_family_without_a_port_has_no_such_form(tmp_path, tokenizer):
    from longview.models.owl3 import Config, Model

    Model(Config.tiny()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"transformers has no model of family 'owl3'; leave out --transformers"):
        make_transformers(tmp_path)
