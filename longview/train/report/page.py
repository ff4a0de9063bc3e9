"""report.html: a run on one page, at its end or at any time.

    name, what it is, where it stands
    curves of each stage      loss, what its objective notes, learning rate, throughput
    sample answers            the model before the run, and after it
    quarantine                samples that could not be opened, with reasons
    recipe, data, machines    what is needed to repeat the run

The page needs no network and no scripts. It is made from the files in the run's folder.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import longview
from longview.engine.devices import name_of
from longview.files import replace_text
from longview.pages import STYLE
from longview.train.data.quarantine import read_quarantine
from longview.train.data.settings import DataSettings
from longview.train.recipe import Recipe, Stage, objective_class, to_tree
from longview.train.report.answers import moments_of, sample_answers
from longview.train.report.curves import chart
from longview.train.report.journal import COUNTED, LOG, clock
from longview.train.saved.folder import exported, newest_checkpoint, read_recipe, read_state, reading, writing

PAGE, SESSIONS = "report.html", "sessions.jsonl"
PAUSE = 1800
"""Seconds between two lines of the log; a longer time is no training."""
LISTED = 50
"""Samples of the quarantine that are listed one by one."""
TITLES = {"norm": "gradient norm", "rate": "learning rate", "validation": "loss of samples held out for validation"}
"""Of what every stage notes; its objective has those of its own."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")


class Facts(NamedTuple):
    """The files of a run, read."""

    output: Path
    recipe: Recipe
    log: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    digests: dict[str, str]
    done: tuple[int, int]
    """The stage and step of the newest checkpoint; (0, 0) before the first."""
    answers: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        return exported(self.output) is not None


def note_session(output: Path, begin: tuple[int, int], device: str) -> None:
    """Note in sessions.jsonl that the run begins, or goes on, now on this machine."""
    versions = {name: metadata.version(name) for name in PACKAGES if _is_there(name)}
    line = {"time": round(time.time()), "stage": begin[0], "step": begin[1], "machine": name_of(device)}
    line["versions"] = {"longview": longview.__version__, **versions}
    with writing(output / SESSIONS, output), (output / SESSIONS).open("a", encoding="utf-8") as sessions:
        sessions.write(json.dumps(line) + "\n")


def _is_there(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def write_report(output: Path, answers: int = 0) -> Path:
    """Write the page of a run that is finished, still training, or interrupted.

    Args:
        answers: Questions to ask of the model as it was before the run, and as it is now.

    Raises:
        CheckpointError: the folder holds no run, or something in it is damaged; or the page cannot be written.
    """
    recipe = read_recipe(output)
    digests: dict[str, str] = {}
    if (output / "datasets.json").exists():
        with reading(output / "datasets.json"):
            digests = json.loads((output / "datasets.json").read_text(encoding="utf-8"))
    state = newest_checkpoint(output)
    facts = Facts(
        output,
        recipe,
        _lines(output / LOG),
        list(read_quarantine(output / "quarantine.jsonl")),
        _lines(output / SESSIONS),
        digests,
        (0, 0) if state is None else read_state(state, recipe),
        sample_answers(recipe, output, answers),
    )
    path = output / PAGE
    with writing(path, output):
        replace_text(path, page(facts))
    return path


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; the last one may be cut short."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def page(facts: Facts) -> str:
    """The whole page."""
    sections = [*_stages(facts), _answers(facts), _quarantine(facts), _settings(facts)]
    return _PAGE.format(
        style=STYLE,
        title=escape(facts.output.resolve().name),
        about=escape(about(facts.recipe)),
        state="".join(f'<span class="{kind}">{escape(text)}</span>' for kind, text in [_state(facts)]),
        tiles="".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in _tiles(facts).items()),
        sections="\n".join(section for section in sections if section),
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=longview.__version__,
    )


def about(recipe: Recipe) -> str:
    """A recipe in a few words."""
    what = f"from {recipe.model.start}" if recipe.model.start else f"a new {recipe.model.family}"
    how = "by adapters" if recipe.model.adapter else ""
    data = [dataset.path for stage in recipe.stages if stage.data for dataset in stage.data.datasets]
    data = data or ["the synthetic world"]
    more = f" and {len(data) - 2} more" if len(data) > 2 else ""
    return " · ".join(filter(None, [what, how, f"on {', '.join(Path(name).name for name in data[:2])}{more}"]))


