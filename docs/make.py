"""Write the pages that are generated: python docs/make.py

command-line.md   from the program's own help
openapi.json      from the routes of the server
benchmarks.md     from the measurements in benchmarks/, after what is said about them in benchmarks/preface.md
evaluation.md     from the table of tasks in longview/eval/tasks, after evaluation/preface.md
growth.md         from the measurement of longview/bench/growth.py in growth/, after growth/preface.md; and its figure
evidence.md       from those of longview/eval/evidence.py in evidence/, after evidence/preface.md; and its figure
retrieval-results.md  from those of longview/eval/retrieval.py in retrieval-results/, after preface.md; and its figure
results.md        from those of longview/eval/curves.py in results/, after results/preface.md; and its figures
training.md       from those of longview/eval/curriculum.py in training/, after training/preface.md; and its figures

A test compares the pages with what this would write.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "command-line.md"
OPENAPI = DOCS / "openapi.json"
BENCHMARKS = DOCS / "benchmarks.md"
TRAINING = DOCS / "training.md"
EVALUATION = DOCS / "evaluation.md"
RESULTS = DOCS / "results.md"
EVIDENCE = DOCS / "evidence.md"
RETRIEVAL = DOCS / "retrieval-results.md"
GROWTH = DOCS / "growth.md"
CURRICULA = {"words": "A language model, from words alone", "ovis2": "Ovis2", "mgm": "MGM", "owl3": "mPLUG-Owl3"}
"""The curricula in the order of the page: a file in training/, and its title."""
INTRODUCTION = """\
# The command line

`longview VERB --help`, for each verb. This page is written by `python docs/make.py`.

Answers go to standard output, everything else to standard error. The exit code is 0; 2 after a mistake of the caller,
told in one line that begins with `longview: `; 3 after a batch of which some rows failed, or an index that leaves files
out; 130 after Ctrl-C. Anything else is a bug, and comes with its traceback.
"""


def command_line() -> str:
    """The page about the command line."""
    from longview.cli import VERBS

    sections = [("longview", ["--help"]), *((f"longview {verb}", [verb, "--help"]) for verb in VERBS)]
    return INTRODUCTION + "".join(f"\n## {title}\n\n```text\n{_help(arguments)}```\n" for title, arguments in sections)


def openapi() -> str:
    """The OpenAPI document of the server."""
    import tempfile

    from longview.requests import Limits
    from longview.serve.app import Server, create_app
    from longview.serve.files import FileStore
    from longview.serve.models import Models
    from longview.serve.settings import ServedModel, ServerOptions

    with tempfile.TemporaryDirectory() as folder:
        files = FileStore(Path(folder), Limits(), 1, 1, 1)
        server = Server(ServerOptions(), Limits(), Models({"demo": ServedModel({})}, {}, 1), files)
        return json.dumps(create_app(server).openapi(), indent=1, ensure_ascii=False) + "\n"


def benchmarks() -> str:
    """The page about speed."""
    from longview.bench.report import pages

    return (DOCS / "benchmarks" / "preface.md").read_text(encoding="utf-8") + "\n" + pages(DOCS / "benchmarks")


def grown() -> Any:
    """The measurement of growth."""
    from longview.bench.growth import Growth

    return Growth.read(DOCS / "growth" / "growth.json")


def growth() -> str:
    """The page about how cost grows: each `{part}` of the preface is its section."""
    from longview.bench.growth_page import page

    text = (DOCS / "growth" / "preface.md").read_text(encoding="utf-8")
    for name, section in page(grown(), "growth").items():
        text = text.replace(f"{{{name}}}\n", section)
    return text


def evaluation() -> str:
    """The page about evaluation."""
    from longview.eval.tasks.table import page

    return (DOCS / "evaluation" / "preface.md").read_text(encoding="utf-8") + "\n" + page()


def curves() -> tuple[dict[str, Any], dict[str, Any]]:
    """The measurements of the embedded models, and those of the one that was trained on with many pictures."""
    from longview.eval.curves import JOBS
    from longview.eval.curves_page import with_points_of

    files = (DOCS / "results" / f"{name}.json" for name in JOBS)
    three, many, on = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return with_points_of(with_points_of(three, many, "pictures"), on, "small print"), many


def evaluations() -> dict[str, Any]:
    """The numbers of the embedded models' cards."""
    from longview.models.sources import DEMOS, embedded

    folders = {name: embedded(name) for name in DEMOS if name != "demo"}
    return {
        name: json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) for name, folder in folders.items()
    }


