"""Opening MGM's official folders: their towers, names and sizes, first stages, and what can be wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from mgm_golden import GOLDEN, VARIANTS, change, folder_of, tokenizer_of
from safetensors.torch import load_file, save_file
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.errors import CheckpointError
from longview.models import checkpoint, mgm
from longview.models.families import family_of
from longview.models.mgm import Config, Model, convert
from longview.models.mgm.config import CLIP_L_336
from longview.models.pickles import convert as convert_weights

AUX = "model.vision_tower_aux."
ZOO = "model_zoo/OpenAI"
FINE = "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"

# language, hidden, layers, heads, key/value heads, feed-forward, vocabulary; and gigabytes of the published bf16 files
RELEASES = {
    "2B": ("Gemma", (2048, 18, 8, 1, 16384, 256000), {"head_dim": 256}, 7.1),
    "7B": ("Llama", (4096, 32, 32, 32, 11008, 32000), {}, 14.5),
    "8B": ("Llama", (4096, 32, 32, 8, 14336, 128256), {}, 17.1),
}


def complaint(folder: Path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        longview.load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def stored(folder: Path) -> dict:
    tensors: dict = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {} if "golden" in file.name else load_file(file)
    return tensors


def enlarge(tensors: dict) -> None:
    """Give the language model the room of a tokenizer: its vocabulary of 128 four times."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(4, 1)


def with_tokenizer(folder: Path, name: str = "toy_llama") -> Path:
    tokenizer_of(name, folder.parent).save_pretrained(folder)
    return folder


def fine(model: Model) -> torch.Tensor:
    return model.vision_tower_aux.stages[2].layers[1].pwconv1.weight


def test_load_and_the_auto_classes_open_an_official_folder(tmp_path):
    folder = with_tokenizer(folder_of("hd", tmp_path, enlarge))
    assert family_of(folder) is mgm
    engine = longview.load(folder)
    assert type(engine.model) is Model
    answer = engine.answer([longview.ask("Which?", *map(longview.image, (noise(1), noise(2))))], max_tokens=4)
    assert answer.receipt.usage.visual_tokens == 2 * 80
    assert [frame.crops for frame in answer.receipt.frames] == [1, 1]
    for auto in (longview.AutoModel, longview.AutoModelForCausalLM):
        model = auto.from_pretrained(folder, device_map="auto", dtype="bfloat16")
        assert type(model) is Model
        assert model.dtype == model.vision_tower_aux.stages[0].layers[0].pwconv1.weight.dtype == torch.bfloat16
    assert type(longview.AutoProcessor.from_pretrained(folder)) is mgm.Processor
    assert type(longview.AutoConfig.from_pretrained(folder)) is Config
    change(folder, model_type="mgm")
    assert type(transformers.AutoModelForCausalLM.from_pretrained(folder)) is Model


@pytest.mark.parametrize(
    ("config", "is_ours"),
    [
        ({"architectures": ["MiniGeminiGemmaForCausalLM"]}, True),
        ({"architectures": ["MGMLlamaForCausalLM"], "model_type": "mgm"}, True),
        ({"model_type": "mini_gemini_mixtral"}, True),
        ({"model_type": "mgm_mistral"}, True),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "_name_or_path": "MGM-7B"}, False),
        ({"model_type": "gemini"}, False),
        ({"model_type": 7, "architectures": [None]}, False),
    ],
)
def test_a_checkpoint_is_known_by_its_architecture_never_by_a_name_of_its_folder(config, is_ours):
    assert mgm.recognises(config) == is_ours


@pytest.mark.parametrize(
    ("given", "language"),
    [
        ({"architectures": ["MiniGeminiGemmaForCausalLM"]}, "gemma"),
        ({"architectures": ["MiniGeminiMixtralForCausalLM"]}, "mixtral"),
        ({"architectures": ["MGMLlamaForCausalLM"]}, "llama"),
        ({"model_type": "mini_gemini_gemma"}, "gemma"),
        ({"model_type": "mgm_mistral"}, "mistral"),
        ({"model_type": "mgm"}, "llama"),
    ],
)
def test_the_language_model_is_the_one_the_architecture_names(given, language):
    assert Config(**given, vocab_size=7).language == language
    assert Config(**given, vocab_size=7).text_config.vocab_size == 7


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_its_sizes_and_has_the_published_number_of_bytes(release):
    language, sizes, more, published = RELEASES[release]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    fields = dict(zip((*names, "vocab_size"), sizes, strict=True)) | more
    config = Config(architectures=[f"MGM{language}ForCausalLM"], mm_projector_type="mlp2x_gelu", **fields)
    footprint = Model.footprint(config, torch.bfloat16)
    head = 256000 * 2048 * 2 if config.tied else 0
    assert (footprint.weight_bytes + head) / 1e9 == pytest.approx(published, abs=0.06)
    assert footprint.picture_positions == 576
    config.image_size_aux, config.image_grid, config.image_global = 1536, 2, True
    assert Model.footprint(config, torch.bfloat16).picture_positions == 2880
    assert sum(config.vision_aux_config.hidden_sizes) == 2880