def _state(facts: Facts) -> tuple[str, str]:
    if facts.finished:
        return "done", "finished"
    stage, step = facts.done
    name = facts.recipe.stages[stage].name
    return "under-way", f"not finished: saved after step {step:,} of {facts.recipe.stages[stage].steps:,} of {name}"


def _tiles(facts: Facts) -> dict[str, str]:
    """The run in a few numbers."""
    seconds = training_seconds(facts.log, facts.sessions)
    tiles = {"steps": f"{sum(_steps_done(facts, number) for number in range(len(facts.recipe.stages))):,}"}
    if facts.log:
        tiles[f"loss at last, {facts.log[-1].get('stage')}"] = f"{facts.log[-1].get('loss', float('nan')):.3f}"
    tiles["of training"] = clock(seconds)
    for what in COUNTED[1:]:
        speeds = [line[f"{what}_s"] for line in facts.log if f"{what}_s" in line]
        if speeds:
            tiles[f"{what} a second"] = f"{sum(speeds) / len(speeds):,.0f}"
    of_data = any(stage.data is not None for stage in facts.recipe.stages)
    return tiles | ({"in quarantine": f"{len(facts.quarantine):,}"} if of_data else {})


def _steps_done(facts: Facts, stage: int) -> int:
    """Steps of a stage that are in the log."""
    name = facts.recipe.stages[stage].name
    return max((line["step"] for line in facts.log if line.get("stage") == name), default=0)


