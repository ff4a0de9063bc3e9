"""What is used of transformers' insides is all in one module, and holds under each version that is supported."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from samples import tiny_model
from tolerances import EXACT_ATTENTION
from transformers import DynamicCache

import longview
from longview.models import transformers_seams
from longview.models.families import families
from longview.models.transformers_seams import CACHE_NAMES, IMPORTED, OVERRIDDEN, USED

PACKAGE = Path(longview.__file__).parent
SEAMS = Path(transformers_seams.__file__)
PUBLIC = {"logging", "__version__"}
"""What of transformers' modules is public."""


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != SEAMS:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def is_inside(name: str) -> bool:
    """Whether `transformers.NAME` is a module of it, or a name that it keeps to itself."""
    return name.startswith("_") or (isinstance(getattr(transformers, name, None), types.ModuleType))


def test_nothing_of_transformers_is_imported_elsewhere_but_what_it_exports():
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names if each.name.startswith("transformers.")]
            elif isinstance(node, ast.ImportFrom) and node.module == "transformers":
                names = [each.name for each in node.names if is_inside(each.name)]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers."):
                names = [f"{node.module}.{each.name}" for each in node.names]
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "transformers":
                names = [node.attr] if is_inside(node.attr) and node.attr not in PUBLIC else []
            found += [f"{path.relative_to(PACKAGE)}:{node.lineno}: {name}" for name in names]
    assert found == []


def test_each_seam_is_imported_for_a_reason_and_used():
    imported = [
        each.name
        for node in ast.walk(ast.parse(SEAMS.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers.")
        for each in node.names
    ]
    assert {getattr(transformers_seams, name) for name in imported} == IMPORTED.keys()
    assert [name for name in imported if hasattr(transformers, name) and not is_inside(name)] == [], "they are public"
    text = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path != SEAMS)
    text += "".join(inspect.getsource(each) for each in vars(transformers_seams).values() if inspect.isfunction(each))
    assert [name for name in imported if name not in text] == []


def classes() -> Iterator[type]:
    """The classes of the package that extend one of transformers'."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "longview."):
        if module.name.split(".")[1] in ("models", "engine", "train", "curriculum", "bench"):
            for value in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(value) and value.__module__ == module.name and upstream(value):
                    yield value


def upstream(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:] if base.__module__.startswith("transformers.")]


def test_each_private_attribute_or_method_of_a_layer_or_cache_that_is_overridden_is_listed():
    found, listed = set(), set(OVERRIDDEN)
    called = (transformers.Cache, transformers.CacheLayerMixin, transformers_seams.Qwen2DecoderLayer)
    for cls in classes():
        names = {name for name in vars(cls) if any(name in vars(base) for base in upstream(cls))} - {"_abc_impl"}
        names -= {name for name in names if name.endswith("_cached_value")}  # by transformers 5.20, as it runs
        found |= {name for name in names if name.startswith("_") and not name.startswith("__")}
        if cls.__name__ in listed:  # all of it
            found.add(cls.__name__)
        elif issubclass(cls, called):
            found |= {f"{cls.__name__}.{name}" for name in names if not name.startswith("__")}
    assert found == listed


def test_each_private_attribute_of_transformers_objects_that_is_touched_is_listed():
    theirs = (transformers.PreTrainedModel, transformers.PreTrainedConfig, transformers.Cache)
    known = {name for each in theirs for name in dir(each)} | set(USED)
    found = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            called_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if node.attr in known and owner not in ("self", "cls", "torch") and not called_super:
                found.add(node.attr)
    assert found == set(USED)


@pytest.mark.parametrize("family", families().values(), ids=families())
@pytest.mark.parametrize("name", CACHE_NAMES)
@torch.no_grad()
def test_forward_takes_the_cache_by_either_name_and_warns_of_neither(family, name, tokenizer):
    model, _ = tiny_model(family, family.Config.variants[0], tokenizer)
    ids = torch.arange(3, 10)[None]
    whole = model(input_ids=ids).logits
    cache = DynamicCache()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(input_ids=ids[:, :4], **{name: cache})
        rest = model(input_ids=ids[:, 4:], **{name: cache}).logits
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(rest, whole[:, 4:], atol=EXACT_ATTENTION, rtol=0)
