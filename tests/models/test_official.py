"""Folders in the form of the authors' releases: their names, their config, and still the same model here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.families import families, family_of
from longview.models.official import make_official
from longview.train.saved.export import export

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASES = [
    "mgm/plain",
    "mgm/hd",
    "mgm/gemma",
    "mgm/mixtral",
    "ovis2/tiny",
    "owl3/240728",
    "owl3/241014",
    "owl3/241101",
]
TIED = {"mgm/gemma": {"lm_head.weight"}}
"""What a release says twice: the head is the table of embeddings."""
OURS_TO_DECIDE = ("architectures", "transformers_version", "_fixture.", "llm_attn_implementation", "use_cache")


def flat(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", RELEASES)
def test_an_export_has_the_names_the_config_and_the_weights_of_the_release(name, tmp_path):
    release = GOLDEN / name
    family = family_of(release)
    model = family.Model.from_pretrained(release, dtype=torch.float32)
    export(model, None, tmp_path, torch.float32)
    make_official(tmp_path, release)
    assert set(checkpoint.tensor_shapes(release)) - set(checkpoint.tensor_shapes(tmp_path)) == TIED.get(name, set())
    assert set(checkpoint.tensor_shapes(tmp_path)) <= set(checkpoint.tensor_shapes(release))
    index = checkpoint.read_json(tmp_path, "model.safetensors.index.json")["weight_map"]
    assert set(index) == set(checkpoint.tensor_shapes(tmp_path))
    theirs, ours = (dict(flat(checkpoint.read_config(folder))) for folder in (release, tmp_path))
    for key, value in theirs.items():
        if key.endswith("sliding_window") or key.startswith(OURS_TO_DECIDE):
            continue
        assert ours.get(key) == value, key
    assert not {"dtype", "rope_parameters"} & set(checkpoint.read_config(tmp_path))
    again = family.Model.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


def test_code_and_tokenizer_of_the_start_go_along_and_are_not_run(tmp_path, tokenizer):
    family = families()["ovis2"]
    start, folder = tmp_path / "start", tmp_path / "folder"
    model = family.Model(family.Config.tiny())
    for place in (start, folder):
        model.save_pretrained(place)
        family.Processor(tokenizer, model.config).save_pretrained(place)
    (start / "modeling_ovis.py").write_text("raise SystemExit('it was run')\n")
    (start / "vocab.json").write_text("{}")
    config = checkpoint.read_config(start) | {"auto_map": {"AutoModelForCausalLM": "modeling_ovis.Ovis"}}
    (start / "config.json").write_text(json.dumps(config))
    make_official(folder, start)
    assert (folder / "modeling_ovis.py").exists()
    assert (folder / "vocab.json").exists()
    written = checkpoint.read_config(folder)
    assert written["auto_map"] == config["auto_map"]
    assert written["architectures"] == ["Ovis"]
    family.Model.from_pretrained(folder)


def test_a_model_of_other_towers_has_no_official_form(tmp_path):
    family = families()["mgm"]
    family.Model(family.Config.tiny()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"mm_vision_tower: .*leave out --official"):
        make_official(tmp_path)
