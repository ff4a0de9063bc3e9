"""Under `python -O`, where no assert is there, training behaves as it always does."""

from __future__ import annotations

import json
import subprocess
import sys

from runs import log, tree


def test_a_broken_picture_is_quarantined_without_asserts_too(started, data, tmp_path):
    for path in data.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 40 if path.name == "2.png" else None])
    (tmp_path / "rows.jsonl").write_text((data / "rows.jsonl").read_text())
    recipe = tree(started["ovis2"], tmp_path, steps=2, batch=8, pack=400, quarantine=0.5)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    words = ["train", str(tmp_path / "recipe.json"), "--answers", "0", "--output"]
    for flags, output in (([], tmp_path / "run"), (["-O"], tmp_path / "optimised")):
        command = [sys.executable, *flags, "-m", "longview", *words, str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        report = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
        assert sorted(line["line"] for line in report) == [4, 4, 7, 7]
        assert all("2.png" in line["reason"] for line in report)
    assert log(tmp_path / "run") == log(tmp_path / "optimised")
