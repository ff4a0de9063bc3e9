"""Pickled weights become safetensors without anything in them being run, all of them or none."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import longview
from longview.cli import main
from longview.errors import CheckpointError
from longview.models.families import families
from longview.models.pickles import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "owl3" / "241101"
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.fixture
def vicuna(tmp_path):
    """A language model as Vicuna is published: in parts, pickled, in half precision, with buffers nobody uses."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=64, **sizes)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).half()
    folder = tmp_path / "vicuna"
    config.save_pretrained(folder)
    tensors = {**model.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    names = sorted(tensors)
    parts = (names[:7], names[7:])
    for file, part in zip(SHARDS, parts, strict=True):
        torch.save({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in zip(SHARDS, parts, strict=True) for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder, tensors


@pytest.fixture
def owl(tmp_path):
    """An official folder with its weights in one pickled file, of which one tensor is a view of another's memory."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "owl"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder, tensors


def complaint(folder: Path) -> str:
    before = sorted(folder.iterdir())
    with pytest.raises(CheckpointError) as error:
        convert(folder)
    assert sorted(folder.iterdir()) == before, "nothing is left behind"
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_language_model_in_parts_opens_as_what_it_was(vicuna, capsys):
    folder, tensors = vicuna
    with pytest.raises(SystemExit) as ended:
        main(["convert-weights", str(folder)])
    assert not ended.value.code
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in names]
    found = {name: tensor for file in names[:2] for name, tensor in load_file(folder / file).items()}
    assert found.keys() == tensors.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert torch.equal(opened.lm_head.weight, tensors["lm_head.weight"])
    assert "holds safetensors already" in complaint(folder)


def test_a_folder_of_a_family_opens_after_the_command_that_its_refusal_names(owl):
    folder, tensors = owl
    with pytest.raises(CheckpointError, match=rf"longview convert-weights {folder}"):
        longview.load(folder)
    assert [path.name for path in convert(folder)] == ["model.safetensors"]
    model = families()["owl3"].Model.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_tensors_that_share_memory_are_written_apart(vicuna):
    folder, tensors = vicuna
    whole = torch.zeros(2, *tensors["model.norm.weight"].shape).half()
    second = {name: tensors[name] for name in torch.load(folder / SHARDS[1], weights_only=True)}
    second |= {"model.norm.weight": whole[1], "spare": whole, "transposed": tensors["lm_head.weight"].t()}
    torch.save(second, folder / SHARDS[1])
    convert(folder)
    found = load_file(folder / "model-00002-of-00002.safetensors")
    assert torch.equal(found["transposed"], second["transposed"])
    assert found["model.norm.weight"].shape == whole.shape[1:]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("form", ["bare", "torch"])
def test_code_in_a_pickle_is_never_run(vicuna, tmp_path, form):
    folder, _ = vicuna
    canary = tmp_path / "canary"
    if form == "bare":
        (folder / SHARDS[1]).write_bytes(pickle.dumps(Trap(canary)))
    else:
        torch.save({"model.norm.weight": Trap(canary)}, folder / SHARDS[1])
    assert f"{SHARDS[1]} cannot be read as tensors and nothing else" in complaint(folder)
    assert not canary.exists()


def test_what_does_not_belong_together_is_one_clear_line(vicuna, tmp_path):
    folder, tensors = vicuna
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    assert "tensors have the wrong shape" in complaint(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks 9 of 30 tensors" in complaint(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard of"}))
    assert "describes no model that the weights could be held against" in complaint(folder)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"model.norm.weight": tensors["model.norm.weight"]}, folder / SHARDS[1])
    assert "which pytorch_model.bin.index.json places there" in complaint(folder)
    torch.save([1, 2], folder / SHARDS[1])
    assert "holds more than tensors by name" in complaint(folder)
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes()[:500])
    assert "cannot be read as tensors" in complaint(folder)
    (folder / SHARDS[1]).unlink()
    assert "lacks 1 of 2 weight files" in complaint(folder)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    assert "is no index of weights" in complaint(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    assert "there is nothing to convert" in complaint(folder)
    with pytest.raises(CheckpointError, match="is no folder"):
        convert(tmp_path / "nowhere")


def test_a_folder_from_the_hub_whose_weights_were_left_there_names_the_command(vicuna):
    folder, _ = vicuna
    for shard in SHARDS:
        (folder / shard).unlink()
    with pytest.raises(CheckpointError, match=r"published pickled only; .*longview convert-weights FOLDER"):
        longview.models.checkpoint.tensor_shapes(folder)
