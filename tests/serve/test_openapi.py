"""docs/openapi.json says what the server takes."""

from __future__ import annotations

import importlib.util
import json
import urllib.request

from serving import ROOT

from longview.requests import MediaOptions, SamplingParams
from longview.serve.schema import RENAMED
from longview.settings import settings_of


def test_the_document_is_that_of_the_routes():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.OPENAPI.read_text(encoding="utf-8") == make.openapi(), "run python docs/make.py"


def test_the_server_tells_the_same(server):
    told = json.loads(urllib.request.urlopen(f"{server.address}/openapi.json", timeout=30).read())
    assert told == json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))


def test_every_setting_has_its_name_in_a_request():
    schemas = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["components"]["schemas"]
    chat, extension = schemas["ChatRequest"]["properties"], schemas["Extension"]["properties"]
    assert set(settings_of(SamplingParams)) - set(RENAMED) <= set(chat)
    assert set(settings_of(MediaOptions)) <= set(extension)
    assert chat["temperature"]["description"] == settings_of(SamplingParams)["temperature"].help