def training_seconds(log: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training, by the times in the log; the time between two sessions does not count."""
    begins = {line["time"] for line in sessions}
    times = sorted([*begins, *(line["time"] for line in log if "time" in line)])
    return sum(min(after - before, PAUSE) for before, after in pairwise(times) if after not in begins)


def _stages(facts: Facts) -> Iterator[str]:
    for number, stage in enumerate(facts.recipe.stages):
        lines = [line for line in facts.log if line.get("stage") == stage.name and isinstance(line.get("step"), int)]
        charts = (
            "".join(_charts(lines, TITLES | objective_class(stage).titles))
            or '<p class="faint">nothing is in the log yet</p>'
        )
        done = f"{_steps_done(facts, number):,} of {stage.steps:,} steps"
        yield (
            f"<section><h2>{escape(stage.name)}<small>stage {number + 1} of {len(facts.recipe.stages)} · "
            f"{stage.objective} · {done} · {escape(', '.join(stage.train))} learns</small></h2>"
            f'<div class="charts">{charts}</div></section>'
        )


def _charts(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Iterator[str]:
    """Loss first, then what the objective notes, then how it was trained and how fast."""
    found = dict.fromkeys(name for line in lines for name, value in line.items() if isinstance(value, (int, float)))
    speeds = [f"{what}_s" for what in COUNTED]
    noted = [name for name in found if name not in ("loss", "rate", "norm", "stage", "step", "time", *COUNTED, *speeds)]
    for name in ("loss", *noted, "rate", "norm", *speeds[1:]):
        some = [line for line in lines if isinstance(line.get(name), (int, float))]
        title = titles.get(name, name.replace("_s", " a second"))
        yield chart(
            title, [line["step"] for line in some], [line[name] for line in some], name not in ("rate", *speeds)
        )


def _answers(facts: Facts) -> str:
    if not facts.answers or not facts.answers["samples"]:
        return ""
    samples = facts.answers["samples"]
    moments = moments_of(samples)
    cards = []
    for sample in samples:
        pictures = "".join(f'<img src="{picture}" alt="">' for picture in sample["pictures"])
        more = f'<span class="faint">and {sample["more"]} more</span>' if sample["more"] else ""
        answers = [("right answer" if "before" not in moments else "in the data", sample["expected"], "right")]
        answers += [(f"{moment} the run", sample["answers"][moment], moment) for moment in moments]
        rows = "".join(
            f'<dt>{name}</dt><dd class="{kind}">{escape(text) or "<i>nothing</i>"}</dd>' for name, text, kind in answers
        )
        cards.append(
            f'<article><div class="pictures">{pictures}{more}</div><p class="question">{escape(sample["question"])}</p>'
            f"<dl>{rows}</dl></article>"
        )
    no_before = "" if "before" in moments else "; it was made from nothing, so there is no answer from before"
    return (
        f"<section><h2>Sample answers<small>{escape(facts.answers['about'])}, asked greedily after "
        f'{facts.answers["steps"]:,} steps{no_before}</small></h2><div class="cards">{"".join(cards)}</div></section>'
    )


def _quarantine(facts: Facts) -> str:
    if not facts.quarantine:
        return ""
    met: dict[tuple[str, str], list[int]] = {}
    for line in facts.quarantine:
        place = next((f", {unit} {line[unit]}" for unit in ("line", "row") if unit in line), "")
        sample = f"{Path(str(line.get('file'))).name}{place}"
        met.setdefault((sample, str(line.get("reason"))), []).append(line["step"] + 1)
    rows = [(*key, f"{len(steps):,}×, first in step {steps[0]:,}") for key, steps in list(met.items())[:LISTED]]
    more = len(met) - LISTED
    rest = f'<p class="faint">and {more:,} more, in quarantine.jsonl</p>' if more > 0 else ""
    about = f"{len(met):,} samples could not be opened and were left out, {len(facts.quarantine):,} times"
    return _table("Quarantine", about, ("sample", "reason", "met"), rows, rest)


def _table(title: str, about: str, head: Sequence[str], rows: Sequence[Sequence[str]], rest: str = "") -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<section><h2>{title}<small>{about}</small></h2>"
        f'<div class="wide"><table><tr>{cells}</tr>{lines}</table></div>{rest}</section>'
    )


def _settings(facts: Facts) -> str:
    """The resolved recipe, the data, and where it ran."""
    recipe = yaml.safe_dump(shortened(facts.recipe), sort_keys=False, allow_unicode=True, width=100)
    parts = [f"<section><h2>Recipe<small>as it was followed</small></h2><pre>{escape(recipe)}</pre></section>"]
    if facts.digests:
        about = "the files must not change before the run has ended"
        parts.append(_table("Data", about, ("file", "SHA-256"), list(facts.digests.items())))
    rows = []
    for line in facts.sessions:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line["time"]))
        stage = facts.recipe.stages[min(line["stage"], len(facts.recipe.stages) - 1)].name
        begun = (line["stage"], line["step"]) == (0, 0)
        versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
        what = "began" if begun else f"went on in {stage} after step {line['step']:,}"
        rows.append((when, what, line["machine"], versions))
    if rows:
        parts.append(_table("Machine", "where and when it ran", ("when", "", "machine", "versions"), rows))
    return "\n".join(parts)


def shortened(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what is as it would be anyway."""
    tree, stages = to_tree(recipe), []
    for stage, given in zip(recipe.stages, tree["stages"], strict=True):
        blank = Stage(stage.name, stage.objective, stage.train)
        short = _changed(given, blank, ("name", "objective", "train", "steps", "learning_rate"))
        if stage.data is not None:
            short["data"] = _changed(given["data"], DataSettings(stage.data.datasets), ("datasets", "batch"))
        else:
            short["world"] = _changed(given["world"], type(stage.world)())
        stages.append(short)
    model = {key: value for key, value in tree["model"].items() if value not in (None, {})}
    pool = {"pool": tree["pool"]} if "pool" in tree else {}
    return {"seed": recipe.seed, "model": model, **pool, "stages": stages}


def _changed(given: Mapping[str, Any], blank: Any, kept: Sequence[str] = ()) -> dict[str, Any]:
    """What of some settings differs from blank ones, or is always shown."""
    defaults = dataclasses.asdict(blank)
    return {key: value for key, value in given.items() if key in kept or value != defaults[key]}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>
{style}
</style></head><body>
<h1>{title}</h1>
<p class="about">{about}</p>
<div class="state">{state}</div>
<div class="tiles">{tiles}</div>
{sections}
<footer>written {made} by longview {version}</footer>
</body></html>
"""
