"""Names of dtypes and devices: long and short ones, everywhere."""

from __future__ import annotations

import pytest
import torch

from longview import names
from longview.engine.devices import check_device, dtype_of
from longview.errors import RequestError
from longview.train.recipe import from_tree, to_tree

STAGE = {"name": "a", "objective": "supervised", "train": ["language"], "steps": 1, "data": {"datasets": []}}


@pytest.mark.parametrize("full", names.DTYPES)
def test_a_dtype_has_a_long_and_a_short_name(full):
    assert names.check_dtype(full) == names.check_dtype(names.DTYPES[full]) == full
    assert dtype_of(full) == dtype_of(names.DTYPES[full]) == getattr(torch, full)


def test_other_dtypes_of_torch_stay_as_they_are():
    assert dtype_of("float64") is torch.float64
    assert dtype_of(torch.bfloat16) is torch.bfloat16
    for unknown in ("int8", "bf17", "", "nn", None):
        with pytest.raises(RequestError, match="expected float32 \\(fp32\\), bfloat16 \\(bf16\\) or float16"):
            dtype_of(unknown)


def test_a_recipe_takes_short_names_and_keeps_the_long_one():
    recipe = from_tree({"model": {"start": "x", "dtype": "bf16"}, "stages": [STAGE]})
    assert recipe.model.dtype == "bfloat16"
    assert to_tree(recipe)["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_a_device_may_have_a_number(name):
    assert names.check_device(name) == name


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:²", "cuda:0:1", "CPU"])
def test_what_is_no_device_is_refused(name):
    for check in (names.check_device, check_device):
        with pytest.raises(RequestError, match="unknown device"):
            check(name)
