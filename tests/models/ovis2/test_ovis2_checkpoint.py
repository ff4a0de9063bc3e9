"""Opening Ovis2's official folders: their names, their heads, their sizes, and what can be wrong with them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from ovis2_golden import TINY, folder_of
from safetensors.torch import load_file
from samples import noise, tiny_model
from tolerances import SAME_MATHS

import longview
from longview.errors import CheckpointError, RequestError
from longview.models import ovis2
from longview.models.families import family_of
from longview.models.ovis2 import Config, Model
from longview.models.ovis2.convert import trainable

HEAD, EMBEDDINGS = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
IDS = torch.arange(12)[None]

# tower, Qwen2, vocabulary, tied, and gigabytes of the published bf16 files, which hold a head also where it is tied
LARGE, HUGE, GIANT = (1024, 2816, 8), (1536, 4096, 12), (2048, 5632, 16)
RELEASES = {
    "1B": (LARGE, (896, 4864, 24, 14, 2), 151936, True, 2.535),
    "2B": (LARGE, (1536, 8960, 28, 12, 2), 151936, True, 4.913),
    "4B": (HUGE, (2048, 11008, 36, 16, 2), 151936, True, 9.232),
    "8B": (HUGE, (3584, 18944, 28, 28, 4), 152064, False, 17.871),
    "16B": (HUGE, (5120, 13824, 48, 40, 8), 152064, False, 32.381),
    "34B": (GIANT, (5120, 27648, 64, 40, 8), 152064, False, 69.746),
}


def change(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        inner, key = (
            (config["llm_config"], name[4:])
            if name.startswith("llm_") and name != "llm_attn_implementation"
            else (config, name)
        )
        inner[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def complaint(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        longview.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_load_and_the_auto_classes_open_an_official_folder():
    assert family_of(TINY) is ovis2
    engine = longview.load(TINY)
    assert type(engine.model) is Model
    answer = engine.answer([longview.ask("What?", longview.image(noise(1)))], max_tokens=4)
    assert answer.receipt.usage.visual_tokens == 4
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM, longview.AutoModelForCausalLM):
        model = auto.from_pretrained(TINY, device_map="auto", dtype="bfloat16")
        assert type(model) is Model
        assert model.dtype == torch.bfloat16
    assert type(longview.AutoProcessor.from_pretrained(TINY)) is ovis2.Processor
    assert type(longview.AutoConfig.from_pretrained(TINY)) is Config


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_its_sizes_and_has_the_published_number_of_bytes(release):
    tower, sizes, vocabulary, tied, published = RELEASES[release]
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    backbone = dict(zip(names, tower, strict=True)) | {"image_size": 448, "num_hidden_layers": 24}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = Config(
        llm_config=dict(zip(names, sizes, strict=True)) | {"vocab_size": vocabulary, "tie_word_embeddings": tied},
        visual_tokenizer_config={"backbone_config": backbone, "vocab_size": 65536, "hidden_stride": 2},
    )
    footprint = Model.footprint(config, torch.bfloat16)
    head = vocabulary * sizes[0] * 2 if tied else 0
    assert (footprint.weight_bytes + head) / 1e9 == pytest.approx(published, abs=0.001)
    assert footprint.picture_positions == 256


def test_unknown_keys_of_config_json_are_ignored(tmp_path):
    folder = folder_of("text_only", tmp_path)
    reference = logits(Model.from_pretrained(folder))
    change(folder, auto_map={"AutoConfig": "x.Y"}, x=[1], llm_pruned_heads={}, llm_torchscript=False, llm_top_k=50)
    change(folder, llm_head_dim=None, llm_sep_token_id=None, llm_torch_dtype="bfloat16", llm_add_cross_attention=False)
    assert torch.equal(logits(Model.from_pretrained(folder, dtype=torch.float32)), reference)


def test_a_saved_folder_is_an_official_one(tmp_path):
    model = Model.from_pretrained(TINY)
    model.save_pretrained(tmp_path)
    saved, official = load_file(tmp_path / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert saved.keys() == official.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in official.items())
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, TINY))
    assert ours["model_type"] == "ovis"
    for part in ("llm_config", "visual_tokenizer_config"):
        assert ours[part]["model_type"] == theirs[part]["model_type"]
    fields = theirs["visual_tokenizer_config"]["backbone_config"]
    assert fields.items() <= ours["visual_tokenizer_config"]["backbone_config"].items()


@pytest.mark.parametrize("stored", ["absent", "equal", "different"])
def test_a_tied_head_is_the_embeddings_whatever_the_checkpoint_holds(tmp_path, stored):
    def edit(weights):
        weights[HEAD] = weights[EMBEDDINGS] + (1.0 if stored == "different" else 0.0)
        if stored == "absent":
            del weights[HEAD]

    folder = folder_of("text_only", tmp_path, edit)
    change(folder, llm_tie_word_embeddings=True)
    model = Model.from_pretrained(folder)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert torch.equal(model.llm.lm_head.weight, load_file(TINY / "model.safetensors")[EMBEDDINGS])
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(Model.from_pretrained(tmp_path / "again")), logits(model))


def test_a_head_that_is_not_tied_is_loaded_and_missed(tmp_path):
    folder = folder_of("text_only", tmp_path)
    change(folder, llm_tie_word_embeddings=True, disable_tie_weight=True)
    assert torch.equal(logits(Model.from_pretrained(folder)), logits(Model.from_pretrained(TINY)))
    without = folder_of("text_only", tmp_path / "x", lambda weights: weights.pop(HEAD))
    assert f"lacks 1 of 69 tensors: {HEAD}" in complaint(without)


def test_the_unused_norm_may_be_missing_and_changes_nothing(tmp_path):
    norm = "visual_tokenizer.backbone.trunk.post_trunk_norm.weight"
    pixels = torch.randn(1, 3, 56, 56)
    reference = Model.from_pretrained(TINY).encode(pixels)
    for place, edit in (("gone", lambda w: w.pop(norm)), ("other", lambda w: w[norm].fill_(7.0))):
        model = Model.from_pretrained(folder_of("text_only", tmp_path / place, edit))
        assert torch.equal(model.encode(pixels), reference)


def test_a_head_and_a_table_that_disagree_are_named_with_both_numbers(tmp_path):
    folder = folder_of("text_only", tmp_path, lambda w: w.update({"vte.weight": w["vte.weight"][:-1].clone()}))
    assert "head has 123 outputs, so the table needs 123 + 5 indicators = 128 rows, but vte.weight has 127" in (
        complaint(folder)
    )


def test_weights_that_are_no_ovis_and_unknown_components_are_named(tmp_path):
    assert "holds no visual tokenizer" in complaint(
        folder_of("text_only", tmp_path / "a", lambda w: w.pop("vte.weight"))
    )
    folder = folder_of("text_only", tmp_path / "b")
    change(folder, llm_model_type="gemma2")
    assert "has a 'gemma2' language model" in complaint(folder)
    folder = folder_of("text_only", tmp_path / "c")
    visual = json.loads((folder / "config.json").read_text())["visual_tokenizer_config"]
    for key, value in (("model_type", "vit_visual_tokenizer"), ("tokenize_function", "argmax")):
        change(folder, visual_tokenizer_config={**visual, key: value})
        assert repr(value) in complaint(folder)


def test_values_of_the_wrong_type_and_blocks_that_config_json_does_not_know_are_named(tmp_path):
    folder = folder_of("text_only", tmp_path)
    change(folder, llm_hidden_size="sixty-four")
    assert "hidden_size" in complaint(folder)
    change(folder, llm_hidden_size=64, llm_num_hidden_layers=2)
    assert "has 3 blocks llm.model.layers.N, but its config.json says 2" in complaint(folder)
    visual = json.loads((TINY / "config.json").read_text())["visual_tokenizer_config"]
    visual["backbone_config"]["num_hidden_layers"] = 1
    change(folder, llm_num_hidden_layers=3, visual_tokenizer_config=visual)
    assert "has 3 blocks visual_tokenizer.backbone.trunk.blocks.N, but its config.json says 1" in complaint(folder)


def test_a_checkpoint_packed_by_gptq_names_the_libraries_that_unpack_it(tmp_path):
    if importlib.util.find_spec("gptqmodel"):
        pytest.skip("this machine can unpack it")

    def pack(weights):
        for name in [name for name in weights if ".layers." in name and name.endswith("_proj.weight")]:
            out, wide = weights.pop(name).shape
            stem = name.removesuffix(".weight")
            weights[f"{stem}.qweight"] = torch.zeros(wide // 8, out, dtype=torch.int32)
            weights[f"{stem}.qzeros"] = torch.zeros(1, out // 8, dtype=torch.int32)
            weights[f"{stem}.scales"] = torch.zeros(1, out, dtype=torch.float16)
            weights[f"{stem}.g_idx"] = torch.zeros(wide, dtype=torch.int32)

    folder = folder_of("text_only", tmp_path, pack)
    assert "no quantization_config" in complaint(folder)
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    assert "is packed by GPTQ, which needs" in complaint(folder)
    assert "pip install" in complaint(folder)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_contrastive_tower_gives_its_last_hidden_state_before_the_last_norm(tokenizer, tmp_path, kind):
    model, _ = tiny_model(ovis2, kind, tokenizer)
    pixels = torch.randn(2, 3, 28, 28)
    tower = model.visual_tokenizer.backbone.vision_model
    with torch.no_grad():
        expected = tower(pixels, output_hidden_states=True).hidden_states[-1]
        found = model.visual_tokenizer.backbone(pixels)
    torch.testing.assert_close(found, expected, atol=SAME_MATHS, rtol=0)
    assert found.shape[1] == 4 + (kind == "clip"), "CLIP's class token stands first"
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "visual_tokenizer.backbone.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    opened = trainable("visual_tokenizer.backbone.layer.-1", names)
    assert {name.split(".")[5] for name in opened} == {"2"}


def test_a_class_token_can_be_dropped(tokenizer):
    visual = Config.tiny("clip").visual_tokenizer_config.to_dict() | {"drop_cls_token": True, "hidden_stride": 2}
    model, _ = tiny_model(ovis2, "clip", tokenizer, visual_tokenizer_config=visual)
    assert model.encode(torch.randn(1, 3, 28, 28)).shape[1] == model.config.patches_per_picture == 1


@pytest.mark.parametrize("modules", ["head", "visual_tokenizer.backbone.layer.3", "llm|vit", ""])
def test_train_modules_that_name_nothing_are_refused(modules):
    names = [name for name, _ in Model.from_pretrained(TINY).named_parameters()]
    with pytest.raises(RequestError, match="N from -3 to 2"):
        trainable(modules, names)
