"""What is wrong with a command line is told before torch is imported: in a second, not in ten."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, io, json, sys
from longview.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    found.append([code, told.getvalue(), [name for name in ("torch", "transformers") if name in sys.modules]])
print(json.dumps(found))
"""
WRONG = {
    "ask Hello --device gpu": "unknown device 'gpu'; expected cpu, cuda, cuda:N or mps",
    "ask Hello --device cuda:": "unknown device 'cuda:'",
    "ask Hello --device cuda:x": "unknown device 'cuda:x'",
    "ask Hello --dtype bf16x": "unknown dtype 'bf16x'; expected float32 (fp32), bfloat16 (bf16) or float16 (fp16)",
    "ask Hello --attn flash": "unknown attention 'flash'",
    "ask Hello --quantize nf4": "unknown quantize 'nf4'; expected int8 or int4",
    "ask Hello --quantize int8 --load-4bit": "two ways to the same",
    "ask Hello --load-8bit --load-4bit": "contradict each other",
    "ask Hello --json-schema {": "json_schema '{' is no JSON",
    "ask Hello --model ./none": "there is no folder './none'; check the path",
    "ask Hello --model nonsense": "no model or folder is called 'nonsense'",
    "ask Hello --model lora": "lora is a LoRA adapter and no whole model; give it as --adapter lora",
    "ask Hello --adapter none": "there is no folder 'none'; check the path of the adapter",
    "ask Hello --adapter .": "holds no adapter_config.json",
    "info ./none": "there is no folder './none'",
    "frames clip.mp4 --model ./none": "there is no file clip.mp4",
    "merge none merged": "there is no folder 'none'",
    "chat --dtype int8": "unknown dtype 'int8'",
    "frames clip.mp4 --device gpu": "unknown device 'gpu'",
    "info --device gpu": "unknown device 'gpu'",
    "info --dtype fp8": "unknown dtype 'fp8'",
    "merge adapter merged --dtype fp8": "unknown dtype 'fp8'",
    "eval --device gpu": "unknown device 'gpu'",
    "bench decode --device gpu": "unknown device 'gpu'",
    "bench decode --dtype fp8": "unknown dtype 'fp8'",
    "bench decode --quantize nf4": "unknown quantize 'nf4'",
    "train recipe.yaml": "the nearest known key is 'steps'",
    "train good.yaml model.dtype=bf17": "model.dtype is 'bf17'",
}
RECIPE = (
    "model: {start: demo}\nstages: [{name: a, objective: supervised, train: [language], KEY: 1, data: {datasets: []}}]"
)


@pytest.fixture(scope="module")
def early(tmp_path_factory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, stderr, and what was imported by then, for each command line in turn."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "recipe.yaml").write_text(RECIPE.replace("KEY", "stepps"))
    (folder / "good.yaml").write_text(RECIPE.replace("KEY", "steps"))
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text("{}")
    commands = json.dumps([command.split() for command in WRONG])
    ran = subprocess.run([sys.executable, "-c", PROGRAM, commands], capture_output=True, text=True, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return dict(zip(WRONG, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_line_is_refused_before_torch_is_imported(early, command):
    code, told, imported = early[command]
    assert code == 2
    assert WRONG[command] in told
    assert told.count("\n") == 1
    assert imported == []
