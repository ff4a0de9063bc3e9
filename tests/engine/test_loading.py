"""`longview.load` takes the arguments that it names, those of the model's family, and no others."""

from __future__ import annotations

import pytest

import longview
from longview.errors import RequestError


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("devcie", "device"),
        ("atn_implementation", "attn_implementation"),
        ("torch_dtype", "dtype"),
        ("quantise", "quantize"),
        ("vision_towr", "vision_tower"),
        ("max_memroy", "max_memory"),
        ("multimodal_max_lenght", "multimodal_max_length"),
    ],
)
def test_an_unknown_argument_is_refused_before_anything_is_opened_with_the_nearest_name(given, nearest, monkeypatch):
    monkeypatch.setattr("longview.models.checkpoint.resolve", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(RequestError, match=rf"unknown argument of longview.load '{given}'.*did you mean '{nearest}'\?"):
        longview.load("demo", **{given: "cpu"})


def test_an_argument_that_is_like_no_other_is_refused_with_all_that_there_are():
    with pytest.raises(RequestError, match=r"unknown argument of longview.load 'xyz'; there are name, .*configs$"):
        longview.load("demo", xyz=1)


def test_an_argument_of_another_family_is_refused():
    with pytest.raises(RequestError, match="demo has no such part or setting, so multimodal_max_length has no meaning"):
        longview.load("demo", multimodal_max_length=100)
    engine = longview.load("demo-ovis2", multimodal_max_length=100, device="cpu")
    assert engine.context_length == 100


def test_trust_remote_code_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match="trust_remote_code is ignored"):
        longview.load("demo", trust_remote_code=True, device="cpu")
