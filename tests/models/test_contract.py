"""Every family's folder keeps the contracts of `longview.models.base`: files, methods, signatures, registration."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from samples import noise
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from longview.errors import RequestError
from longview.models import base
from longview.models.families import Family, families

FILES = {"__init__.py", "config.py", "fusion.py", "model.py", "processor.py", "convert.py"}
CONTRACTS = {"Config": base.Config, "Model": base.Model, "Processor": base.Processor}


@pytest.fixture(params=sorted(families()))
def family(request):
    return families()[request.param]


def promised(contract: type) -> dict[str, object]:
    """The methods and properties of a contract, but for what torch and transformers provide."""
    return {
        name: member
        for name, member in vars(contract).items()
        if (inspect.isroutine(member) or isinstance(member, (property, classmethod)))
        and (not name.startswith("_") or name == "__init__")
    }


def parameters(member: object) -> list[inspect.Parameter]:
    """What a caller gives: without `self` or `cls`, whichever kind of method it is."""
    found = list(inspect.signature(getattr(member, "__func__", member)).parameters.values())
    return found if isinstance(member, staticmethod) else found[1:]


def differences(promise: object, found: object) -> list[str]:
    """Why what can be called by a promised signature cannot be called by the one found."""
    wanted, given = parameters(promise), parameters(found)
    named = {each.name: each for each in given}
    open_ended = {each.kind for each in given} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    wrong = []
    fixed = [each for each in wanted if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    for position, each in enumerate(fixed):
        own = named.get(each.name)
        if own is None:
            wrong += [] if inspect.Parameter.VAR_KEYWORD in open_ended else [f"lacks {each.name}"]
        elif own.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and given.index(own) != position:
            wrong.append(f"{each.name} is argument {given.index(own)} instead of {position}")
        elif each.default is not each.empty and own.default != each.default and each.default is not ...:
            wrong.append(f"{each.name} is {own.default!r} by default instead of {each.default!r}")
    for own in given:
        fills_itself = own.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if own.name not in {each.name for each in wanted} and own.default is own.empty and not fills_itself:
            wrong.append(f"wants {own.name}, which no caller gives")
    return wrong


def test_a_folder_has_the_files_that_every_family_has(family):
    folder = Path(inspect.getfile(family.Config)).parent
    released = folder.parent == Path(base.__file__).parent
    assert {path.name for path in folder.glob("*.py")} >= FILES | ({"compat.py"} if released else set())


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_class_has_every_method_of_its_contract_with_a_signature_that_callers_can_rely_on(family, name):
    found = getattr(family, name)
    wrong = {}
    for method, promise in promised(CONTRACTS[name]).items():
        if not hasattr(found, method):
            wrong[method] = "is missing"
            continue
        own = inspect.getattr_static(found, method)
        if isinstance(promise, property):
            continue  # a field of the same name keeps it, too
        if isinstance(promise, classmethod) != isinstance(own, classmethod):
            wrong[method] = f"is a {type(own).__name__}"
        elif differences(promise, own):
            wrong[method] = "; ".join(differences(promise, own))
    assert not wrong


def test_a_tiny_model_and_its_processor_have_every_field_of_their_contracts(tiny):
    model, processor = tiny
    for found, contract in ((model.config, base.Config), (model, base.Model), (processor, base.Processor)):
        fields = {*contract.__annotations__, *promised(contract)} - {"__init__"}
        assert {name for name in fields if not hasattr(found, name)} == set()


def test_a_package_exports_what_tells_its_checkpoints_and_writes_the_official_config(family):
    for name in promised(Family):
        assert not differences(getattr(Family, name), staticmethod(getattr(family, name)))


def test_a_processor_is_one_of_transformers(family):
    assert issubclass(family.Processor, ProcessorMixin)


def test_a_family_is_registered_with_the_auto_classes(family):
    assert AutoConfig.for_model(family.Config.model_type).__class__ is family.Config
    assert PROCESSOR_MAPPING[family.Config] is family.Processor
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        assert auto._model_mapping[family.Config] is family.Model


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_a_picture_of_any_mode_has_the_pixels_of_the_model(family, tokenizer, mode):
    processor = family.Processor(tokenizer, family.Config.tiny())
    picture = noise(1).convert("L" if mode == "I;16" else "RGB").convert(mode)
    pixels = processor.pixel_inputs([picture])["pixel_values"]
    assert torch.equal(pixels, processor.pixel_inputs([picture.convert("RGB")])["pixel_values"])


def test_the_end_of_an_answer_may_be_the_unknown_token_and_a_missing_one_is_named(family, tokenizer):
    """As Qwen2's fast tokenizer has it: <|endoftext|> is its unknown token, unless its folder says otherwise."""
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    same = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **settings)
    assert set(family.Processor(same, family.Config.tiny()).end_tokens) <= set(
        same.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    )
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] != "<|im_end|>"]
    written["model"]["unk_token"] = "<|endoftext|>"
    written["model"]["vocab"].pop("<|im_end|>", None)
    backend = Tokenizer.from_str(json.dumps(written))
    lacking = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|endoftext|>")
    with pytest.raises(RequestError, match=r"the tokenizer lacks .*; use the one in the checkpoint's folder"):
        family.Processor(lacking, family.Config.tiny())