def results() -> str:
    """The page about what the embedded models show of what is claimed: each `{curve}` of the preface is its section."""
    from longview.eval.curves_page import answered_films, groups_table, page

    text = (DOCS / "results" / "preface.md").read_text(encoding="utf-8")
    numbers, many = curves()
    others = {"films of many": f"{answered_films(many)}\n", "groups": f"{groups_table(evaluations())}\n"}
    for name, section in {**page(numbers, "results"), **others}.items():
        text = text.replace(f"{{{name}}}\n", section)
    return text


def shown_evidence() -> dict[str, Any]:
    """The measurements of evidence."""
    return json.loads((DOCS / "evidence" / "embedded.json").read_text(encoding="utf-8"))


def evidence() -> str:
    """The page about evidence, with what was measured of it in the place of `{measured}`."""
    from longview.eval.evidence import page

    text = (DOCS / "evidence" / "preface.md").read_text(encoding="utf-8")
    return text.replace("{measured}\n", page(shown_evidence(), "evidence"))


def retrieved() -> dict[str, Any]:
    """The measurements of retrieval."""
    return json.loads((DOCS / "retrieval-results" / "embedded.json").read_text(encoding="utf-8"))


def retrieval() -> str:
    """The page about retrieval: each `{table}` of the preface is its section."""
    from longview.eval.retrieval_points import page

    text = (DOCS / "retrieval-results" / "preface.md").read_text(encoding="utf-8")
    for name, section in page(retrieved(), "retrieval-results").items():
        text = text.replace(f"{{{name}}}\n", section)
    return text


def measured() -> dict[str, Any]:
    """The measurements of each curriculum, by its name."""
    files = {name: DOCS / "training" / f"{name}.json" for name in CURRICULA}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def training() -> str:
    """The page about what each stage of training moves."""
    from longview.eval.curriculum import page

    texts = {name: (DOCS / "training" / f"{name}.md").read_text(encoding="utf-8") for name in ["preface", *measured()]}
    sections = [
        page(numbers, CURRICULA[name], f"training/{name}.png", texts[name]) for name, numbers in measured().items()
    ]
    return "\n".join([texts["preface"], *sections])


def _help(arguments: list[str]) -> str:
    from longview.cli import main

    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return printed.getvalue()


if __name__ == "__main__":
    PAGE.write_text(command_line(), encoding="utf-8")
    OPENAPI.write_text(openapi(), encoding="utf-8")
    BENCHMARKS.write_text(benchmarks(), encoding="utf-8")
    EVALUATION.write_text(evaluation(), encoding="utf-8")
    TRAINING.write_text(training(), encoding="utf-8")
    RESULTS.write_text(results(), encoding="utf-8")
    EVIDENCE.write_text(evidence(), encoding="utf-8")
    RETRIEVAL.write_text(retrieval(), encoding="utf-8")
    GROWTH.write_text(growth(), encoding="utf-8")
    from longview.eval import curves_page, retrieval_points
    from longview.eval.curriculum import plot
    from longview.eval.evidence import plot as plot_evidence

    grown().plot(DOCS / "growth" / "growth.png")
    curves_page.plot(curves()[0], DOCS / "results")
    plot_evidence(shown_evidence(), DOCS / "evidence")
    retrieval_points.plot(retrieved(), DOCS / "retrieval-results")
    for name, numbers in measured().items():
        plot(numbers, CURRICULA[name], DOCS / "training" / f"{name}.png")
