"""Keys of recipes that have moved: a recipe in the old spelling is refused with a line that shows the new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from longview.errors import RecipeError

DATA = (
    "datasets", "batch", "micro_batch", "pack", "max_length", "template", "frames", "fps", "crop", "max_partition",
    "group_by_length", "quarantine", "beta",
)  # fmt: skip
WORLD = ("batch", "tokens", "mix", "simple", "kinds", "turns", "captions", "probe_layer", "probe_weight")
OLD_POOL = "data"
OF_DATA = ("supervised", "preference")


def refuse_moved_keys(tree: Any) -> None:
    """
    Raises:
        RecipeError: the tree of a recipe holds keys that have moved; shows how each is written now.
    """
    if isinstance(tree, Mapping):
        lines = list(_moved(tree))
        if lines:
            raise RecipeError("; ".join(lines))


def _moved(tree: Mapping[str, Any]) -> Iterator[str]:
    stages = tree.get("stages")
    stages = [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list) else []
    if OLD_POOL in tree:
        wanted = any(not _is_of_data(stage) for stage in stages)
        yield f"{OLD_POOL} is now pool; {f'write {_line(pool=tree[OLD_POOL])}' if wanted else 'leave it out'}"
    model = tree.get("model")
    if isinstance(model, Mapping) and "parts" in model:
        parts = model["parts"]
        yield f"model.parts is now model.init_from; {f'write {_line(init_from=parts)}' if parts else 'leave it out'}"
    found = [(f"stages.{number}", stage) for number, stage in enumerate(stages) if any(_moved_of(stage))]
    if found:
        yield _moved_in_stage(*found[0])
    if len(found) > 1:
        yield f"likewise in {', '.join(where for where, _ in found[1:])}"
    renamed = next((number for number, stage in enumerate(stages) if stage.get("objective") == "pairs"), None)
    if renamed is not None:
        yield f"stages.{renamed}.objective 'pairs' is now 'contrastive'; write {_line(objective='contrastive')}"


def _moved_in_stage(where: str, stage: Mapping[str, Any]) -> str:
    room = "data" if _is_of_data(stage) else "world"
    moved, meaningless = _moved_of(stage)
    if not moved:
        return f"leave out {', '.join(f'{where}.{key}' for key in meaningless)}"
    first, *others = moved
    more = f" (and {', '.join(others)})" if others else ""
    rest = f", and leave out {', '.join(meaningless)}" if meaningless else ""
    return f"{where}.{first} is now {where}.{room}.{first}{more}; write {_line(**{room: moved})}{rest}"


def _moved_of(stage: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of a stage stands under `data` or `world` now, and what means nothing to it."""
    keys, others = (DATA, WORLD) if _is_of_data(stage) else (WORLD, DATA)
    moved = {key: value for key, value in stage.items() if key in keys}
    return moved, [key for key in stage if key in others and key not in keys]


def _is_of_data(stage: Mapping[str, Any]) -> bool:
    """Whether a stage, in whichever spelling, learns from a user's rows."""
    if "data" in stage or "world" in stage:
        return "data" in stage
    return stage.get("objective") in OF_DATA or bool(stage.get("datasets"))


def _line(**tree: Any) -> str:
    """A tree in one line of YAML, without its outer braces."""
    dumped = yaml.safe_dump(tree, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return dumped.strip()[1:-1]
