"""Fields of the config as arguments of `from_pretrained`, and what a config says against its own weights."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import tiny_model

import longview
from longview.errors import CheckpointError, RequestError
from longview.models import checkpoint
from longview.models.families import families

HEADS = {
    "owl3": ("241014", "language_model.lm_head.weight"),
    "ovis2": ("softmax", "llm.lm_head.weight"),
    "mgm": ("gemma", "lm_head.weight"),
}
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(params=sorted(HEADS))
def name(request):
    return request.param


@pytest.fixture
def folder(name, tokenizer, tmp_path):
    model, processor = tiny_model(families()[name], HEADS[name][0], tokenizer)
    place = tmp_path / "model"
    model.save_pretrained(place)
    (processor if name != "mgm" else tokenizer).save_pretrained(place)
    return place


def text_config(model):
    return model.config.get_text_config()


# ── a head that is tied ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shift", [0.0, 1.0, None], ids=["equal", "different", "absent"])
def test_a_tied_head_is_the_embeddings_and_one_that_differs_is_told_once(name, folder, shift, tmp_path):
    family, head = families()[name], HEADS[name][1]
    reference = family.Model.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=IDS).logits
    tensors = load_file(folder / "model.safetensors")
    (table,) = (tensor for key, tensor in tensors.items() if key.endswith("embed_tokens.weight"))
    if shift is not None:
        save_file(tensors | {head: table + shift}, folder / "model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = family.Model.from_pretrained(folder, dtype=torch.float32).eval()
    lines = [str(warning.message) for warning in told if "lm_head" in str(warning.message)]
    assert len(lines) == (shift == 1.0)
    assert all("differs from the embeddings" in line and "\n" not in line for line in lines)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model(input_ids=IDS).logits, reference)
    model.save_pretrained(tmp_path / "again")
    assert not any(key == head for key in load_file(tmp_path / "again" / "model.safetensors"))


# ── fields of the config ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_field_of_the_config_is_an_argument(name, folder):
    for opened in (
        families()[name].Model.from_pretrained(folder, use_cache=False, vision_batch_size=2, rms_norm_eps=1e-4),
        longview.AutoModel.from_pretrained(str(folder), use_cache=False, vision_batch_size=2, rms_norm_eps=1e-4),
        longview.load(folder, use_cache=False, vision_batch_size=2, rms_norm_eps=1e-4).model,
    ):
        assert opened.config.vision_batch_size == 2
        assert text_config(opened).use_cache is False
        assert text_config(opened).rms_norm_eps == 1e-4
        assert opened(input_ids=IDS).past_key_values is None


def test_a_config_that_is_given_stays_as_it_is(name, folder):
    family = families()[name]
    config = family.Config.from_pretrained(folder)
    before = config.to_dict()
    model = family.Model.from_pretrained(folder, config=config, vision_batch_size=3)
    assert model.config.vision_batch_size == 3
    assert config.to_dict() == before


def test_an_argument_that_is_none_is_one_clear_line(name, folder):
    for wrong, complaint in (
        ({"vision_batch": 2}, "'vision_batch' is no argument of from_pretrained and no field"),
        ({"vision_batch_size": "two"}, "vision_batch_size is 'two', which is no int"),
        ({"vocab_size": 7}, "vocab_size is 320 by the checkpoint's tensors, not 7"),
    ):
        with pytest.raises((RequestError, CheckpointError), match=complaint) as error:
            families()[name].Model.from_pretrained(folder, **wrong)
        assert "\n" not in str(error.value)


def test_the_attention_of_ovis2s_language_model_has_the_authors_name(name, folder):
    if name != "ovis2":
        with pytest.raises(RequestError, match="'llm_attn_implementation' is no argument"):
            families()[name].Model.from_pretrained(folder, llm_attn_implementation="eager")
        return
    for whole in ({}, {"attn_implementation": "sdpa"}):
        model = longview.AutoModelForCausalLM.from_pretrained(str(folder), llm_attn_implementation="eager", **whole)
        assert model.llm.config._attn_implementation == "eager"
        assert model.visual_tokenizer.backbone.config._attn_implementation == "sdpa"
    with pytest.raises(RequestError, match="unknown attention 'paged'"):
        longview.AutoModel.from_pretrained(str(folder), llm_attn_implementation="paged")


# ── what a config leaves out ─────────────────────────────────────────────────────────────────────────────────────────


def leave_out(folder, *path: str) -> None:
    written = json.loads((folder / "config.json").read_text())
    place = written
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    (folder / "config.json").write_text(json.dumps(written))


GOLDEN = Path(__file__).parents[1] / "golden"
LEFT_OUT = {
    "owl3": [("vision_config", field) for field in ("image_size", "patch_size", "hidden_size", "num_hidden_layers")],
    "ovis2": [
        ("visual_tokenizer_config", "hidden_stride"),
        ("visual_tokenizer_config", "backbone_config", "image_size"),
    ],
}
FOLDERS = {"owl3": GOLDEN / "owl3" / "241101", "ovis2": GOLDEN / "ovis2" / "tiny"}


@pytest.mark.parametrize(("family", "path"), [(name, path) for name, paths in LEFT_OUT.items() for path in paths])
def test_a_size_that_config_json_leaves_out_is_that_of_the_tensors(tmp_path, family, path):
    folder = Path(shutil.copytree(FOLDERS[family], tmp_path / "model"))
    whole = families()[family].Model.from_pretrained(folder)
    leave_out(folder, *path)
    model = families()[family].Model.from_pretrained(folder)
    value = lambda config: functools.reduce(getattr, path, config)  # noqa: E731
    assert value(model.config) == value(whole.config)
    side = whole.config.picture_size
    pixels = torch.rand(1, 3, side, side)
    assert torch.equal(model.encode(pixels), whole.encode(pixels))


def test_the_tower_that_config_json_leaves_out_is_that_of_the_releases(tmp_path):
    """As the authors' config class has it, whose tower the tensors confirm, and in pictures of 384 pixels."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
    config = families()["owl3"].Config.tiny("240728", vision_config={**vision, "image_size": 384, "patch_size": 14})
    written = config.to_diff_dict()
    del written["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    model = families()["owl3"].Model
    shapes = checkpoint.shapes_of(model, config, tmp_path)
    opened = checkpoint.open_config(type(config), tmp_path)
    model.check(opened, shapes, tmp_path)
    found = {name: getattr(opened.vision_config, name) for name in (*vision, "image_size", "patch_size")}
    assert found == {**vision, "image_size": 384, "patch_size": 14}
    assert opened.picture_size == 384
