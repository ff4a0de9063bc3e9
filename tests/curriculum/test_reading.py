"""The text of pictures as a probe reads it: of the right pictures, in the pixels that show it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runs import NEW_MODELS, WORLD_TREE

from longview.curriculum.contents import Contents
from longview.curriculum.labels import SIGN_CLASSES, labels_of
from longview.curriculum.reading import cell_of_print, crops_that_meet, features_of_cells, side_by_side
from longview.errors import RecipeError
from longview.train.build import open_model
from longview.train.recipe import Recipe, from_tree
from longview.world.scenes import Picture, Sign

CUT = {
    "owl3": {"cut_enable": True, "cut_pictures": 1},
    "ovis2": NEW_MODELS["ovis2"]["processor"] | {"max_partition": 9, "max_partition_of_several": 1},
}

MGM = {
    "family": "mgm",
    "config": {
        "image_size_aux": 48, "mm_projector_type": "mlp2x_gelu",
        "text_config": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True},
        "vision_config": {"image_size": 24, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16,
                          "num_hidden_layers": 2, "num_attention_heads": 1},
        "vision_aux_config": {"hidden_sizes": [8, 8], "depths": [1, 1]},
    },
}  # fmt: skip


def recipe_of(model: dict, pool: dict, **world) -> Recipe:
    stage = WORLD_TREE["stages"][0] | {"world": {"batch": 4} | world}
    return from_tree({"model": model, "pool": {"pictures": 24, "clips": 0, "simple": 0.0} | pool, "stages": [stage]})


def attached(recipe: Recipe, folder) -> Contents:
    torch.manual_seed(0)
    objective = Contents(recipe, 0)
    objective.attach(*open_model(recipe, folder), folder)
    objective.prepare(lambda done, total, label: None)
    return objective


@pytest.mark.parametrize(
    ("cell", "crops"),
    [(0, [0]), (2, [1]), (6, [2]), (8, [3]), (1, [0, 1]), (3, [0, 2]), (7, [2, 3]), (4, [0, 1, 2, 3])],
)
def test_small_print_stands_in_each_of_four_crops_that_its_cell_meets(cell, crops):
    assert crops_that_meet(cell, 4) == crops


def test_small_print_stands_in_one_of_nine_crops():
    assert [crops_that_meet(cell, 9) for cell in range(9)] == [[cell] for cell in range(9)]


def test_small_print_has_a_cell_and_other_text_none():
    assert cell_of_print(Picture((), Sign("tea", 1, 5))) == 5
    assert cell_of_print(Picture((), Sign("tea", 1, 0))) == 0
    assert cell_of_print(Picture((), Sign("tea", 1))) is None
    assert cell_of_print(Picture(())) is None


def test_cells_stand_side_by_side_and_have_features_in_that_order():
    """Each picture is its number, but for one cell, which is a hundred more: that is what is left."""
    pictures = torch.arange(18.0)[:, None, None, None].expand(18, 2, 6, 6).clone()
    cells = [number % 9 for number in range(18)][::-1]
    for picture, (row, column) in zip(pictures, (divmod(cell, 3) for cell in cells), strict=True):
        picture[:, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] += 100
    together = side_by_side(pictures, cells)
    assert together.shape == (2, 2, 6, 6)
    assert features_of_cells(together).tolist() == [[number + 100.0] * 2 for number in range(18)]


@pytest.mark.parametrize("family", CUT)
def test_the_views_that_are_encoded_are_the_crops_with_small_print(family, tmp_path, monkeypatch):
    recipe = recipe_of(NEW_MODELS[family] | {"processor": CUT[family]}, {"close": 12, "prints": 0.7}, text_probe=12)
    objective = attached(recipe, tmp_path)
    pool = objective.pool
    indices = torch.arange(12) + pool.first_close
    counts = [len(objective._views_of_text(pool.pictures[index], pool.close.shape[1])) for index in indices.tolist()]
    assert set(counts) == ({1, 2} if family == "owl3" else {1})
    seen: list[torch.Tensor] = []
    encode = objective.model.encode
    monkeypatch.setattr(objective.model, "encode", lambda pixels: (seen.append(pixels), encode(pixels))[1])
    assert torch.isfinite(objective.text_loss(indices))
    assert len(seen[0]) == sum(counts)
    views = objective._shaded(torch.from_numpy(pool.close).flatten(0, 1)).unflatten(0, pool.close.shape[:2])
    taken = iter(seen[0])
    for picture, cut in zip(pool.pictures[pool.first_close :], views, strict=True):
        for view in objective._views_of_text(picture, len(cut)):
            assert torch.equal(next(taken), cut[view])


def test_the_fine_tower_of_two_learns_from_cells_of_nine_pictures(tmp_path):
    recipe = recipe_of(MGM, {"pictures": 60, "prints": 0.8}, text_probe=20)
    objective = attached(recipe, tmp_path)
    (batch,), notes = objective.batches(0)
    assert len(batch.looked_at) == 18, "whole ones of nine"
    assert all(cell_of_print(objective.pool.pictures[index]) is not None for index in batch.looked_at)
    assert notes["pictures"] == 4 + 18
    loss, noted = objective.loss(batch)
    alone = dataclasses.replace(recipe.stages[0].world, text_probe=0)
    assert loss.item() > noted["read"] * recipe.stages[0].world.text_probe_weight > 0 == alone.text_probe
    objective.text_loss(torch.tensor(batch.looked_at)).backward()
    gradients = {name.split(".")[0] for name, p in objective.model.named_parameters() if p.grad is not None}
    assert gradients == {"vision_tower_aux"}


def test_a_probe_that_is_right_has_no_loss(tmp_path):
    """Logits are compared with the text of the pictures that were drawn, in their order."""
    objective = attached(recipe_of(MGM, {"pictures": 60, "prints": 0.8}, text_probe=18), tmp_path)
    indices = torch.tensor(objective.batches(0)[0][0].looked_at)
    targets = torch.tensor([labels_of(objective.pool.pictures[index])[27:] for index in indices.tolist()])
    right = torch.cat([torch.nn.functional.one_hot(targets[:, i], n) for i, n in enumerate(SIGN_CLASSES)], 1) * 99.0

    class Right(torch.nn.Module):
        def forward(self, hidden):
            return right if len(hidden) == len(right) else None

    objective.probes["fine"] = Right()
    assert objective.text_loss(indices).item() == pytest.approx(0, abs=1e-6)
    assert objective.text_loss(indices.flip(0)).item() > 1


@pytest.mark.parametrize(
    ("pool", "count", "words"),
    [
        ({"prints": 0.8}, 8, "text_probe is 8; with two towers, nine pictures are read together: give 9 or more, or 0"),
        ({"prints": 0.0}, 9, "text_probe reads small print, and no picture holds any; raise pool.prints"),
    ],
)
def test_what_cannot_be_read_is_refused(pool, count, words, tmp_path):
    with pytest.raises(RecipeError) as caught:
        attached(recipe_of(MGM, pool, text_probe=count), tmp_path)
    assert words in str(caught.value)


def test_the_stage_says_how_many_pictures_are_read(tmp_path):
    recipe = recipe_of(MGM, {"prints": 0.8}, text_probe=9)
    assert Contents(recipe, 0).describe()[0] == "4 pictures and the text of 9 more"
    assert Contents(recipe_of(MGM, {}), 0).describe()[0] == "4 pictures"


@pytest.mark.parametrize(("train", "asked"), [(["vision", "connector"], False), (["connector"], True)])
def test_a_tower_of_low_resolution_is_not_taught_small_print(train, asked, tmp_path):
    recipe = recipe_of(MGM, {"pictures": 60, "prints": 0.8})
    stage = dataclasses.replace(recipe.stages[0], train=train)
    objective = attached(dataclasses.replace(recipe, stages=[stage]), tmp_path)
    printed = torch.tensor(objective.pool.printed[:6])
    others = torch.tensor([index for index in range(60) if index not in objective.pool.printed][:6])

    def signs(*indices: torch.Tensor) -> float:
        labels = objective.labels(torch.cat(indices))[:, 27:]
        logits = torch.zeros(len(labels), sum(SIGN_CLASSES))
        logits[len(indices[0]) :] += torch.arange(sum(SIGN_CLASSES))
        return objective._loss_of_signs(logits, labels, torch.cat(indices).tolist()).item()

    assert (signs(printed) > 0) == asked
    assert (signs(others, printed) != signs(others)) == asked, "what is left out has no part in the mean"
