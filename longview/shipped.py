"""What travels with the package beside its code: recipes and examples.

In a clone they lie in its root, in an installed package within it (setup.py), so that there is one copy of each.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from longview.errors import RequestError

PACKAGE = Path(__file__).parent
_RECIPE = ".yaml"


def folder(name: str) -> Path:
    """The folder of the recipes or of the examples."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def recipes() -> dict[str, Path]:
    """The packaged recipes by name: lora, owl3/1-align."""
    found = folder("recipes")
    return {path.relative_to(found).with_suffix("").as_posix(): path for path in sorted(found.rglob(f"*{_RECIPE}"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of a packaged one, with or without recipes/ before it.

    What is neither is returned as it is.
    """
    path = Path(name)
    known = name.removeprefix("recipes/").removesuffix(_RECIPE)
    return path if path.is_file() else recipes().get(known, path)


def about(recipe: Path) -> str:
    """What a recipe is for: the first sentence of the comment that it begins with."""
    comment = re.match(r"(#.*\n)*", recipe.read_text(encoding="utf-8"))
    text = " ".join(line.lstrip("# ") for line in (comment[0] if comment else "").splitlines())
    return re.split(r"\. | \(|\.$", text, maxsplit=1)[0].strip()


def copy_recipe(name: str, target: Path | None = None) -> Path:
    """Write a packaged recipe to a file of one's own; in this folder, under its own name, where none is given.

    Raises:
        RequestError: there is none of that name, or the file exists or cannot be written.
    """
    known = recipes()
    path = find_recipe(name)
    if path not in known.values():
        raise RequestError(f"no packaged recipe is called {name!r:.80}; `longview recipes` lists {len(known)}")
    target = target or Path(path.name)
    _refuse(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    except OSError as error:
        raise RequestError(f"{target} could not be written ({error.strerror}); give another --output") from error
    return target


def copy_examples(target: Path) -> list[Path]:
    """Write the examples into a folder; returns its files.

    Raises:
        RequestError: one of them is there already, or cannot be written.
    """
    source = folder("examples")
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if _is_example(path)]
    for file in files:
        _refuse(target / file)
    try:
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)
    except OSError as error:
        raise RequestError(f"{target} could not be written ({error.strerror}); give another folder") from error
    return [target / file for file in files]


def _is_example(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _refuse(target: Path) -> None:
    if target.exists():
        raise RequestError(f"{target} exists, and is kept; name another place, or remove it")
