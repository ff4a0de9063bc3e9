"""What README and the documents show is what happens.

Conventions: in a ```console block, lines after `$ ` are run from the root of the repository and print the lines below
them; a ```python block prints the ```text block that follows it. `…` stands for any text within a line. ```sh blocks
need a network, a large model or a long time, and are not run here; `.ci/run` runs the two that set everything up.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

from longview.cli import VERBS, main
from longview.media import open_medium
from longview.messages import Part

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path) -> list[tuple[str, str]]:
    """The language and the text of every block of code."""
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def commands() -> list[tuple[str, str, str]]:
    """Each command shown, what it is shown to print, and where."""
    found = []
    for document in DOCUMENTS:
        for language, text in blocks(document):
            for shown in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if language == "console" else ():
                command, _, output = shown.partition("\n")
                found.append((document.name, command, output))
    return found


def programs() -> list[tuple[str, str, str]]:
    """Each Python program shown, with the block after it."""
    found = []
    for document in DOCUMENTS:
        shown = blocks(document)
        for at, (language, text) in enumerate(shown):
            if language == "python":
                found.append((document.name, text, shown[at + 1][1] if shown[at + 1][0] == "text" else ""))
    return found


def assert_as_shown(printed: str, shown: str) -> None:
    pattern = ".*".join(re.escape(piece) for piece in shown.rstrip("\n").split("…"))
    assert re.fullmatch(pattern, printed.rstrip("\n")), f"shown:\n{shown}\nprinted:\n{printed}"


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize(("document", "command", "shown"), commands())
def test_a_command_prints_what_its_document_shows(at_root, capsys, monkeypatch, document, command, shown):
    words = shlex.split(command)
    assert words[0] == "longview", f"{document}: only longview's own commands are run: {command}"
    both = "2>&1" in words
    with pytest.raises(SystemExit):
        main([word for word in words[1:] if word != "2>&1"])
    printed = capsys.readouterr()
    assert_as_shown(printed.out + printed.err if both else printed.out, shown)


@pytest.mark.parametrize(("document", "program", "shown"), programs())
def test_a_program_prints_what_its_document_shows(at_root, document, program, shown):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, document, "exec"), {})
    assert_as_shown(printed.getvalue(), shown)


def test_the_page_of_the_command_line_is_the_programs_help():
    made = runpy.run_path(str(ROOT / "docs" / "make.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["command_line"](), "run python docs/make.py"
    assert made["EVALUATION"].read_text(encoding="utf-8") == made["evaluation"](), "run python docs/make.py"
    assert made["TRAINING"].read_text(encoding="utf-8") == made["training"](), "run python docs/make.py"
    assert made["EVIDENCE"].read_text(encoding="utf-8") == made["evidence"](), "run python docs/make.py"
    assert made["GROWTH"].read_text(encoding="utf-8") == made["growth"](), "run python docs/make.py"
    assert made["RETRIEVAL"].read_text(encoding="utf-8") == made["retrieval"](), "run python docs/make.py"
    assert made["RESULTS"].read_text(encoding="utf-8") == made["results"](), "run python docs/make.py"
    assert made["BENCHMARKS"].read_text(encoding="utf-8") == made["benchmarks"](), "run python docs/make.py"


def test_every_option_in_a_document_exists():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    foreign = {"--check", "--no-deps", "--group", "--no-cache-dir", "--create-home"}  # of ruff, pip, useradd
    foreign |= {"--api-url", "--eval-type", "--datasets", "--dataset-args", "--generation-config"}  # of evalscope
    foreign |= {"--include", "--batch", "--tasks"}  # of lmms-eval, up to their underscores
    foreign |= {"--base-url", "--key"}  # of VLMEvalKit
    foreign |= {"--films", "--places"}  # of python -m longview.eval.evidence
    foreign |= {"--models", "--searches"}  # of python -m longview.eval.retrieval
    for document in DOCUMENTS:
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text(encoding="utf-8"))) - foreign
        assert {option for option in options if option not in page} == set(), document.name


def test_every_link_within_the_repository_leads_somewhere():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
            path = "".join(target)
            assert path.startswith("https://") or (document.parent / path).exists(), f"{document.name}: {path}"


def test_readme_gives_the_model_cards_accuracy():
    measured = json.loads((ROOT / "longview" / "demo" / "owl3" / "evaluation.json").read_text(encoding="utf-8"))
    accuracy = {group: score["accuracy"] for group, score in measured["groups"]["shown"].items()}
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{accuracy['one picture']:.0%} of the questions about one picture right" in words
    assert f"{accuracy['clip']:.0%} about a clip" in words
    assert f"{accuracy['eight pictures']:.0%} about eight pictures" in words


@pytest.mark.parametrize("verb", VERBS)
def test_readme_mentions_every_verb(verb):
    assert f"longview {verb}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_files_are_what_their_script_paints(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "make.py"), run_name="__main__")
    made = sorted(path.name for path in tmp_path.iterdir())
    kept = [path for path in sorted((ROOT / "examples").iterdir()) if path.is_file() and path.suffix != ".py"]
    assert [path.name for path in kept] == made
    assert sum(path.stat().st_size for path in kept) < 300_000
    for path in kept:
        kind = "video" if path.suffix == ".mp4" else "image"
        before, after = (open_medium(Part(kind, source=folder / path.name)) for folder in (path.parent, tmp_path))
        assert len(before.frames) == len(after.frames)
        for one, other in zip(before.frames, after.frames, strict=True):
            difference = np.abs(pixels(one.image) - pixels(other.image))
            assert difference.mean() < 1, path.name  # another version of a codec may round differently


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


@pytest.mark.parametrize(
    ("script", "answers"),
    [("ask.py", ["a large blue star\n", "right, seen at 0, 1, 2, 3, 4, 5, 6, 7 s"]), ("official_owl3.py", ["red"])],
)
@pytest.mark.filterwarnings("ignore:trust_remote_code")
def test_an_example_program_gives_the_right_answers(at_root, capsys, monkeypatch, script, answers):
    monkeypatch.setattr(sys, "argv", [script])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(answer in printed for answer in answers), printed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_column_of_a_table_has_a_heading(document):
    lines = document.read_text(encoding="utf-8").splitlines()
    heads = [head for head, rule in pairwise(lines) if re.fullmatch(r"\|([-: ]+\|)+", rule)]
    assert not [head for head in heads if re.search(r"\| *\|", head)]