# ── towers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_small_tower_is_the_checkpoints_and_the_large_one_its_own_files_unless_it_was_trained(tmp_path):
    for variant in ("plain", "gemma"):
        folder = folder_of(variant, tmp_path / variant)
        inside = stored(folder)
        beside = load_file(tmp_path / variant / ZOO / FINE / "open_clip_model.safetensors")
        model = Model.from_pretrained(folder)
        clip = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
        assert torch.equal(model.vision_tower.encoder.layers[0].mlp.fc1.weight, inside[f"model.vision_tower.{clip}"])
        theirs = "stages.2.blocks.1.mlp.fc1.weight"
        assert not torch.equal(beside[f"visual.trunk.{theirs}"], inside[f"{AUX}vision_{theirs}"])
        expected = inside[f"{AUX}vision_{theirs}"] if variant == "gemma" else beside[f"visual.trunk.{theirs}"]
        assert torch.equal(fine(model), expected)


def test_towers_are_found_from_the_current_folder_first(tmp_path, monkeypatch):
    folder = folder_of("plain", tmp_path / "a")
    shutil.copytree(GOLDEN / "model_zoo", tmp_path / "b" / "model_zoo")
    file = tmp_path / "b" / ZOO / FINE / "open_clip_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    monkeypatch.chdir(tmp_path / "b")
    assert not fine(Model.from_pretrained(folder)).any()
    monkeypatch.chdir(tmp_path)
    assert fine(Model.from_pretrained(folder)).any()


def test_a_missing_tower_is_one_line_with_all_three_remedies(tmp_path):
    folder = folder_of("plain", tmp_path, towers=False)
    change(folder, mm_vision_tower=str(GOLDEN / ZOO / "clip-vit-large-patch14-336"))
    message = complaint(folder)
    for way in (
        f"put open_clip_pytorch_model.safetensors of {mgm.towers.CONVNEXT_HUB} there",
        "let the hub be reached",
        "--vision-tower-aux FOLDER (vision_tower_aux= in Python), or 'checkpoint' for the copy in the checkpoint",
        f"no folder '{ZOO}/{FINE}'",
    ):
        assert way in message
    change(folder, mm_vision_tower="model_zoo/OpenAI/clip-of-mine")
    message = complaint(folder)
    assert "needs its low-resolution tower" in message
    assert "--vision-tower FOLDER" in message


