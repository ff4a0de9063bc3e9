"""`longview models`: the models on this machine, embedded or downloaded, and what they take of the disk."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli.info import amount
from longview.errors import RequestError
from longview.models.sources import DEMOS, TOWERS, embedded

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

ACTIONS = ("list", "rm")


def models(
    action: Annotated[str, typer.Argument(help="list, or rm to delete downloaded models.")] = "list",
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Of models to delete.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models on this machine, with their sizes; delete some.

    Examples:
      longview models
      longview models rm mPLUG/mPLUG-Owl3-7B-241101
    """
    if action not in ACTIONS:
        raise RequestError(f"unknown action {action!r:.40}; expected {' or '.join(ACTIONS)}")
    if (action == "rm") != bool(ids):
        raise RequestError("longview models rm takes the ids of models to delete, and list takes none")
    cache = _cache()
    if action == "rm":
        freed = _delete(cache, ids or [])
        typer.echo(jsonlib.dumps({"deleted": ids, "bytes": freed}) if json else f"freed {amount(freed)}")
        return
    rows = [*_embedded(), *_downloaded(cache)]
    if json:
        typer.echo(jsonlib.dumps({"models": rows}))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {amount(row['bytes']):>10}  {row['folder']}")


def _embedded() -> list[dict[str, Any]]:
    rows = []
    for name in (*DEMOS, *TOWERS):
        folder = embedded(name)
        assert folder is not None
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.append({"name": name, "bytes": size, "folder": "embedded"})
    return rows


def _downloaded(cache: HFCacheInfo | None) -> list[dict[str, Any]]:
    repositories = sorted(cache.repos, key=lambda each: each.repo_id) if cache is not None else []
    return [
        {"name": each.repo_id, "bytes": each.size_on_disk, "folder": str(each.repo_path)}
        for each in repositories
        if each.repo_type == "model"
    ]


def _cache() -> HFCacheInfo | None:
    """What the hub's cache holds; None where there is none."""
    from huggingface_hub import constants, scan_cache_dir

    folder = Path(constants.HF_HUB_CACHE)
    return scan_cache_dir(folder) if folder.is_dir() else None


def _delete(cache: HFCacheInfo | None, ids: list[str]) -> int:
    """Delete all revisions of downloaded models; returns the bytes that this frees.

    Raises:
        RequestError: one of them is not there; then nothing is deleted.
    """
    there = {each.repo_id: each for each in cache.repos if each.repo_type == "model"} if cache is not None else {}
    missing = next((name for name in ids if name not in there), None)
    if missing is not None:
        what = "is embedded and stays" if embedded(missing) else "is not in the hub's cache"
        raise RequestError(f"{missing!r:.80} {what}; longview models lists what can be deleted")
    assert cache is not None
    only = dataclasses.replace(cache, repos=frozenset(there[name] for name in ids))  # copies share revisions' hashes
    strategy = only.delete_revisions(*(revision.commit_hash for each in only.repos for revision in each.revisions))
    strategy.execute()
    return strategy.expected_freed_size
