"""One task, from its questions to its numbers: read, ask what the journal does not have, grade, count, write."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import longview
from longview.errors import LongviewError, RequestError
from longview.eval import scoring
from longview.eval.ask import Asker, GoneError
from longview.eval.circular import chance
from longview.eval.distractor import RULE
from longview.eval.items import Graded, Item, Protocol
from longview.eval.judge import Judge
from longview.eval.published import published_of
from longview.eval.report.curve import write_curve
from longview.eval.report.page import write_reports
from longview.eval.results import JOURNAL, Result, sample_of, write_draws, write_result
from longview.eval.tasks import Options, Task
from longview.journal import Journal

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, total, the score so far)."""
PAUSE = 2.0
"""Seconds between two scores on the progress bar."""
MODES = ("generate", "probability")


@dataclass(frozen=True)
class Plan:
    """What is to be asked of whom, and how."""

    task: Task
    items: Sequence[Item]
    """All of the task's questions."""
    asker: Asker
    options: Options = field(default_factory=Options)
    """What they were read and drawn by."""
    protocol: str | None = None
    """Its name; default: that of the model's family."""
    mode: str = "generate"
    """Generate an answer and parse it, or compare the probabilities of the options' letters."""
    limit: int | None = None
    """Only so many questions, the first ones."""
    max_tokens: int | None = None
    judge: Judge | None = None


def run(plan: Plan, output: Path | None = None, progress: Progress | None = None) -> Result:
    """Ask all of a task's questions and count.

    Args:
        output: Where answers are kept as they come; what is there already is not asked again.

    Raises:
        LongviewError: the task's files, the output or the model cannot be used; finished answers are kept.
    """
    began = time.monotonic()
    check_judge(plan.task, plan.judge is not None)
    name, protocol = plan.task.protocol(plan.asker.family, plan.protocol, plan.asker.name)
    protocol = replace(protocol, max_tokens=plan.max_tokens or protocol.max_tokens)
    if protocol.max_partition is not None and not plan.asker.partitions:
        protocol = replace(protocol, max_partition=None)
    every, items = plan.items, limited(plan.items, plan.limit, plan.task.curve)
    job = {
        "task": plan.task.name,
        "model": plan.asker.name,
        "where": plan.asker.where,
        "protocol": name,
        **protocol.facts(),
        "mode": plan.mode,
        **plan.options.facts(),
        "questions": digest(every, protocol),
    }
    with _journal(output, job) as journal:
        lines = {line["id"]: line for line in journal.lines if "answer" in line}
        with _telling_what_is_kept(output):
            _ask(plan, protocol, items, lines, journal, progress)
            judged = _judge(plan, protocol, items, lines, journal, progress)
    needs_judge = plan.task.judging is not None and plan.task.judging.required
    lines |= {id: lines[id] | said for id, said in judged.items() if needs_judge or "judge" in said}
    failed = {item.id for item in items if "error" in lines[item.id]}
    graded = [
        plan.task.graded(
            item,
            None if item.id in failed else lines[item.id]["answer"],
            protocol,
            judged.get(item.id, {}).get("judge"),
        )
        for item in items
    ]
    numbers = {
        "task": plan.task.name,
        "title": plan.task.title,
        "model": plan.asker.name,
        "family": plan.asker.family,
        "where": plan.asker.where,
        "protocol": {"name": name, **protocol.facts(), **({"note": protocol.note} if protocol.note else {})},
        "mode": plan.mode,
        **_options(plan.options),
        **({"judge": plan.judge.name} if plan.judge and plan.task.judging else {}),
        "of": len({item.unit for item in every}),
        "failed": len(failed),
        **_unjudged(judged),
        **scoring.numbers(plan.task.metric, graded),
        "guessing": _guessing(graded),
        **_curve(plan.task, graded),
        "published": _published(plan),
        "questions_digest": job["questions"],
        "longview": longview.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began, 1),
    }
    samples = [sample_of(each, lines[each.item.id]) for each in graded]
    result = Result(numbers, samples, graded)
    if output is not None:
        write_result(output, result)
        if plan.task.curve:
            write_draws(output, items)
            write_curve(output, numbers)
        write_reports(output, result)
    return result


