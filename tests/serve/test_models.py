"""Several models, not all of them loaded; adapters beside their base."""

from __future__ import annotations

import openai
import pytest
import torch
from serving import running, shapes

import longview
from longview.cli.serve import ServedModels
from longview.errors import RequestError
from longview.models import adapters


def ask(client: openai.OpenAI, model: str) -> str:
    return client.chat.completions.create(model=model, messages=shapes(), max_tokens=8).choices[0].message.content


def test_a_model_is_loaded_when_it_is_asked_and_another_leaves():
    with running("--model", "owl=demo-owl3", "--model", "ovis=demo-ovis2", "--max-loaded", "1") as server:
        client = server.client()
        assert [model.id for model in client.models.list().data] == ["owl", "ovis"]
        assert loaded(client) == ["owl"]
        for model in ("ovis", "owl"):
            assert ask(client, model) == "blue"
            assert loaded(client) == [model]
        long = {"max_tokens": 400, "extra_body": {"min_tokens": 400}, "stream": True}
        stream = client.chat.completions.create(model="owl", messages=shapes(), **long)
        next(iter(stream))
        with pytest.raises(openai.InternalServerError, match="owl cannot leave, as requests run") as caught:
            ask(client, "ovis")
        assert caught.value.status_code == 503
        assert "retry-after" in caught.value.response.headers
        stream.close()


def loaded(client: openai.OpenAI) -> list[str]:
    return [model.id for model in client.models.list().data if model.model_extra["loaded"]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of the demo that changes its answers."""
    model = longview.load("demo").model
    wrapper = adapters.add(model, ("language",), 4, 8, 0.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("adapter") / "other"
    adapters.save(wrapper, folder, "demo")
    return folder


def test_an_adapter_is_a_model_that_shares_the_weights_of_its_base(adapter):
    with running("--adapter", f"other={adapter}") as server:
        client = server.client()
        assert [(m.id, m.model_extra["parent"]) for m in client.models.list().data] == [
            ("demo", None),
            ("other", "demo"),
        ]
        expected = longview.load("demo", adapter=adapter).answer(shapes(), max_tokens=8).text
        assert ask(client, "other") == expected != "blue"
        assert ask(client, "demo") == "blue"


def test_a_model_beside_another_changes_nothing_of_it(adapter):
    base = longview.load("demo")
    twin = adapters.beside(base.model, adapter)
    own = {name: id(parameter) for name, parameter in base.model.named_parameters()}
    shared = {id(parameter) for name, parameter in twin.named_parameters() if ".lora_" not in name}
    assert shared == set(own.values())
    assert base.answer(shapes()).text == "blue"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": ["a=demo", "a=demo-mgm"]}, "two models are called 'a'"),
        ({"adapter": ["demo"]}, "give NAME=FOLDER"),
        ({"adapter": ["demo=x"]}, "two models are called 'demo'"),
    ],
)
def test_names_of_models_are_clear(options, expected):
    with pytest.raises(RequestError, match=expected):
        ServedModels(**options).by_name()
