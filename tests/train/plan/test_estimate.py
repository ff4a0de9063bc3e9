"""What a run is said to take, against what it takes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from PIL import Image
from runs import stage_tree
from samples import tiny_model
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longview.errors import RecipeError
from longview.models import adapters
from longview.models.families import families
from longview.train import run as training
from longview.train.build import open_spec
from longview.train.data.settings import DataSettings
from longview.train.objectives.of_data import pass_shape
from longview.train.optimizers import select_parts
from longview.train.plan import estimate
from longview.train.plan.cost import cost_of
from longview.train.plan.dry_run import dry_run
from longview.train.plan.estimate import StageEstimate, check_memory
from longview.train.plan.plan import make_plan
from longview.train.recipe import from_tree

POSITIONS = 48


def reading(model, device: str):
    """A pass over words, which ends in one number."""

    def read() -> torch.Tensor:
        width = model.get_input_embeddings().weight.shape[1]
        logits = model.language_model(
            inputs_embeds=torch.zeros(2, POSITIONS, width, device=device),
            attention_mask=torch.ones(2, 1, POSITIONS, POSITIONS, dtype=torch.bool, device=device),
            position_ids=torch.arange(POSITIONS, device=device).expand(2, -1),
            use_cache=False,
        ).logits
        return logits.logsumexp(-1).sum()

    return read


def seeing(model, device: str):
    side = model.config.picture_size
    return lambda: model.encode(torch.zeros(2, 3, side, side, device=device)).sum()


def done(model, passing) -> tuple[float, float]:
    """Operations of a pass and of the way back, and bytes kept in between, as they really are."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        passing()
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):  # it does not count fused attention
        result = passing()
        if result.requires_grad:
            result.backward()
    model.zero_grad()
    return counted.get_total_flops(), sum(storage.nbytes() for storage in held.values())


WAYS = {"language": (["language"], 0), "connector": (["connector"], 0), "adapter": (["language"], 4),
        "everything": (["vision", "connector", "language"], 0)}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", families())
def test_a_trial_counts_what_is_done(name, way, tokenizer):
    parts, rank = WAYS[way]
    model = tiny_model(families()[name], families()[name].Config.variants[0], tokenizer)[0].train()
    if rank:
        adapters.add(model, parts, rank, 8, 0.0)
    select_parts(model, parts)
    bare = copy.deepcopy(model).to("meta")
    for make in (reading, seeing):
        operations, kept = done(model, make(model, "cpu"))
        cost = cost_of(bare, make(bare, "meta"))
        if (name, way, make) != (
            "mgm",
            "everything",
            seeing,
        ):  # PyTorch counts depthwise ones as full
            assert cost.operations(checkpointing=False) == pytest.approx(operations, rel=0.15)
        assert cost.kept == pytest.approx(kept, rel=0.15, abs=4096)
        assert cost.operations(checkpointing=True) >= cost.operations(checkpointing=False)
        assert cost.kept_checkpointed <= cost.kept


def test_experts_are_counted_as_often_as_words_meet_them():
    with torch.device("meta"):
        model = families()["mgm"].Model(families()["mgm"].Config.tiny("mixtral")).train()
    select_parts(model, ["language"])
    words = model.config.text_config
    cost = cost_of(model, reading(model, "meta"))
    matrices = 3 * words.hidden_size * words.intermediate_size * words.num_experts_per_tok * words.num_hidden_layers
    assert cost.forward > 2 * 2 * POSITIONS * matrices
    assert cost.forward < 2 * 2 * POSITIONS * matrices * words.num_local_experts / words.num_experts_per_tok
    assert cost.kept > 0


def test_samples_are_laid_out_as_the_stage_says():
    assert pass_shape(DataSettings([], batch=12, micro_batch=3), 50, 2, 10) == (3, 50, 6, 30, 4)
    assert pass_shape(DataSettings([], batch=12, pack=200), 50, 2, 10) == (1, 200, 8, 40, 3)


