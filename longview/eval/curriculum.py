"""Loss curves of a curriculum's stages, and held-out accuracies after each of them.

python -m longview.eval.curriculum FAMILY.json PER_KIND RUN … [: PIECE …]    evaluate what runs kept after their stages

PER_KIND is how many questions of each kind are asked; 0: the curves alone.
Each run starts from the model of the one before, the first from the parts that the runs PIECE … made. The numbers go to
FAMILY.json, and beside the last model's weights, for its card; `python docs/make.py` makes the page and the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from longview.eval import card
from longview.eval.card import training_facts
from longview.eval.teacher_forcing import score_by_teacher_forcing
from longview.eval.world import GROUPS, PictureInput, Score, draw_cases, summarise

POINTS = 60
"""Of a curve: more cannot be distinguished in the figure."""
SEED = 0
"""Of the scenes: those of the model cards, not those that the recipes were chosen by."""
EVERY = 2
"""Models before the last one are asked one of so many questions."""
AS_TEXT = "told"
"""In the numbers: scenes given as text, to a model without pictures."""


def measure(
    runs: Sequence[Path], per_kind: int, before: Sequence[Path] = (), files: Path | None = None
) -> dict[str, Any]:
    """The stages of some runs, in order, each with its curve and the accuracies after it.

    The last model's folder gets what its card is made from.

    Args:
        before: Runs that made the parts which the first one starts from.
        files: A folder to keep the rendered scenes in, for the next family; None: nothing is kept.
    """
    from longview.engine import load

    stages: list[dict[str, Any]] = []
    folders: list[Path] = []
    for run in runs:
        facts = training_facts([run])["stages"]
        recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["stages"]
        for stage in recipe:
            folder = run / "after" / stage["name"]
            if stage is recipe[-1] and not folder.exists():
                folder = run / "model"
            facts_of_stage = {name: stage[name] for name in ("name", "objective", "train", "learning_rate")}
            facts_of_stage |= {
                "run": run.name,
                **facts[stage["name"]],
                "curve": curve(run / "log.jsonl", stage["name"]),
            }
            stages.append(facts_of_stage)
            if per_kind and (folder / "model.safetensors").exists():
                folders.append(folder)
                facts_of_stage["after"] = {}
    if not folders:
        return {"seed": SEED, "per_kind": 0, "runs": [_run(run) for run in runs], "stages": stages}
    as_text = all(stage["objective"] == "words" for stage in stages)
    engines = [load(folder) for folder in folders]
    after, last = accuracies(engines, per_kind, as_text, files)
    for stage, found in zip((stage for stage in stages if "after" in stage), after, strict=True):
        stage["after"] = found
    if not as_text:
        card.finish(engines[-1], folders[-1], [*before, *runs], SEED, per_kind, last)
    return {"seed": SEED, "per_kind": per_kind, "runs": [_run(run) for run in runs], "stages": stages}


def _run(run: Path) -> dict[str, Any]:
    facts = training_facts([run])
    kept = {name: facts[name] for name in ("notes", "pictures", "clips")}
    return {
        "recipe": facts["recipes"][0],
        "minutes": round(sum(s["minutes"] for s in facts["stages"].values()), 1),
        **kept,
    }


def curve(log: Path, stage: str) -> list[list[float]]:
    """Steps and mean losses of a stage, at most `POINTS`; the loss of answers alone, where the log has it."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    values = [(line["step"], line.get("answers", line["loss"])) for line in lines if line["stage"] == stage]
    size = -(-len(values) // POINTS)
    parts = [values[at : at + size] for at in range(0, len(values), size)]
    return [[part[-1][0], round(sum(value for _, value in part) / len(part), 4)] for part in parts]


def accuracies(
    engines: Sequence[Any], per_kind: int, as_text: bool, files: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, list[Score]]]:
    """Right answers and questions of each model, by group for each `PictureInput`, and by kind with true pictures.

    Also the scores of the last one.
    """
    after: list[dict[str, Any]] = [{} for _ in engines]
    last: dict[str, list[Score]] = {}
    for pictures in (AS_TEXT,) if as_text else get_args(PictureInput):
        count = per_kind if pictures in (AS_TEXT, "shown") else max(1, per_kind // 3)
        given = None if as_text else pictures
        scores = score_by_teacher_forcing(engines, draw_cases(SEED, count), given, EVERY, files)
        for found, each in zip(after, scores, strict=True):
            found[pictures] = _groups(each)
            found.setdefault("kinds", _kinds(each))
        last[pictures] = scores[-1]
    return after, last


def _groups(scores: Sequence[Score]) -> dict[str, list[int]]:
    return {group: [score.right, score.total] for group, score in summarise(scores).items()}


def _kinds(scores: Sequence[Score]) -> dict[str, list[int]]:
    """By kind, over all groups; a question about one of several pictures counts as its kind."""
    kinds: dict[str, list[int]] = {}
    for score in scores:
        found = kinds.setdefault(score.kind.removesuffix(" of one"), [0, 0])
        found[0] += score.right
        found[1] += score.total
    return kinds


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def page(numbers: Mapping[str, Any], title: str, figure: str, about: str = "") -> str:
    """A section of a Markdown page: the runs, their stages, the curves, and the accuracies after each.

    Args:
        about: Text to begin it with.
    """
    measured = [stage for stage in numbers["stages"] if "after" in stage]
    lines = [f"## {title}", "", *([about.strip(), ""] if about else [])]
    lines += [f"* `longview train {run['recipe']}`: {run['minutes']:.0f} minutes" for run in numbers["runs"]]
    lines += ["", stages_table(numbers), "", f"![The loss of each stage of {title}]({figure})", ""]
    if measured:
        how = "given as text" if AS_TEXT in measured[-1]["after"] else "shown, blank, or another picture in its place"
        lines += [f"Held-out questions answered right, {how}:", "", table(numbers), ""]
        lines += ["By kind of question, over all numbers of pictures, shown:", "", kinds_table(numbers), ""]
    lines += [run["notes"] + "\n" for run in numbers["runs"] if run["notes"]]
    return "\n".join(lines)


def table(numbers: Mapping[str, Any]) -> str:
    """Markdown: a line for each kept model and each kind of input."""
    measured = [stage for stage in numbers["stages"] if "after" in stage]
    groups = [group for group in GROUPS if any(group in found for s in measured for found in s["after"].values())]
    lines = [f"| after | {' | '.join(groups)} | questions |", f"|---|{'---:|' * len(groups)}---:|"]
    for stage in measured:
        inputs = [each for each in (AS_TEXT, *get_args(PictureInput)) if each in stage["after"]]
        for each in inputs:
            cells = [_share(stage["after"][each].get(group)) for group in groups]
            asked = sum(total for _, total in stage["after"][each].values())
            lines.append(
                f"| {stage['name']}, {'as text' if each == AS_TEXT else each} | {' | '.join(cells)} | {asked:,} |"
            )
    return "\n".join(lines)


def kinds_table(numbers: Mapping[str, Any]) -> str:
    """Markdown: accuracy by kind of question after each stage, with true pictures."""
    measured = [stage for stage in numbers["stages"] if "after" in stage]
    kinds = list(measured[-1]["after"]["kinds"])
    lines = [f"| kind | {' | '.join(stage['name'] for stage in measured)} |", f"|---|{'---:|' * len(measured)}"]
    for kind in kinds:
        cells = [_share(stage["after"]["kinds"].get(kind)) for stage in measured]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def stages_table(numbers: Mapping[str, Any]) -> str:
    """Markdown: trained parts, objective and length of each stage, and the mean loss of its first and last fifth."""
    lines = [
        "| stage | learns | objective | steps | minutes | loss, first fifth → last |",
        "|---|---|---|---:|---:|---:|",
    ]
    for stage in numbers["stages"]:
        losses = [loss for _, loss in stage["curve"]]
        size = max(1, len(losses) // 5)
        first, last = (sum(some) / size for some in (losses[:size], losses[-size:]))
        lines.append(
            f"| {stage['name']} | {', '.join(stage['train'])} | {stage['objective']} | {stage['steps']:,} "
            f"| {stage['minutes']:.0f} | {first:.2f} → {last:.2f} |"
        )
    return "\n".join(lines)


def _share(found: Sequence[int] | None) -> str:
    return f"{found[0] / found[1]:.1%}" if found else "–"


def plot(numbers: Mapping[str, Any], title: str, path: Path) -> None:
    """Plot the curves of all stages side by side, as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from longview.figures import new_figure

    stages = numbers["stages"]
    figure = new_figure("the curves of training", 2.2 * len(stages) + 0.8, 2.6, layout="constrained")
    for number, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), number + 1)
        axes.plot(*zip(*stage["curve"], strict=True), color="#3c6e91")
        axes.set_title(f"{stage['name']}\n{', '.join(stage['train'])}", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step", fontsize=7)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 3 or not arguments[1].isdigit():
        raise SystemExit(__doc__)
    runs = [Path(run) for run in arguments[2:]]
    cut = runs.index(Path(":")) if Path(":") in runs else len(runs)
    numbers = measure(runs[:cut], int(arguments[1]), runs[cut + 1 :])
    Path(arguments[0]).write_text(json.dumps(numbers, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
