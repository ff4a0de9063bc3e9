"""Finding and opening checkpoints: what is wrong is said in one line, and nothing in a folder is ever run."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from samples import tiny_model

import longview
from longview.errors import CheckpointError, RequestError
from longview.models import checkpoint
from longview.models.families import families, family_of

GOLDEN = Path(__file__).parents[1] / "golden" / "owl3" / "241101"


@pytest.fixture
def folder(tmp_path):
    """A copy of an official folder, to be damaged."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "model"))


@pytest.fixture
def shards(folder):
    """The same folder with its weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[:70], "model-00002-of-00002.safetensors": names[70:]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


def change(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def complaint(name) -> str:
    with pytest.raises(CheckpointError) as error:
        longview.load(name)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_sharded_checkpoint_opens_as_the_whole_one(shards):
    whole = families()["owl3"].Model.from_pretrained(GOLDEN).state_dict()
    parts = families()["owl3"].Model.from_pretrained(shards).state_dict()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_a_missing_shard_is_named(shards):
    (shards / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of 2 weight files: model-00002-of-00002.safetensors" in complaint(shards)


def test_a_shard_outside_the_folder_is_refused(shards):
    index = shards / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    (shards / "model-00001-of-00002.safetensors").rename(shards.parent / "model-00001-of-00002.safetensors")
    assert "lacks 1 of 2 weight files: ../model-00001-of-00002.safetensors" in complaint(shards)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_weight_file_cut_short_is_named(folder, kept):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:kept])
    assert re.search(r"model\.safetensors is damaged or cut short", complaint(folder))


def test_an_index_that_is_none_is_named(shards):
    (shards / "model.safetensors.index.json").write_text("{")
    assert "index.json cannot be read" in complaint(shards)


@pytest.mark.parametrize("text", ['{"metadata": {}, "weight_map": 5}', '{"metadata": null, "weight_map": {}}', "[1]"])
def test_an_index_of_another_form_is_named(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    assert "index.json is not a" in complaint(shards)


def test_weights_in_one_file_are_what_is_checked_when_there_is_an_index_too(shards):
    save_file({"junk": torch.zeros(1)}, shards / "model.safetensors")
    assert "holds no hyper attention" in complaint(shards)


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": -1.0},
        {"rope_theta": 0},
        {"num_attention_heads": 0},
        {"hidden_size": -8},
        {"hidden_act": "bogus"},
        {"num_hidden_layers": 1_000_000, "layer_types": None},
        {"vision_batch_size": 0},
    ],
    ids=str,
)
def test_a_config_with_wild_values_is_refused_at_once(folder, changes):
    change(folder, **changes)
    assert "config.json" in complaint(folder)


@pytest.mark.parametrize("blocks", [0, 1, -1, 5, 1_000_000])
def test_a_tower_of_another_height_than_its_weights_is_refused(folder, blocks):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    change(folder, vision_config={**vision, "num_hidden_layers": blocks})
    assert f"its config.json says {blocks}" in complaint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cut_enable": "no"}'])
def test_settings_of_the_processor_that_cannot_be_read_are_named(folder, tokenizer, text):
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(text)
    assert "preprocessor_config.json" in complaint(folder)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder):
    edit(folder, lambda tensors: tensors.update({"vision2text_model.2.bias": torch.zeros(65)}))
    assert "first vision2text_model.2.bias: [65] instead of [64]" in complaint(folder)


def test_missing_tensors_are_counted_and_named(folder):
    edit(folder, lambda tensors: tensors.pop("language_model.model.layers.3.mlp.up_proj.weight"))
    assert "tensors: language_model.model.layers.3.mlp.up_proj.weight" in complaint(folder)


def test_the_towers_unused_end_may_be_missing(folder):
    unused = re.compile(r"vision_model\.(post_layernorm|head|encoder\.layers\.2)\.")
    reference = families()["owl3"].Model.from_pretrained(folder).encode(torch.ones(1, 3, 28, 28))

    def drop(tensors):
        for name in [name for name in tensors if unused.match(name)]:
            del tensors[name]

    edit(folder, drop)
    model = families()["owl3"].Model.from_pretrained(folder)
    assert torch.equal(model.encode(torch.ones(1, 3, 28, 28)), reference)


def test_a_checkpoint_without_hyper_attention_is_not_called_an_owl(folder):
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "v_kv_proj" in name])
    assert "holds no hyper attention" in complaint(folder)


def test_hyper_layers_and_vocabulary_are_taken_from_the_tensors(folder):
    change(folder, hyper_layers=[2, 3, 5], vocab_size=999)
    model = families()["owl3"].Model.from_pretrained(folder)
    assert model.config.hyper_layers == [1, 4]
    assert model.config.vocab_size == 300


def test_pickled_weights_are_refused_unopened(folder):
    (folder / "model.safetensors").unlink()
    canary = folder / "canary"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(str(canary))))
    assert "pickled weights (pytorch_model.bin)" in complaint(folder)
    assert not canary.exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("trust", [False, True])
def test_code_in_a_checkpoint_is_never_run(folder, tokenizer, trust, monkeypatch):
    canary = folder / "canary"
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')")
    traps = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor"), "modeling.Trap")
    change(folder, auto_map=traps)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["modeling.Trap", "modeling.Trap"]}
    settings["tokenizer_class"] = "Trap"
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # any prompt is answered with yes
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for auto in (longview.AutoConfig, longview.AutoModel, longview.AutoTokenizer, longview.AutoProcessor):
        for unknown in (False, True):
            change(folder, model_type="unknown" if unknown else "mplugowl3", architectures=[])
            with contextlib.suppress(CheckpointError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                auto.from_pretrained(folder, trust_remote_code=trust)
    change(folder, model_type="mplugowl3")
    with contextlib.suppress(CheckpointError):
        longview.load(folder)
    transformers.AutoModel.from_pretrained(folder)
    assert not canary.exists()


def _name_kernels(fields: dict) -> None:
    for key in ("attn_implementation", "_attn_implementation"):
        fields[key] = "someone/kernels"
    for value in fields.values():
        if isinstance(value, dict) and "hidden_size" in value:
            _name_kernels(value)


@pytest.mark.parametrize("family", ["owl3", "ovis2", "mgm"])
def test_a_config_cannot_have_native_code_fetched_from_a_hub(family, tmp_path, tokenizer, monkeypatch, capsys):
    from longview.cli import main

    model, processor = tiny_model(families()[family], families()[family].Config.variants[0], tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    _name_kernels(fields)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    fetched = []
    monkeypatch.setattr("transformers.integrations.hub_kernels.is_kernel", lambda name: fetched.append(name) and False)
    for auto in (longview.AutoModel, transformers.AutoModel):
        opened = auto.from_pretrained(tmp_path)
        assert {opened.config._attn_implementation, opened.language_model.config._attn_implementation} == {"sdpa"}
    with pytest.raises(SystemExit) as ended:
        main(["info", str(tmp_path), "--json"])
    assert not ended.value.code
    assert "someone/kernels" not in fetched
    with pytest.raises(RequestError, match="unknown attention 'someone/kernels'"):
        longview.AutoModel.from_pretrained(tmp_path, attn_implementation="someone/kernels")


@pytest.mark.parametrize(
    "auto", [transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText]
)
def test_transformers_own_auto_classes_open_an_official_folder(auto):
    model = auto.from_pretrained(GOLDEN, device_map="auto", dtype="bfloat16")
    assert type(model) is families()["owl3"].Model
    assert model.dtype == torch.bfloat16
    assert next(iter(model.hf_device_map.values())) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dmeo", "did you mean 'demo'?"),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        (__file__, "is a file; name the folder"),
        ("someone/some-model", "could not be fetched from the hub"),
        ("modelscope:someone/some-model", "modelscope"),
    ],
)
def test_an_unknown_model_is_named_with_what_to_do(name, expected):
    with pytest.raises(longview.LongviewError) as error:
        longview.load(name)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_of_another_family_is_named(folder):
    change(folder, model_type="llava", architectures=["LlavaForConditionalGeneration"])
    assert f"of kind 'llava', which belongs to none of longview's families: {', '.join(families())}" in complaint(
        folder
    )


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_a_config_that_is_no_json_object_is_named(folder, text):
    (folder / "config.json").write_text(text, errors="surrogateescape")
    assert "config.json" in complaint(folder)


def test_a_config_value_of_the_wrong_type_is_named(folder):
    change(folder, hidden_size="sixty-four")
    assert "hidden_size" in complaint(folder)


def test_fewer_blocks_than_the_weights_have_are_noticed(folder):
    change(folder, num_hidden_layers=3)
    assert "has 6 blocks language_model.model.layers.N, but its config.json says 3" in complaint(folder)


def test_a_folder_without_a_tokenizer_is_named(folder):
    assert "has no tokenizer" in complaint(folder)


def test_a_damaged_tokenizer_is_named(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "the tokenizer of" in complaint(folder)


def test_a_folder_without_config_is_named(tmp_path):
    assert "has no config.json" in complaint(tmp_path)


def test_a_hub_id_is_found_in_the_hubs_cache(folder, tmp_path, monkeypatch, tokenizer):
    """Real hub code, offline: a snapshot that an earlier download left."""
    tokenizer.save_pretrained(folder)
    repository = tmp_path / "hub" / "models--someone--owl"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert checkpoint.resolve("someone/owl") == repository / "snapshots" / "0123abc"
    assert family_of(checkpoint.resolve("someone/owl")) is families()["owl3"]


def test_a_family_offers_what_the_contract_names():
    for name, family in families().items():
        assert family.Config.model_type
        assert family.recognises({"model_type": family.Config.model_type}), name
        assert not family.recognises({"model_type": "llava"}), name


def test_an_adapter_free_model_survives_a_round_trip_in_bf16(tokenizer, tmp_path):
    model, _ = tiny_model(families()["owl3"], "241014", tokenizer)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = families()["owl3"].Model.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert again.get_output_embeddings().weight.data_ptr() == again.get_input_embeddings().weight.data_ptr()
