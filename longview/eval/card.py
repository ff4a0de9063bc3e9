"""The model cards of the embedded models, written from measured numbers.

python -m longview.eval.card measure FOLDER RUN …    evaluate a checkpoint folder, keep the numbers beside it
python -m longview.eval.card write FOLDER            make README.md from those numbers
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from longview.eval.teacher_forcing import score_by_teacher_forcing
from longview.eval.world import GROUPS, PictureInput, Score, draw_cases, summarise
from longview.models.families import family_of
from longview.world.render import SMALL_PRINT

NUMBERS = "evaluation.json"
LONGEST_PAUSE = 300.0
"""Seconds between two lines of a log in which a run went on; ten steps with many pictures take minutes."""
BLANKED = "small print"
"""The group that needs a high-resolution tower: it is evaluated again with that tower's input blank."""


def measure(folder: Path, runs: Sequence[Path], per_kind: int = 50, seed: int = 0) -> dict[str, Any]:
    """The numbers of the card, measured on held-out scenes in real files; also written beside the weights."""
    from longview.engine import load

    engine = load(folder)
    scores: dict[str, list[Score]] = {}
    for pictures in get_args(PictureInput):
        count = per_kind if pictures == "shown" else max(1, per_kind // 3)
        scores[pictures] = score_by_teacher_forcing([engine], draw_cases(seed, count), pictures)[0]
    return finish(engine, folder, runs, seed, per_kind, scores)


def finish(
    engine: Any, folder: Path, runs: Sequence[Path], seed: int, per_kind: int, scores: Mapping[str, list[Score]]
) -> dict[str, Any]:
    """Add the accuracy on small print without the high-resolution tower, where there is one; then `collect`."""
    if not hasattr(engine.model, "vision_tower_aux"):
        return collect(engine, folder, runs, seed, scores)
    with blanked(engine.model.vision_tower_aux):
        blank = score_by_teacher_forcing([engine], draw_cases(seed, per_kind, [BLANKED]), "shown")[0]
    return collect(engine, folder, runs, seed, {**scores, "fine tower blank": blank})


@contextlib.contextmanager
def blanked(tower: Any) -> Iterator[None]:
    """Give a tower grey pixels, whatever its input."""
    hook = tower.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 0, *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()


def collect(
    engine: Any, folder: Path, runs: Sequence[Path], seed: int, scores: Mapping[str, Sequence[Score]]
) -> dict[str, Any]:
    """Everything that the card needs, written to `folder`."""
    numbers = {
        "model": {
            "family": family_of(folder).__name__.rpartition(".")[2],
            "parameters": sum(parameter.numel() for parameter in engine.model.parameters()),
            "bytes": (folder / "model.safetensors").stat().st_size,
            "picture_size": engine.model.config.picture_size,
            "patches": engine.model.config.patches_per_picture,
            "cuts": _cuts(engine.processor),
        },
        "training": training_facts(runs),
        "seed": seed,
        "scores": {pictures: [score.as_dict() for score in rows] for pictures, rows in scores.items()},
        "groups": {
            pictures: {group: score.as_dict() for group, score in summarise(rows).items()}
            for pictures, rows in scores.items()
        },
    }
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


def training_facts(runs: Sequence[Path]) -> dict[str, Any]:
    """How a model was trained: the recipes of its successive runs, and steps and minutes of each stage.

    From the runs' logs; a pause between two lines does not count. A run's `notes.md` is added, if there is one. A run's
    folder is named after its recipe, as `longview train` does.
    """
    facts: dict[str, Any] = {"recipes": [], "stages": {}, "planned": {}, "notes": "", "pictures": 0, "clips": 0}
    for run in runs:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        stages: dict[str, dict[str, float]] = {}
        for before, line in zip([lines[0], *lines], lines, strict=False):
            stage = stages.setdefault(line["stage"], {"steps": 0, "minutes": 0.0})
            stage["steps"] = max(stage["steps"], line["step"])
            pause = line["time"] - before["time"]
            stage["minutes"] += pause / 60 if pause < LONGEST_PAUSE else 0.0
        recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
        folder, _, stem = run.name.partition("-")
        facts["recipes"].append(f"recipes/{'demo/' * (folder != 'demo')}{folder}/{stem}.yaml")
        renamed = {stage: f"{stage} of {run.name}" if stage in facts["stages"] else stage for stage in stages}
        facts["stages"] |= {renamed[stage]: s | {"minutes": round(s["minutes"], 1)} for stage, s in stages.items()}
        facts["planned"] |= {renamed.get(s["name"], s["name"]): s["steps"] for s in recipe["stages"]}
        notes = run / "notes.md"
        if notes.exists():
            facts["notes"] = f"{facts['notes']}\n\n{notes.read_text(encoding='utf-8').strip()}".strip()
        pool = recipe.get("pool", {})  # preferences are learned from files
        parts = {Path(part) for part in (recipe.get("model", {}).get("init_from") or {}).values()}
        begun = [part for part in parts if part.parts[:2] == ("longview", "demo")]
        if len(begun) == 1:
            facts["from"] = f"demo-{begun[0].name}"
        facts["pictures"] += pool.get("pictures", 0)
        facts["clips"] += pool.get("clips", 0)
    return facts


def _cuts(processor: Any) -> bool:
    """Whether a single picture is cut into crops."""
    return bool(getattr(processor, "cut_enable", False)) or (getattr(processor, "max_partition", None) or 1) > 1


def card(numbers: Mapping[str, Any]) -> str:
    """The model card, Markdown."""
    model, training, groups = numbers["model"], numbers["training"], numbers["groups"]
    minutes = sum(stage["minutes"] for stage in training["stages"].values())
    stages = ", ".join(f"{name} {stage['steps']:,}" for name, stage in training["stages"].items())
    family, begun = model["family"], training.get("from")
    name = next((stem for stem in (Path(recipe).stem for recipe in training["recipes"]) if stem in ADDED), family)
    source = f"`{begun}`" if begun else "random weights"
    parts = [
        _HEAD.format(
            title=TITLES[family],
            what=WHAT[family],
            millions=model["parameters"] / 1e6,
            megabytes=model["bytes"] / 1e6,
            side=model["picture_size"],
            patches=model["patches"],
            cut=IN_CROPS if model.get("cuts") else UNCUT,
        ),
        *([ADDED[name]] if name in ADDED else []),
        "## Accuracy\n",
        _HOW.format(name=name),
        "| media | questions | accuracy | 95 % interval | blank | swapped |\n|---|---|---|---|---|---|",
        *(_group_row(group, groups) for group in GROUPS if group in groups["shown"]),
        *_without_fine_tower(groups),
        "\n### By kind of question\n",
        "| media | kind | accuracy | chance | blank | swapped | questions |\n|---|---|---|---|---|---|---|",
        *_kind_rows(numbers["scores"]),
        f"\nNot clearly better than chance: {_kinds_at_chance(numbers['scores']['shown'])}.",
        "\n## Training\n",
        f"From {source}: {', then '.join(f'`longview train {recipe}`' for recipe in training['recipes'])}.\n"
        f"{minutes:.0f} minutes on one CPU core; steps: {stages}.\n"
        f"The {training['pictures']:,} pictures and {training['clips']:,} clips are from `longview/world`; none is "
        "held out.\n",
        *([training["notes"], ""] if training["notes"] else []),
        _TAIL.format(most=MOST.get(name, "eight pictures, or clips with more frames,")),
    ]
    return "\n".join(parts)


def _group_row(group: str, groups: Mapping[str, Any]) -> str:
    score = groups["shown"][group]
    blank, swapped = (groups[pictures][group]["accuracy"] for pictures in ("blank", "swapped"))
    interval = f"{score['low']:.1%} – {score['high']:.1%}"
    return f"| {group} | {score['total']} | **{score['accuracy']:.1%}** | {interval} | {blank:.1%} | {swapped:.1%} |"


def _without_fine_tower(groups: Mapping[str, Any]) -> list[str]:
    """What the high-resolution tower contributes, where there is one."""
    if "fine tower blank" not in groups:
        return []
    whole, blank = (groups[pictures][BLANKED]["accuracy"] for pictures in ("shown", "fine tower blank"))
    return [
        f"\nSmall print is {SMALL_PRINT:.1%} of the picture's side high. {whole:.1%} of it is read correctly; with "
        f"grey input to the\nhigh-resolution tower, {blank:.1%}."
    ]


def _kind_rows(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    others = {
        pictures: {(row["group"], row["kind"]): row["accuracy"] for row in rows} for pictures, rows in scores.items()
    }
    lines = []
    for row in scores["shown"]:
        key = (row["group"], row["kind"])
        blank, swapped = (f"{others[s][key]:.0%}" if key in others[s] else "–" for s in ("blank", "swapped"))
        lines.append(
            f"| {row['group']} | {row['kind']} | {row['accuracy']:.1%} | {row['chance']:.0%} | {blank} | {swapped} "
            f"| {row['total']} |"
        )
    return lines


def _kinds_at_chance(rows: Sequence[Mapping[str, Any]]) -> str:
    """The kinds whose interval reaches down to chance."""
    kinds = [f"{row['kind']} ({row['group']})" for row in rows if row["low"] <= row["chance"]]
    return ", ".join(kinds) or "none"


TITLES = {"owl3": "mPLUG-Owl3", "ovis2": "Ovis2", "mgm": "MGM (Mini-Gemini)"}
WHAT = {
    "owl3": "A whole mPLUG-Owl3 of the 241101 architecture: fused hyper attention, two-layer projector, SigLIP tower, "
    "Qwen2\nlanguage model.",
    "ovis2": "A whole Ovis2: AIMv2 tower, a visual tokenizer that gives each patch a distribution over 507 visual "
    "words,\nthe visual embedding table, Qwen2 language model.",
    "mgm": "A whole MGM: CLIP tower at 72 × 72 pixels, ConvNeXt tower at full size, patch info mining, two-layer "
    "projector,\nLlama language model.",
}
ADDED = {
    "owl3-print": "Its tower is new, with patches half as wide, and was taught to read small print in crops; its "
    "language model\nwas trained on for longer, with what that of `demo-owl3` knows least.\n",
    "ovis2-print": "It was trained on to read small print in crops, and for longer with what the model that it begins "
    "as knows least.\n",
    "mgm-print": "Its towers are new, and its high-resolution tower was taught to read small print; its language model "
    "began as that\nof `demo-mgm`.\n",
    "owl3-many": "It was trained on with up to 400 numbered pictures at once, and with films of up to 64 frames.\n",
    "owl3-knowledge": "It was trained on to answer from numbered pieces of knowledge, and to name the one that it\n"
    "used, as `longview ask --knowledge` prompts for them.\n",
}
"""What a model learned that the one that it began as does not know, by its name."""
UNCUT, IN_CROPS = "tokens; it is never cut into crops.", "tokens; a single one is cut into crops, several are not."
_HEAD = """---
license: apache-2.0
library_name: longview
pipeline_tag: image-text-to-text
---

# The embedded demo model: a tiny {title}

{what}
{millions:.2f} million parameters, {megabytes:.1f} MB in bf16. A picture is {side} × {side} pixels and {patches} visual
{cut}

It knows one small world: eight colours, six shapes, two sizes, nine places, signs with one of 24 words or a number
from 0 to 99, up to eight such pictures at once, and clips of eight seconds in which something moves, flashes, or comes
after something else. It answers short English questions about them. It is there so that the first run of `longview`
works offline and the test suite has a model that uses its pictures. It knows nothing of photographs, and is no
substitute for the released checkpoints.
"""

_HOW = """Held-out scenes, written to JPEG, PNG and MP4 files and asked about through
`longview.load("demo-{name}")`, greedy. An answer counts when it equals the true one word for word. *Blank*: each
picture replaced by an empty one. *Swapped*: by another scene of the same sort. *Chance*: always giving the most
frequent true answer of the kind.
"""

_TAIL = """## Limits

Pictures that are not of this world get confident nonsense. Questions in other words than the training's phrasings may
fail. More than {most} were not in the training data.
"""
MOST = {"owl3-many": "400 pictures, or films of more than 64 frames,"}
"""What a model was shown at most, by its name, where that is not what its family's was."""


def main(arguments: Sequence[str]) -> None:
    if len(arguments) >= 3 and arguments[0] == "measure":
        measure(Path(arguments[1]), [Path(run) for run in arguments[2:]])
    elif len(arguments) != 2 or arguments[0] != "write":
        raise SystemExit(__doc__)
    folder = Path(arguments[1])
    (folder / "README.md").write_text(card(json.loads((folder / NUMBERS).read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
