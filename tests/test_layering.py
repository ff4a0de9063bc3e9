"""A room imports only rooms below it, a family no other family, and a heavy library has one address."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "longview"
ROOMS = (
    (
        "answer_evidence",
        "chat",
        "curves",
        "deadlines",
        "errors",
        "figures",
        "files",
        "http_client",
        "hubs",
        "interrupts",
        "journal",
        "messages",
        "names",
        "notebook",
        "pages",
        "part_sources",
        "requests",
        "settings",
        "shipped",
        "status",
        "versions",
        "wording",
    ),
    ("media", "plugins", "world"),
    ("models",),
    ("engine",),
    ("evidence",),
    ("train", "index"),
    ("serve", "eval", "bench", "curriculum"),
    ("cli",),
)
"""From the lowest rank to the highest. Rooms of one rank do not know each other; the modules of the lowest do."""
RANKS = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
EVERYWHERE = {
    "PIL",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "packaging",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
}
ADDRESSES = {
    "av": {"media/decoders/track.py", "world/render.py", "bench/films.py"},  # reads; the two others write videos
    "datasets": {"train/data/sources.py"},
    "deepspeed": {"train/distributed/zero.py"},
    "diffusers": {"plugins/draw.py"},
    "fastapi": {"serve"},
    "gradio": {"serve"},
    "h11": {"serve"},
    "lancedb": {"index/store.py"},
    "liger_kernel": {"models/liger.py"},
    "llguidance": {"engine/grammar.py"},
    "matplotlib": {"figures.py"},
    "modelscope": {"models/sources.py", "train/data/sources.py"},  # models; datasets
    "openai": {"eval/server.py"},
    "peft": {"models/adapters.py"},
    "prometheus_client": {"serve"},
    "pydantic": {"serve"},
    "pyarrow": {"index/store.py"},  # which LanceDB takes
    "python_multipart": {"serve/files.py"},
    "rapidocr": {"plugins/ocr.py"},
    "ray": {"serve/ray.py"},
    "rich": {"cli/terminal.py", "train"},
    "sentencepiece": {"models/llama_tokenizer.py"},
    "starlette": {"serve"},
    "tensorboard": {"train/report/journal.py"},
    "typer": {"cli"},
    "uvicorn": {"serve"},
    "wandb": {"train/report/weights_and_biases.py"},
    "yaml": {"cli", "train"},
}
"""Where a library may be imported: files and folders."""


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imports_of(file: str) -> Iterator[str]:
    """The modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room_of(module: str) -> str:
    """The room of `longview.room.…`; "" for the package itself, whose names come from its lowest modules."""
    room = [*module.split("."), ""][1]
    return room if room in RANKS else ""


@pytest.mark.parametrize("file", [file for file in files() if not file.startswith("__")])
def test_a_file_imports_only_rooms_below_its_own(file):
    own = Path(file).parts[0].removesuffix(".py")
    for module in imports_of(file):
        other = room_of(module) if module.split(".")[0] == "longview" else ""
        if other and other != own:
            assert RANKS[other] < RANKS[own] or RANKS[own] == 0 == RANKS[other], f"{file} imports {module}"


@pytest.mark.parametrize("family", sorted(path.parent.name for path in PACKAGE.glob("models/*/fusion.py")))
def test_a_family_imports_no_other_family(family):
    others = {path.parent.name for path in PACKAGE.glob("models/*/fusion.py")} - {family}
    for file in files():
        if file.startswith(f"models/{family}/"):
            assert not [module for module in imports_of(file) if set(module.split(".")[2:3]) & others], file


def test_a_library_is_imported_at_its_address_only():
    for file in files():
        for module in imports_of(file):
            library = module.split(".")[0]
            if library in {"longview", *EVERYWHERE, *sys.stdlib_module_names}:
                continue
            allowed = ADDRESSES.get(library, set())
            assert {file, *map(str, Path(file).parents)} & allowed, f"{file} imports {library}, at home in {allowed}"


def test_files_of_tests_have_names_of_their_own():
    """pytest imports two of one name as one module, unless their folders are packages."""
    names = [
        path.name for path in Path(__file__).parent.rglob("test_*.py") if not (path.parent / "__init__.py").exists()
    ]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
