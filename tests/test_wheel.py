"""The wheel holds all that README shows: built, unpacked, and used from a folder that is empty."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_readme import ROOT, assert_as_shown, blocks

from longview import shipped
from longview.errors import RequestError

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "longview", "recipes", "examples")
PROGRAM = """
import contextlib, io, json, shlex, sys
from longview.cli import main
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(shlex.split(command)[1:])
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that its files are unpacked to."""
    source, built, site = (tmp_path_factory.mktemp(name) for name in ("source", "built", "site"))
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(built), str(source)], check=True)
    (wheel,) = built.glob("longview_vlm-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run_all(commands: list[str], site: Path, folder: Path) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each command, by what is installed alone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    ran = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [tuple(json.loads(line)) for line in ran.stdout.splitlines()]


def test_what_readme_shows_works_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    shown = [
        text.partition("\n")
        for language, block in blocks(ROOT / "README.md")
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        if language == "console"
    ]
    commands = [command.removesuffix(" 2>&1") for command, _, _ in shown]
    assert any("examples/" in command for command in commands)
    dry = "longview train recipes/demo/owl3-tower.yaml --dry-run"
    (wrote, *ran, told) = run_all(["longview examples examples", *commands, dry], installed, tmp_path)
    assert (wrote[0], "examples/shapes.jpg" in wrote[1].splitlines()) == (0, True)
    for (command, _, output), (code, out, err) in zip(shown, ran, strict=True):
        assert code == 0, (command, err)
        assert_as_shown(out + err if command.endswith("2>&1") else out, output)
    assert (told[0], "stages:" in told[1]) == (0, True)


def test_the_wheel_holds_every_recipe_and_example_and_nothing_of_the_tests(installed):
    for name in ("recipes", "examples"):
        here = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()}
        here = {path for path in here if "__pycache__" not in path.parts and path.suffix != ".sh"}
        there = {path.relative_to(installed / "longview" / name) for path in (installed / "longview" / name).rglob("*")}
        assert here <= there
    assert {path.name for path in installed.iterdir() if "dist-info" not in path.name} == {"longview"}


# ── names of recipes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_packaged_recipe_is_found_by_its_name_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = shipped.folder("recipes") / "lora.yaml"  # in the clone, or in the installed package
    for name in ("lora", "lora.yaml", "recipes/lora.yaml"):
        assert shipped.find_recipe(name) == lora
    assert shipped.find_recipe("demo/curricula/owl3").name == "owl3.yaml"
    assert shipped.find_recipe("nonsense") == Path("nonsense")
    Path("lora").write_text("")
    assert shipped.find_recipe("lora") == Path("lora")


def test_every_recipe_says_in_a_line_what_it_is_for():
    for name, path in shipped.recipes().items():
        assert 15 < len(shipped.about(path)) < 120, name


def test_what_is_copied_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.copy_recipe("owl3/1-align") == Path("1-align.yaml")
    assert (
        shipped.copy_recipe("lora", tmp_path / "new" / "mine.yaml").read_text()
        == (ROOT / "recipes/lora.yaml").read_text()
    )
    with pytest.raises(RequestError, match=r"1-align\.yaml exists, and is kept"):
        shipped.copy_recipe("owl3/1-align")
    with pytest.raises(RequestError, match="no packaged recipe is called 'nonsense'"):
        shipped.copy_recipe("nonsense")
    written = shipped.copy_examples(tmp_path / "examples")
    assert tmp_path / "examples" / "fourth_family" / "halves" / "model.py" in written
    with pytest.raises(RequestError, match="exists, and is kept"):
        shipped.copy_examples(tmp_path / "examples")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="could not be written"):
        shipped.copy_examples(tmp_path / "file" / "examples")


def test_recipes_are_listed_and_copied_by_the_program(tmp_path):
    commands = ["longview recipes", "longview recipes --copy lora", "longview recipes --output x.yaml"]
    listed, copied, refused = run_all([*commands, "longview train nonsense"], ROOT, tmp_path)[:3]
    assert {line.split()[0] for line in listed[1].splitlines()} == set(shipped.recipes())
    assert copied[:2] == (0, "lora.yaml\n")
    assert refused[0] == 2