@pytest.fixture
def recipe(tiny_start, tmp_path):
    Image.new("RGB", (30, 24), "red").save(tmp_path / "red.png")
    row = {"image": "red.png", "query": "<image>\nColour?", "response": "red"}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 8))

    def make(model: dict | None = None, **stage):
        base = {"name": "tune", "steps": 2, "batch": 4, "datasets": [{"path": str(tmp_path / "rows.jsonl")}]}
        model = {"start": str(tiny_start), **(model or {})}
        return from_tree({"model": model, "stages": [stage_tree(**base | stage)]})

    return make


@pytest.fixture(scope="module")
def tiny_start(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "ovis2"
    model, processor = tiny_model(families()["ovis2"], "softmax", tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def taken(tmp_path):
    """What a recipe's only stage is said to take."""
    return lambda recipe: estimate.estimate(make_plan(recipe), open_spec(recipe, tmp_path / "spec")).stages[0]


def test_what_takes_more_is_said_to_take_more(recipe, taken):
    plain, adapter = taken(recipe(batch=4)), {"adapter": {"rank": 2, "alpha": 4, "dropout": 0.0}}
    assert taken(recipe(batch=8)).operations == pytest.approx(2 * plain.operations)
    assert taken(recipe(batch=8)).memory == plain.memory
    assert taken(recipe(micro_batch=4)).memory > plain.memory
    assert taken(recipe(micro_batch=4, gradient_checkpointing=True)).memory < taken(recipe(micro_batch=4)).memory
    assert taken(recipe(gradient_checkpointing=True)).operations > plain.operations
    assert taken(recipe(adapter)).operations < plain.operations
    assert taken(recipe({"dtype": "bfloat16", **adapter})).memory < taken(recipe(adapter)).memory
    assert taken(recipe(train=["vision", "connector", "language"])).operations > plain.operations


def test_a_run_that_does_not_fit_is_refused_before_it_begins(recipe, taken, tmp_path, monkeypatch):
    needed = taken(recipe(micro_batch=4)).memory
    monkeypatch.setattr(estimate, "memory_of", lambda _: round(needed / 1.2))
    with pytest.raises(RecipeError, match=r"stages\.tune takes about .* GiB of memory, and cpu has .* GiB; .*--force"):
        training.train(recipe(micro_batch=4), tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").glob("log.jsonl"))
    assert not (tmp_path / "run" / "recipe.json").exists()
    training.train(recipe(micro_batch=4), tmp_path / "run", progress=False, force=True)
    monkeypatch.setattr(estimate, "memory_of", lambda _: round(needed / 1.05))
    check_memory(recipe(micro_batch=4), [taken(recipe(micro_batch=4))])


def test_the_remedies_are_those_that_are_left(recipe, monkeypatch):
    monkeypatch.setattr(estimate, "memory_of", lambda _: 1 << 20)
    with pytest.raises(RecipeError) as told:
        check_memory(recipe(micro_batch=4), [StageEstimate({}, memory=1 << 30)])
    assert all(way in str(told.value) for way in ("micro_batch than 4", "checkpointing", "adapter", "bfloat16"))
    done = recipe({"dtype": "bfloat16", "adapter": {"rank": 2}}, pack=500, gradient_checkpointing=True)
    with pytest.raises(RecipeError) as told:
        check_memory(done, [StageEstimate({}, memory=1 << 30)])
    assert "pack than 500" in str(told.value)
    assert not any(way in str(told.value) for way in ("micro_batch", "checkpointing", "adapter", "bfloat16"))


def test_the_dry_run_names_the_machine_and_the_time(recipe, taken, monkeypatch):
    monkeypatch.setattr(estimate, "matrix_rate", lambda *_: 1e6)
    told = "\n".join(dry_run(recipe(steps=100)))
    operations = taken(recipe(steps=100)).operations
    assert f"{operations:.2g} operations and {operations / 1e6:.2g} s a step" in told
    assert "GFLOP/s in matrices" in told
