"""Two towers: which texts fit which pictures, the sigmoid loss by hand, and a short run that learns."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from tolerances import SAME_MATHS

from longview.curriculum.contrastive import Contrastive, fit
from longview.curriculum.siglip import build_tokenizer
from longview.errors import RecipeError
from longview.models.similarity import Similarity
from longview.train.build import open_model
from longview.train.loop import Trainer
from longview.train.recipe import from_tree
from longview.train.run import train
from longview.world.naming import all_facts, draw_text, facts_held, facts_named
from longview.world.scenes import Picture, Thing, draw_picture

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {
    "text_config": {**SIZE, "max_position_embeddings": 16},
    "vision_config": {**SIZE, "image_size": 48, "patch_size": 16},
}
TREE = {
    "model": {"family": "siglip", "config": CONFIG},
    "pool": {"pictures": 200, "clips": 0},
    "stages": [
        {"name": "see", "objective": "contents", "train": ["vision"], "steps": 2, "world": {"batch": 16}},
        {
            "name": "pair",
            "objective": "contrastive",
            "train": ["vision", "language", "scale"],
            "steps": 4,
            "world": {"batch": 16},
        },
    ],
}


def test_texts_fit_the_pictures_that_hold_what_they_name():
    star, heart = Thing("red", "star", "large", 0.5, 0.5), Thing("red", "heart", "small", 0.5, 0.5)
    pictures = [Picture((star,)), Picture((heart,)), Picture((star, heart.at(0.1, 0.1)))]
    texts = ["a red star", "How big is the red thing?", "small heart and a large star", "nothing"]
    assert fit(texts, pictures) == [
        [True, False, True],
        [True, True, True],
        [False, False, True],
        [True, True, True],
    ]


def test_every_drawn_text_fits_its_own_picture():
    rng = random.Random(0)
    for _ in range(300):
        picture = draw_picture(rng)
        text = draw_text(rng, picture)
        assert facts_named(text) <= facts_held(picture)
        assert facts_named(text) or text == "nothing"


def test_every_fact_can_be_spelt_without_unknown_words():
    tokenizer = build_tokenizer()
    for fact in all_facts():
        assert tokenizer.unk_token_id not in tokenizer(fact)["input_ids"], fact
    assert tokenizer("STOP, 42!")["input_ids"] == tokenizer("stop 4 2")["input_ids"]
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_the_loss_is_the_papers(tmp_path):
    stage = TREE["stages"][1] | {"world": {"batch": 6}}
    recipe = from_tree(TREE | {"stages": [stage], "pool": {"pictures": 30, "clips": 0}})
    torch.manual_seed(0)
    model, processor = open_model(recipe, tmp_path)
    objective = Contrastive(recipe, 0)
    objective.attach(model, processor, tmp_path)
    objective.prepare(lambda done, total, label: None)
    pool = objective.pool
    batch, counts = objective.draw(random.Random(5))
    loss, _ = objective.loss(batch)
    rng = random.Random(5)
    chosen = [rng.randrange(30) for _ in range(6)]
    texts = [draw_text(rng, pool.pictures[index]) for index in chosen]
    with torch.no_grad():
        pixels = torch.from_numpy(pool.pixels[chosen]).permute(0, 3, 1, 2) / 127.5 - 1
        seen = model.vision_model(pixels).pooler_output
        read = model.text_model(processor.texts(texts)).pooler_output
    expected = 0.0
    for i, text in enumerate(texts):
        for j, index in enumerate(chosen):
            cosine = torch.cosine_similarity(read[i], seen[j], dim=0).item()
            sign = 1 if facts_named(text) <= facts_held(pool.pictures[index]) else -1
            expected += math.log1p(math.exp(-sign * (10 * cosine - 3))) / 6
    assert loss.item() == pytest.approx(expected, abs=6 * SAME_MATHS)
    assert counts["samples"] == 6


def test_a_run_leaves_a_folder_that_chooses_frames(tmp_path):
    folder = train(from_tree(TREE), tmp_path / "run", progress=False)
    near = Similarity.open(str(folder))
    assert near.text("Where is the red star?").shape == (1, 32)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["SiglipModel"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["see", "pair"]


def test_a_run_that_broke_off_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    tree = json.loads(json.dumps(TREE))
    tree["stages"] = [{**tree["stages"][1], "checkpoint_every": 2, "steps": 4}]
    whole = train(from_tree(tree), tmp_path / "whole", progress=False)
    learn = Trainer.learn

    def crashing(self, objective, step):
        if step == 3:
            raise KeyboardInterrupt
        return learn(self, objective, step)

    monkeypatch.setattr(Trainer, "learn", crashing)
    with pytest.raises(KeyboardInterrupt):
        train(from_tree(tree), tmp_path / "broken", progress=False)
    monkeypatch.undo()
    resumed = train(from_tree(tree), tmp_path / "broken", resume=True, progress=False)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_towers_learn_which_texts_fit(tmp_path):
    tree = json.loads(json.dumps(TREE))
    changes = {"world": {"batch": 32}, "steps": 60, "warmup": 5, "learning_rate": 3e-3}
    tree["stages"] = [tree["stages"][1] | changes]
    train(from_tree(tree), tmp_path / "run", progress=False)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tree: tree["stages"][1].update(objective="answers", world={}), "does not fit this model"),
        (lambda tree: tree["model"].update(init_from={"vision": "demo"}), r"init_from is for a new model of a family"),
        (lambda tree: tree["stages"][1].update(train=["connector"]), "no part 'connector'"),
        (lambda tree: tree["model"]["config"]["text_config"].update(hidden_size=64), "one hidden_size"),
        (lambda tree: tree["model"]["config"]["text_config"].update(vocab_size=9), "decided by the tokenizer"),
        (
            lambda tree: tree["model"]["config"]["text_config"].update(hidden_sise=9),
            "nearest known key is 'hidden_size'",
        ),
        (lambda tree: tree["model"]["config"]["vision_config"].update(num_attention_heads=3), "does not make a model"),
        (lambda tree: tree["model"].update(family="siglop"), "expected one of"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_named(tmp_path, change, complaint):
    tree = json.loads(json.dumps(TREE))
    change(tree)
    with pytest.raises(RecipeError, match=complaint):
        train(from_tree(tree), tmp_path / "run", progress=False)
