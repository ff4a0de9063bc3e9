"""One word per thing: the names that were replaced by the field's stay out of code, tests and documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("longview", "tests", "docs", "recipes", "examples")
KINDS = {".py", ".md", ".yaml", ".sh"}

REPLACED = {
    r"\bthe wheel\b|\bturns? of the\b": "step; drop, admit, encode, prefill, decode",
    r"\bSlots?\b|\bSlotLayer\b": "KVCache, KVCacheLayer",
    r"\b[Ss]hel(f|ves|ve|ved)\b": "decode batch, length bucket",
    r"\b[Gg]aller(y|ies)\b": "VisualKVCache, side cache",
    r"\bWall\b|\bwall of\b": "RowPictures",
    r"\bHangings?\b|\bhang\(|\bsettled\b": "PendingPictures, project",
    r"\bCarried\b": "side cache",
    r"\b[Ss]ights?\b": "EncoderInput",
    r"\b[Ff]eeders?\b": "prefetcher",
    r"\bFilms\b\(|\bclass Films\b": "video cache",
    r"\bPrefixStore\b|\bclass Kept\b|\bclass Script\b": "prefix cache, prefix key",
    r"\bclass Pace\b|\bPATIENCE\b": "chunk size",
    r"\bdef portion\b|\.portion\(": "prefill_chunk",
    r"\bdef together\(.*chunk|\.together\((?!\))": "collate_chunks",
    r"\b[Dd]oors?\b": "media/open.py, open_media",
    r"\bclass Look\b|\bLook\(|\blook=": "relevance query",
    r"\b[Oo]utlook\b|\b[Tt]rial\b|\b[Ff]orecasts?\b": "train/plan: dry_run, cost, estimate",
    r"\bbegin_as\b|\btrain[./]opening\b|\btrain[./]parts\b": "build, init_from",
    r"\b[Rr]ivals?\b|\btrain[./]pairs\b": "make_preferences, contrastive",
    r"\bReaders\b": "linear probes",
    r"\beval[./]forced\b": "teacher forcing",
    r"\bTuning\b|\bOF_USERS\b|\bUSERS_ONLY\b": "objective of user data, of the world",
    r"\bLayout\b|\blayouts\b": "sample format",
    r"\bclass Guide\b|\bGuide\(|\bclass Constraint\b": "grammar, matcher",
}
"""What was said → what to say; see the terms of vLLM and transformers."""

EXCEPTIONS = {
    "longview/curriculum/make_preferences.py": "its seed, on which the embedded models rest",
}
"""File: why it says one of these."""


def texts() -> list[Path]:
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for folder in FOLDERS:
        found += (path for path in (ROOT / folder).rglob("*") if path.suffix in KINDS)
    return [path for path in found if path != Path(__file__).resolve() and "official" not in path.parts]


@pytest.mark.parametrize("words", REPLACED)
def test_a_replaced_word_is_not_said_again(words):
    found = []
    for path in texts():
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if name not in EXCEPTIONS and re.search(words, line):
                found.append(f"{name}:{number}: {line.strip():.100}")
    assert not found, f"say {REPLACED[words]}:\n" + "\n".join(found)


def test_the_engine_knows_of_no_plugin():
    plugins = re.compile(r"\bocr\b|\bgen\b|\bdraw(s|ing)?\b|\bpaint", re.IGNORECASE)
    for path in (ROOT / "longview" / "engine").glob("*.py"):
        assert not plugins.search(path.read_text(encoding="utf-8")), path.name


def test_a_line_that_catches_everything_says_why():
    for path in texts():
        for line in path.read_text(encoding="utf-8").splitlines():
            if "noqa: BLE001" in line and path.suffix == ".py":
                assert re.search(r"# noqa: BLE001 - \S+", line), f"{path.name}: {line.strip()}"