def _options(options: Options) -> dict[str, Any]:
    """What the questions were read and drawn by, files by their whole paths; names on the hub as they are."""
    facts, data = options.facts(), options.data
    if options.source is not None and (path := Path(options.source).expanduser()).is_file():
        facts["source"] = str(path.resolve())
    if data is not None and data.expanduser().exists():
        data = data.expanduser().resolve()
    return {"options": facts, **({"data": str(data)} if data is not None else {})}


def limited(items: Sequence[Item], limit: int | None, label: str = "") -> list[Item]:
    """The items of the first so many questions; of each value of a label, where one is given."""
    if limit is None:
        return list(items)
    units: dict[str, dict[str, None]] = {}
    for item in items:
        some = units.setdefault(item.labels.get(label, ""), {})
        if len(some) < limit:
            some[item.unit] = None
    kept = {unit for some in units.values() for unit in some}
    return [item for item in items if item.unit in kept]


def digest(items: Sequence[Item], protocol: Protocol) -> str:
    """What tells these questions, asked so, from others; media by their names, the prompt by the first.

    What the first prompt has of a medium's inside, as subtitles, is left out: a file may be missing, and come later.
    """
    named = {name: fact for name, fact in items[0].facts.items() if not callable(fact)}
    found = hashlib.sha256(protocol.text(replace(items[0], facts=named)).encode())
    for item in items:
        facts = [item.id, item.question, item.options, item.hint, item.answer, [shown.name for shown in item.shown]]
        found.update(json.dumps(facts, default=str).encode())
    return found.hexdigest()[:16]