def test_a_tower_that_is_not_there_is_the_published_one_of_the_hub(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / f"models--{mgm.towers.CONVNEXT_HUB.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    tensors = load_file(GOLDEN / ZOO / FINE / "open_clip_model.safetensors")
    save_file(tensors, snapshot / "open_clip_pytorch_model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = folder_of("plain", tmp_path, towers=False)
    change(folder, mm_vision_tower=str(GOLDEN / ZOO / "clip-vit-large-patch14-336"))
    assert torch.equal(fine(Model.from_pretrained(folder)), fine(Model.from_pretrained(GOLDEN / "plain")))


def test_a_tower_can_be_named_or_taken_from_the_checkpoint(tmp_path):
    folder = folder_of("plain", tmp_path, towers=False)
    change(folder, mm_vision_tower=str(GOLDEN / ZOO / "clip-vit-large-patch14-336"))
    beside = Model.from_pretrained(folder, vision_tower_aux=GOLDEN / ZOO / FINE)
    assert torch.equal(fine(beside), fine(Model.from_pretrained(GOLDEN / "plain")))
    inside = Model.from_pretrained(folder, vision_tower_aux="checkpoint")
    assert torch.equal(fine(inside), stored(folder)[f"{AUX}vision_stages.2.blocks.1.mlp.fc1.weight"])
    change(folder, mm_vision_tower="elsewhere")
    assert Model.from_pretrained(
        folder, vision_tower=GOLDEN / ZOO / "clip-vit-large-patch14-336", vision_tower_aux="checkpoint"
    )


def test_the_published_small_tower_is_known_without_its_folder(tmp_path):
    config = Config(architectures=["MGMLlamaForCausalLM"], mm_projector_type="mlp2x_gelu", vocab_size=8)
    shapes = convert.expected_shapes(config, checkpoint.shapes_of(Model, config, tmp_path))
    config.vision_config.hidden_size = 7
    convert.complete(config, shapes, tmp_path)
    assert {name: getattr(config.vision_config, name) for name in CLIP_L_336} == CLIP_L_336
    assert config.vision_aux_config.depths == [3, 3, 27, 3]
    assert config.vision_aux_config.hidden_sizes == [192, 384, 768, 1536]


def test_the_large_tower_is_loaded_from_a_pickle_of_tensors_and_from_no_other(tmp_path):
    folder = folder_of("plain", tmp_path)
    place = tmp_path / ZOO / FINE
    tensors = load_file(place / "open_clip_model.safetensors")
    (place / "open_clip_model.safetensors").unlink()
    assert "holds none of open_clip_pytorch_model.safetensors" in complaint(folder)
    torch.save(tensors, place / "open_clip_pytorch_model.bin")
    assert torch.equal(fine(Model.from_pretrained(folder)), fine(Model.from_pretrained(GOLDEN / "plain")))

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({**tensors, "x": Evil()}, place / "open_clip_pytorch_model.bin")
    assert "cannot be read as tensors" in complaint(folder)
    assert not (tmp_path / "executed").exists()
    torch.save({"visual.trunk.stem.0.weight": torch.zeros(8, 3, 4, 4)}, place / "open_clip_pytorch_model.bin")
    assert "open_clip_pytorch_model.bin lacks" in complaint(folder)


def test_a_large_tower_that_wants_other_pixels_is_refused(tmp_path):
    folder = folder_of("plain", tmp_path)
    settings = tmp_path / ZOO / FINE / "open_clip_config.json"
    settings.write_text(json.dumps({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}))
    assert "wants other pixels than CLIP" in complaint(folder)


# ── saving and first stages ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_folder_has_the_official_names_and_needs_no_towers(tmp_path, variant):
    model = Model.from_pretrained(GOLDEN / variant).eval()
    model.save_pretrained(tmp_path)
    names = set(stored(GOLDEN / variant)) - ({"lm_head.weight"} if variant == "gemma" else set())
    assert set(stored(tmp_path)) == names
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / variant))
    extra = {"architectures", "transformers_version", "model_type", "pad_token_id", "rope_scaling", "pretraining_tp"}
    assert {key: ours[key] for key in theirs if key not in extra} == {k: v for k, v in theirs.items() if k not in extra}
    assert ours["architectures"][0].removeprefix("MGM") == theirs["architectures"][0].removeprefix("MGM").removeprefix(
        "MiniGemini"
    )
    again = Model.from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    pixels = torch.randn(2, 3, model.config.image_size_aux, model.config.image_size_aux)
    with torch.no_grad():
        assert torch.equal(again.encode(pixels), model.encode(pixels))


def first_stage(place: Path) -> tuple[Path, Path]:
    """The plain checkpoint, taken apart into a language model and a folder of the first stage."""
    tensors = stored(GOLDEN / "plain")
    parts = {name for name in tensors if name.startswith("model.") and name.split(".")[1][:2] in ("mm", "vl", "vi")}
    base, stage = place / "vicuna", place / "stage"
    stage.mkdir(parents=True)
    torch.save({name: tensors[name].half() for name in parts}, stage / "mm_projector.bin")
    shutil.copy(GOLDEN / "plain" / "config.json", stage / "config.json")
    shutil.copytree(GOLDEN / "model_zoo", place / "model_zoo")
    base.mkdir()
    enlarge(tensors)
    config = json.loads((GOLDEN / "plain" / "config.json").read_text())
    text = {name: value for name, value in config.items() if not name.startswith(("mm_", "image_"))}
    text |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512}
    (base / "config.json").write_text(json.dumps(text))
    save_file(
        {n: t for n, t in tensors.items() if n not in parts}, base / "model.safetensors", metadata={"format": "pt"}
    )
    return with_tokenizer(base), stage


