"""A model card, and upload of a trained model or adapter to the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

import longview
from longview.errors import CheckpointError
from longview.models.families import family_of
from longview.models.sources import ADAPTER_CONFIG
from longview.train.recipe import Recipe
from longview.train.report.page import shortened
from longview.train.saved.folder import RECIPE, read_recipe, reading

CARD = "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_name(name: str) -> None:
    """
    Raises:
        CheckpointError: it is no name on the hub, or there is no token.
    """
    from huggingface_hub import get_token

    if not HUB_ID.fullmatch(name) or len(name) > 96:
        raise CheckpointError(f"{name!r:.120} is no name on the hub; give one like you/your-model")
    if get_token() is None:
        raise CheckpointError("the hub wants a token to push, and there is none; run `hf auth login` or set HF_TOKEN")


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload a folder; returns its address.

    Raises:
        CheckpointError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        api = HfApi(library_name="longview", library_version=longview.__version__)
        name = api.create_repo(name, private=private or None, exist_ok=True).repo_id
        message = f"Upload from longview {longview.__version__}"
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).repo_url)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{name} could not be pushed to the hub ({reason}); {folder} is written: check the network and the token's "
            f"rights, and push it with `hf upload {name} {folder}`"
        ) from error


def write_card(folder: Path, name: str, base: str | None, run: Path | None = None) -> None:
    """Write README.md for a model or an adapter.

    Args:
        base: The model that it was trained from; None: it was made from nothing.
        run: The folder of the run that trained it, if there is one.
    """
    recipe, digests = None, {}
    if run is not None and (run / RECIPE).is_file():
        recipe = read_recipe(run)
        if (run / "datasets.json").exists():
            with reading(run / "datasets.json"):
                digests = json.loads((run / "datasets.json").read_text(encoding="utf-8"))
    (folder / CARD).write_text("\n".join(_card(folder, name, base, recipe, digests)) + "\n", encoding="utf-8")


def _card(folder: Path, name: str, base: str | None, recipe: Recipe | None, digests: dict[str, str]) -> Iterator[str]:
    adapter = (folder / ADAPTER_CONFIG).exists()
    facts: dict[str, object] = {"library_name": "longview", "pipeline_tag": "image-text-to-text"}
    if base is not None and HUB_ID.fullmatch(base) and not Path(base).exists():
        facts |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    facts["tags"] = ["lora", "peft"] if adapter else [family_of(folder).__name__.rpartition(".")[2]]
    yield f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n"
    yield f"# {name.rpartition('/')[2]}\n"
    origin = (
        "made from nothing" if base is None else f"trained from `{Path(base).name if Path(base).exists() else base}`"
    )
    yield f"{'An adapter (LoRA)' if adapter else 'A multimodal model'} {origin} with longview {longview.__version__}.\n"
    yield from (["```sh", f"hf download {name} --local-dir my-adapter", "```\n"] if adapter else [])
    opened = 'adapter="my-adapter"' if adapter else repr(name)
    yield f"```python\nimport longview\n\nengine = longview.load({opened})"
    yield 'print(engine.answer(longview.ask("What is it?", longview.image("photo.jpg"))).text)\n```'
    if recipe is not None:
        yield f"\n## Recipe\n\n```yaml\n{yaml.safe_dump(shortened(recipe), sort_keys=False, allow_unicode=True)}```"
    if digests:
        yield "\n## Data\n\n| file | SHA-256 |\n|---|---|"
        yield from (f"| {Path(path).name} | `{digest}` |" for path, digest in digests.items())