def _unjudged(judged: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """How many answers the judge was asked about in vain, if any."""
    count = sum("error" in said for said in judged.values())
    return {"unjudged": count} if count else {}


@contextlib.contextmanager
def _telling_what_is_kept(output: Path | None) -> Iterator[None]:
    """Where nobody answers any more, say what becomes of the answers so far."""
    kept = (
        "finished answers are not kept without --output FOLDER"
        if output is None
        else f"finished answers are kept in {output}"
    )
    try:
        yield
    except GoneError as error:
        raise GoneError(f"{error}; {kept}") from None


def check_judge(task: Task, judge: bool) -> None:
    """
    Raises:
        RequestError: a judge is missing, or there is nothing for it to do.
    """
    if task.judging is None and judge:
        raise RequestError(f"{task.name} is scored by rules; leave --judge out")
    if task.judging is not None and task.judging.required and not judge:
        raise RequestError(
            f"{task.name} is graded by a judge; name an OpenAI-compatible server with --judge, and --judge-model"
        )


def check_options(task: Task, items: Sequence[Item]) -> None:
    """
    Raises:
        RequestError: probabilities of options are asked for where there are none.
    """
    if any(len(item.options) < 2 for item in items):
        raise RequestError(f"{task.name} has questions without options; leave --by-probability out")


class _Memory:
    """A journal for those who want none."""

    lines: Sequence[Mapping[str, Any]] = ()

    def append(self, line: Mapping[str, Any]) -> None:
        """Nothing is kept."""


def _journal(output: Path | None, job: Mapping[str, Any]) -> Any:
    return contextlib.nullcontext(_Memory()) if output is None else Journal(output / JOURNAL, job)


def _ask(
    plan: Plan,
    protocol: Protocol,
    items: Sequence[Item],
    lines: dict[str, dict[str, Any]],
    journal: Any,
    progress: Progress | None,
) -> None:
    """Ask what is not answered yet; each answer is on the disk before the next is awaited."""
    todo = [item for item in items if item.id not in lines]
    ask = plan.asker.answers if plan.mode == "generate" else plan.asker.choices
    so_far = _Running(plan, protocol, [item for item in items if item.id in lines], lines)
    if progress is not None:
        progress(len(items) - len(todo), len(items), so_far.text())
    for number, (item, reply) in enumerate(zip(todo, ask(todo, protocol), strict=True), len(items) - len(todo) + 1):
        line: dict[str, Any] = {"id": item.id, **_prompt(protocol, item)}
        line |= {"error": str(reply)} if isinstance(reply, LongviewError) else reply.as_dict()
        journal.append(line)
        lines[item.id] = line
        so_far.items.append(item)
        if progress is not None:
            progress(number, len(items), so_far.text())


def _prompt(protocol: Protocol, item: Item) -> dict[str, str]:
    """The prompt as a journal keeps it; nothing where it is made of a medium that does not open."""
    try:
        return {"prompt": protocol.text(item)}
    except LongviewError:
        return {}


def _judge(
    plan: Plan,
    protocol: Protocol,
    items: Sequence[Item],
    lines: Mapping[str, Mapping[str, Any]],
    journal: Any,
    progress: Progress | None,
) -> dict[str, dict[str, str]]:
    """What the judge made of each item, by name: `judge`, its reply, also those in the journal; or `error`.

    An item whose judging fails is asked again of the judge by another run.
    """
    task, judge = plan.task, plan.judge
    if task.judging is None or judge is None:
        return {}
    kept = {
        line["id"]: {"judge": line["judge"]}
        for line in journal.lines
        if line.get("by") == judge.name and "judge" in line
    }
    todo = [
        (item, lines[item.id]["answer"])
        for item in items
        if "answer" in lines[item.id]
        and item.id not in kept
        and (task.judging.required or not task.graded(item, lines[item.id]["answer"], protocol).verdict.understood)
    ]
    for number, ((item, _), reply) in enumerate(zip(todo, judge.replies(task.judging, todo), strict=True), 1):
        said = {"error": f"the judge: {reply}"} if isinstance(reply, LongviewError) else {"judge": reply}
        journal.append({"id": item.id, **said, "by": judge.name})
        kept[item.id] = said
        if progress is not None:
            progress(number, len(todo), "judged")
    return kept


class _Running:
    """The score of what is finished, counted again every few seconds."""

    def __init__(self, plan: Plan, protocol: Protocol, items: list[Item], lines: Mapping[str, Any]) -> None:
        self._plan, self._protocol, self.items, self._lines = plan, protocol, items, lines
        self._counted, self._text = 0.0, ""

    def text(self) -> str:
        now = time.monotonic()
        if self.items and now - self._counted > PAUSE:
            task, self._counted = self._plan.task, now
            if task.judging is not None and task.judging.required:
                return ""  # no answer counts before it is judged
            graded = [task.graded(item, self._lines[item.id].get("answer"), self._protocol) for item in self.items]
            self._text = f"{task.metric.score(graded):.1f}{task.metric.scale}"
        return self._text


def _guessing(graded: Sequence[Graded]) -> float | None:
    """What guessing among options scores, in per cent; None where there are none."""
    groups = scoring.grouped(graded).values()
    if any(len(each.item.options) < 2 for each in graded):
        return None
    return round(100 * chance([[each.item for each in group] for group in groups]), 2)


def _curve(task: Task, graded: Sequence[Graded]) -> dict[str, Any]:
    """The score at each value of the task's curve, and how its items were drawn."""
    if not task.curve:
        return {}
    points = []
    for value, group in scoring.by_label(graded, task.curve).items():
        low, high = scoring.interval(task.metric, group)
        points.append(
            {
                task.curve: int(value),
                "score": round(task.metric.score(group), 2),
                "low": round(low, 2),
                "high": round(high, 2),
                "each": round(100 * scoring.mean(group), 2),
                "guessing": _guessing(group),
                "questions": len(scoring.grouped(group)),
            }
        )
    return {"curve": points, "rule": RULE}


def _published(plan: Plan) -> dict[str, Any] | None:
    found = published_of(plan.task.name, plan.asker.name)
    return None if found is None else {"model": found.model, "score": found.score, "source": found.source}
