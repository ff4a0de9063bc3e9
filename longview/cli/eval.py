"""`longview eval`: measure a model by a task; list and describe tasks; compare two results."""

from __future__ import annotations

import json as jsonlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli import eval_output
from longview.cli.options import ModelOptions, import_libraries, whole_numbers
from longview.cli.terminal import bars, is_terminal
from longview.errors import RequestError

if TYPE_CHECKING:
    from longview.eval.ask import Asker
    from longview.eval.judge import Judge
    from longview.eval.results import Result
    from longview.eval.run import Plan
    from longview.eval.tasks import Options, Task

OUTPUT = Path("runs/eval")


def evaluate(
    model: ModelOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[compare A B | export]",
            help="Compare the results in two folders; or write a task's questions for another evaluator (--to).",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="What is measured; may be repeated. --list names all; default: world.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Folder of the task's files, or its file; default: LMUData, as VLMEvalKit."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N questions.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep answers and results here, in a folder a task, and go on with what is there; default: runs/eval "
            "for tasks that read files, nowhere for others.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask an OpenAI-compatible server; --model is a name of its models."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="OPENAI_API_KEY", help="The server's key.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Whose prompts and settings: owl3, ovis2 or mgm; default: those of the model's family."),
    ] = None,
    by_probability: Annotated[
        bool, typer.Option("--by-probability", help="Choose the option with the likeliest letter; generate nothing.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible server of the model that judges answers.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The judge; default: its server's only one.")
    ] = None,
    judge_key: Annotated[str | None, typer.Option(metavar="KEY", help="The judge's key; default: --api-key.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens of an answer, at most; default: the protocol's.")
    ] = None,
    shown: Annotated[
        str, typer.Option(help="World: pictures that the model is given: shown (the true ones), blank or swapped.")
    ] = "shown",
    group: Annotated[
        list[str] | None,
        typer.Option(help="World: only these media: one picture, two pictures, …, clip; may be repeated."),
    ] = None,
    per_kind: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="World: questions of each kind (50), four times as many of each event of clips; distractor: "
            "questions of each kind from world (4).",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="Distractor: a TSV of multiple choices, or world (no files)."),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Distractor: numbers of pictures; default: 1,5,10,20,50,100,200,400."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORM", help="export: evalscope or vlmevalkit, into the folder --output.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of questions that are drawn.")] = 0,
    list_tasks: Annotated[bool, typer.Option("--list", help="List the tasks, and end.")] = False,
    describe: Annotated[
        str | None, typer.Option(metavar="TASK", help="Say how a task asks and counts, and which files it reads; end.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model by published benchmarks or the synthetic world.

    Examples:
      longview eval --task world --model demo
      longview eval --shown blank --per-kind 20
      longview eval --list
      longview eval --describe mmbench_en
      longview eval --task mmbench_en --data LMUData --model AIDC-AI/Ovis2-2B --limit 100
      longview eval --task mmbench_en --data LMUData --server http://127.0.0.1:8000/v1
      longview eval --task distractor --from world --pictures 1,5,10,20
      longview eval --task distractor --from MMBench_DEV_EN.tsv --limit 50 --model mPLUG/mPLUG-Owl3-7B-241101
      longview eval compare runs/eval/Ovis2-2B/mmbench_en runs/eval/Ovis2-4B/mmbench_en
      longview eval export --to evalscope --task mmbench_en --data LMUData --output exported
    """
    exporting = words == ["export"]
    if words and not exporting:
        _compare(words, json)
        return
    if list_tasks or describe is not None:
        eval_output.print_tasks(describe, json)
        return
    from longview.eval.run import Plan, check_judge, check_options
    from longview.eval.tasks import Options, find_task

    tasks = [find_task(name) for name in dict.fromkeys(task or ["world"])]
    if per_kind is not None and per_kind < 1:
        raise RequestError(f"per_kind is {per_kind}; give a whole number from 1 up")
    numbers = () if pictures is None else whole_numbers(pictures, "pictures")
    options = Options(data, seed, per_kind, tuple(dict.fromkeys(group or ())), shown, source, numbers)
    for each in tasks:
        each.protocol(None, protocol)
    if exporting or to is not None:
        unused = {"--server": server, "--judge": judge, "--by-probability": by_probability}
        _export(tasks, options, (protocol, limit, max_tokens), to if exporting else None, output, unused, json)
        return
    items = [each.items(options) for each in tasks]  # what is wrong with files is told before the model is opened
    for each in tasks:
        check_judge(each, judge is not None)
    if by_probability:
        for each, questions in zip(tasks, items, strict=True):
            check_options(each, questions)
    show = is_terminal() and not json
    asker = _asker(model, server, api_key, show)
    mode = "probability" if by_probability else "generate"
    grader = None if judge is None else _judge(judge, judge_model, judge_key or api_key)
    more: dict[str, Any] = {
        "judge": grader,
        "protocol": protocol,
        "mode": mode,
        "limit": limit,
        "max_tokens": max_tokens,
    }
    results = []
    for each, questions in zip(tasks, items, strict=True):
        folder = _folder(output, each, asker.name)
        results.append(_run(Plan(each, questions, asker, options, **more), folder, show))
        if not json:
            eval_output.print_result(results[-1], folder)
    if json:
        found = [eval_output.as_json(result) for result in results]
        typer.echo(jsonlib.dumps(found[0] if len(found) == 1 else {"tasks": found}, ensure_ascii=False))


def _export(
    tasks: list[Task],
    options: Options,
    asked: tuple[str | None, int | None, int | None],
    to: str | None,
    output: Path | None,
    unused: dict[str, Any],
    json: bool,
) -> None:
    """
    Raises:
        RequestError: it is not said to what or where, or something else is asked for.
    """
    from dataclasses import replace

    from longview.eval.export import FORMS, export
    from longview.eval.run import limited

    if to is None or to not in FORMS or output is None:
        raise RequestError(
            f"to export is longview eval export --to {' or '.join(FORMS)} --task TASK --output FOLDER, and --data"
        )
    for option, given in unused.items():
        if given:
            raise RequestError(f"{option} asks a model, and export writes questions; leave it out")
    name, limit, max_tokens = asked
    written = []
    for task in tasks:
        protocol = task.protocol(None, name)[1]
        protocol = replace(protocol, max_tokens=max_tokens or protocol.max_tokens)
        items = limited(task.unexpanded(options), limit)
        files = [str(path) for path in export(task.name, items, protocol, to, output)]
        written.append({"task": task.name, "questions": len(items), "files": files, "max_tokens": protocol.max_tokens})
    eval_output.print_exported(written, to, output, json)


def _run(plan: Plan, folder: Path | None, show: bool) -> Result:
    from longview.eval.run import run

    with bars(show) as progress:

        def report(done: int, total: int, score: str) -> None:
            if progress is not None:
                progress(done, total, plan.task.name, score)

        return run(plan, folder, report if show else None)


def _asker(model: ModelOptions, server: str | None, key: str | None, show: bool) -> Asker:
    """Whom the questions go to."""
    if server is not None:
        from longview.eval.server import Client, ServerAsker

        return ServerAsker(Client(server, model.model, key))
    model.locate(show)
    import_libraries(show, downloads=show)
    from longview.eval.ask import EngineAsker

    return EngineAsker(model.load(show))


def _judge(address: str, model: str | None, key: str | None) -> Judge:
    from longview.eval.judge import Judge
    from longview.eval.server import Client

    return Judge(Client(address, model, key, what="--judge"))


def _folder(output: Path | None, task: Task, model: str) -> Path | None:
    """Where a task's answers are kept."""
    if output is not None:
        return output / task.name
    if task.make is not None and not task.curve:
        return None
    name = re.sub(r"[^\w.-]+", "-", Path(model).name or model).strip("-.") or "model"
    return OUTPUT / name / task.name


def _compare(words: list[str], json: bool) -> None:
    """
    Raises:
        RequestError: no two folders.
    """
    if words[0] != "compare" or len(words) != 3:
        raise RequestError(
            f"longview eval {' '.join(words)[:60]!r} is not understood; give compare and two folders, or options alone"
        )
    from longview.eval.compare import changed, compare
    from longview.eval.results import read_result

    first, second = (read_result(Path(word).expanduser()) for word in words[1:])
    found = compare(first, second)
    rows = changed(first, second, [*found.only_first, *found.only_second])
    eval_output.print_comparison(found, rows, json)
