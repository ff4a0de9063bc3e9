"""Folders that hold more than a model, or a model in a form that is not opened here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import tiny_model
from test_arguments import HEADS, IDS

import longview
from longview.errors import CheckpointError
from longview.models import adapters, checkpoint
from longview.models.families import families


@pytest.fixture(params=sorted(HEADS))
def name(request):
    return request.param


@pytest.fixture
def folder(name, tokenizer, tmp_path):
    model, processor = tiny_model(families()[name], HEADS[name][0], tokenizer)
    model.save_pretrained(tmp_path / "model")
    (processor if name != "mgm" else tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_an_adapter_in_the_folder_of_a_model_is_left_out_and_told(name, folder, tmp_path):
    model = families()[name].Model.from_pretrained(folder, dtype=torch.float32)
    reference = logits(model)
    wrapper = adapters.add(model, ["language"], rank=2, alpha=4, dropout=0.0)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    adapters.save(wrapper, folder, str(folder))
    adapters.save(wrapper, tmp_path / "alone", str(folder))
    with pytest.warns(UserWarning, match="holds an adapter beside its whole model") as told:
        opened = families()[name].Model.from_pretrained(folder, dtype=torch.float32)
    assert sum("beside its whole model" in str(warning.message) for warning in told) == 1
    assert torch.equal(logits(opened), reference)
    with pytest.warns(UserWarning, match="holds an adapter beside its whole model"):
        opened, info = families()[name].Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert torch.equal(logits(opened), reference)
    assert not any(info.values())
    opened.load_adapter(str(tmp_path / "alone"))  # transformers' own way, when it is asked for
    assert (logits(opened) - reference).abs().max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        asked = longview.load(folder, adapter=folder, dtype="float32").model
    assert (logits(asked) - reference).abs().max() > 0.1


SCHEMES = (
    "awq",
    "torchao",
    "hqq",
    "compressed-tensors",
    "fp8",
    "bitsandbytes",
    "gptq",
    "no scheme of this world",
    None,
)


def stored(folder: Path, scheme: str | None, packed: bool) -> None:
    """Write what the tools of a scheme leave in a folder."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True} if scheme is None else {"quant_method": scheme, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    if packed:
        tensors = load_file(folder / "model.safetensors")
        key = next(key for key in tensors if key.endswith("mlp.up_proj.weight"))
        marks = {"gptq": ".qweight", "bitsandbytes": ".weight.absmax", None: ".weight.absmax"}
        tensors[key.removesuffix(".weight") + marks.get(scheme, ".weight_packed")] = tensors.pop(key).to(torch.int8)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_were_quantised_are_refused_in_one_line_that_says_what_opens(name, folder, scheme, packed):
    stored(folder, scheme, packed)
    ours = name == "ovis2" and scheme == "gptq"
    for wrong in (
        lambda: families()[name].Model.from_pretrained(folder),
        lambda: longview.load(folder),
        lambda: families()[name].Model.check(  # what `longview info` asks
            checkpoint.open_config(families()[name].Config, folder), checkpoint.tensor_shapes(folder), folder
        ),
    ):
        with pytest.raises(CheckpointError) as error:
            wrong()
        line = str(error.value)
        assert "\n" not in line
        assert str(scheme or "bitsandbytes")[:40] in line.lower()
        if scheme in (None, "bitsandbytes", "gptq") and not packed:
            assert "take quantization_config out of it" in line
        elif not ours:
            assert "open the release that is not quantised" in line