def test_a_first_stage_opens_around_its_language_model(tmp_path):
    base, stage = first_stage(tmp_path)
    engine = longview.load(stage, model_base=base)
    whole = Model.from_pretrained(GOLDEN / "plain", dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = engine.model(input_ids=ids).logits[..., :128]
        torch.testing.assert_close(found, whole(input_ids=ids).logits, atol=SAME_MATHS, rtol=0)
        half = engine.model.encode(pixels)  # its parts were stored in half precision
        torch.testing.assert_close(half, whole.encode(pixels), atol=0.02, rtol=0)
    assert engine.answer([longview.ask("What?", longview.image(noise(1)))], max_tokens=3).tokens
    engine.model.save_pretrained(tmp_path / "whole")
    engine.processor.save_pretrained(tmp_path / "whole")
    again = longview.load(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(again.model.encode(pixels), half)


def test_a_first_stage_opens_around_a_base_whose_weights_were_pickled(tmp_path):
    """Vicuna is published so; the refusal names the command that is then run."""
    base, stage = first_stage(tmp_path)
    expected = longview.load(stage, model_base=base).model.state_dict()
    weights = base / "model.safetensors"
    torch.save(load_file(weights), base / "pytorch_model.bin")
    weights.unlink()
    assert f"longview convert-weights {base}" in complaint(stage, model_base=base)
    convert_weights(base)
    found = longview.load(stage, model_base=base).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_first_stage_without_its_language_model_or_with_another_is_one_clear_error(tmp_path):
    base, stage = first_stage(tmp_path)
    assert "holds the first stage of training only (mm_projector.bin)" in complaint(stage)
    assert "--model-base" in complaint(stage)
    change(base, hidden_size=32)
    assert "wrong shape" in complaint(stage, model_base=base)
    assert "holds a whole model; leave model_base" in complaint(folder_of("plain", tmp_path / "x"), model_base=base)


# ── what can be wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_without_mining_or_projector_are_named(tmp_path):
    for part, said in (("vlm_uni", "patch info mining"), ("mm_projector", "projector")):

        def edit(tensors, part=part):
            for name in [name for name in tensors if part in name]:
                del tensors[name]

        assert f"holds no {said}" in complaint(folder_of("plain", tmp_path / part, edit))
    half = folder_of("plain", tmp_path / "half", lambda t: t.pop("model.vlm_uni_val_projector.1.weight"))
    assert "lacks 1 of" in complaint(half)
    assert "model.vlm_uni_val_projector.1.weight" in complaint(half)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_global": False}, "image_grid is 2 and image_global false"),
        ({"image_grid": 1}, "image_grid is 1 and image_global true"),
        ({"image_grid": 0}, "image_grid is 0"),
        ({"image_grid": "two"}, "image_grid"),
        ({"image_size_aux": 100}, "image_size_aux is 100"),
        ({"image_size_aux": -128}, "image_size_aux is -128"),
        ({"mm_projector_type": "pixel_shuffle"}, "unknown mm_projector_type 'pixel_shuffle'"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer is -9"),
        ({"mm_vision_select_feature": "cls_patch"}, "class token"),
        ({"mm_use_im_start_end": True}, "start and end tokens"),
        ({"num_hidden_layers": 3}, "has 2 blocks model.layers.N, but its config.json says 3"),
        ({"num_key_value_heads": 4}, "wrong shape"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ],
    ids=str,
)
def test_a_config_that_fits_no_model_is_one_clear_error(tmp_path, changes, said):
    folder = folder_of("hd", tmp_path)
    change(folder, **changes)
    assert said in complaint(folder)


def test_the_unused_end_of_the_small_tower_may_be_missing(tmp_path):
    def edit(tensors):
        for name in [name for name in tensors if ".encoder.layers.2." in name or "post_layernorm" in name]:
            del tensors[name]

    pixels = torch.randn(1, 3, 64, 64)
    whole = Model.from_pretrained(GOLDEN / "plain").encode(pixels)
    assert torch.equal(Model.from_pretrained(folder_of("plain", tmp_path, edit)).encode(pixels), whole)


def test_a_head_that_gemma_ties_is_the_embeddings_whatever_the_checkpoint_holds(tmp_path):
    folder = folder_of("gemma", tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1.0))
    model = Model.from_pretrained(folder)
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight


def test_a_saved_folder_takes_another_tower_where_one_is_given(tmp_path):
    Model.from_pretrained(GOLDEN / "gemma").save_pretrained(tmp_path)
    beside = GOLDEN / ZOO / FINE
    given = Model.from_pretrained(tmp_path, vision_tower_aux=beside)
    assert str(beside) not in json.dumps(given.config.to_dict()), (
        "where it was on this machine is nobody else's business"
    )
    expected = load_file(beside / "open_clip_model.safetensors")["visual.trunk.stages.2.blocks.1.mlp.fc1.weight"]
    assert torch.equal(fine(given), expected)
    assert not torch.equal(fine(Model.from_pretrained(tmp_path)), expected)
    assert "no folder 'elsewhere'" in complaint(tmp_path, vision_tower_aux="elsewhere")
    assert "no folder 'elsewhere'" in complaint(tmp_path, vision_tower="elsewhere")
