"""The program as a process: light to start, quiet in a pipe, honest in its exit code; and options that cannot drift."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

import longview as library
from longview.cli import app, main
from longview.cli.terminal import receipt_lines
from longview.messages import FrameUsed, Receipt, Timings, Usage
from longview.settings import settings_of

ROOT = Path(__file__).parents[2]
HEAVY = "torch|transformers|av|numpy|rich.console|huggingface_hub"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["ask", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import sys\nfrom longview.cli import main\ntry:\n    main(sys.argv[2:])\nexcept SystemExit as exit:\n"
        "    assert not exit.code, exit.code\n"
        "print('HEAVY', [name for name in sys.argv[1].split('|') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program, HEAVY, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "HEAVY []"


def test_ctrl_c_while_the_program_is_imported_ends_it_without_a_traceback():
    program = (
        "import os, signal, sys\nimport longview.__main__ as program\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'longview.cli.bench':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\nsys.argv = ['longview', '--version']\nprogram.main()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_ctrl_c_while_torch_is_imported_ends_the_program_at_once():
    program = (
        "import os, signal, sys\nimport longview.__main__ as program\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            raise SystemError('still here')\n"
        "sys.meta_path.insert(0, Interrupt())\nsys.argv = ['longview', 'ask', 'Hello']\nprogram.main()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_ctrl_c_during_an_import_waits_for_its_end_where_there_is_something_to_lose(tmp_path):
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('imported')\n")
    program = (
        "import time\nfrom longview import interrupts\ninterrupts.heed()\ninterrupts.keep_state()\n"
        "try:\n    import slow\n    time.sleep(10)\nexcept KeyboardInterrupt:\n    print('kept')"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "imported\nkept\n", "")


@pytest.mark.parametrize("place", ["verb", "end"])
def test_ctrl_c_outside_imports_ends_the_program_with_130_and_no_traceback(place):
    program = (
        "import atexit, os, signal, sys\nimport longview.__main__ as program\n"
        "def interrupt(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "if sys.argv[1] == 'verb':\n    import longview.cli.verb as verb; verb.status.clear = interrupt\n"
        "else:\n    atexit.register(interrupt)\n"
        "sys.argv = ['longview', 'bench', 'nothing']\nprogram.main()"
    )
    ran = subprocess.run([sys.executable, "-c", program, place], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (130, "")
    assert "Traceback" not in ran.stderr


def test_what_the_package_offers_is_listed():
    assert {"load", "ask", "image", "Engine", "SamplingParams", "__version__"} <= set(dir(library))
    assert all(getattr(library, name) is not None for name in library.__all__)


def test_the_version_is_the_packages(longview):
    assert longview("--version").out == f"longview {library.__version__}\n"


@pytest.mark.parametrize("verb", ["ask", "bench", "chat", "config", "frames", "info", "models", "train", "eval"])
def test_each_verb_has_help_with_examples(longview, verb):
    ran = longview(verb, "--help")
    assert ran.code == 0
    assert f"  longview {verb} " in ran.out


def test_a_reader_that_goes_away_is_no_error(random_model):
    command = [sys.executable, "-m", "longview", "ask", "--model", str(random_model), "--max-tokens", "40", "Hello"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait(60) == 141


@pytest.mark.parametrize("arguments", ["--help", "ask --help", "frames --help", "--version"])
def test_help_into_a_closed_pipe_is_silent(arguments):
    command = f"{{ sleep 0.1; {sys.executable} -m longview {arguments}; echo $? >&2; }} | true"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ran.stderr == "141\n"


def test_a_broken_pipe_that_is_not_the_readers_is_no_silence(monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "of a socket")

    monkeypatch.setattr(sys.modules["longview.cli.bench"], "import_libraries", broken)
    with pytest.raises(BrokenPipeError, match="of a socket"):
        main(["bench", "decode"])


def on_terminal(*arguments: str, seconds: float = 60) -> tuple[float, str]:
    """Seconds until a program first wrote to its terminal, and all it wrote there."""
    leader, follower = pty.openpty()
    began, first, written = time.monotonic(), 0.0, b""
    command = [sys.executable, "-m", "longview", *arguments]
    with subprocess.Popen(command, stdin=follower, stdout=subprocess.DEVNULL, stderr=follower) as program:
        os.close(follower)
        with contextlib.suppress(OSError):  # the other end is closed
            while some := os.read(leader, 4096):
                first, written = first or time.monotonic() - began, written + some
        program.wait(seconds)
    os.close(leader)
    return first, written.decode()


def test_a_terminal_shows_at_once_what_is_happening():
    seconds, written = on_terminal("ask", "Hello")
    assert "starting…" in written
    assert "loading demo…" in written
    assert re.search(r"\r\x1b\[Kprompt +\d", written), "the line is gone before the receipt"
    assert re.search(r"; loading \d+\.\d s", written)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "longview", "--version"], stdout=subprocess.DEVNULL, check=True)
    assert seconds < time.monotonic() - began, "before the command line is even imported"


@pytest.mark.parametrize("verb", ["info", "eval --per-kind 1 --group clip", "bench limits"])
def test_a_terminal_shows_that_torch_is_imported(verb, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr("longview.status.show", shown.append)
    monkeypatch.setattr(sys.modules["longview.cli." + verb.split()[0]], "is_terminal", lambda: True)
    monkeypatch.setattr("longview.cli.options.quieten", stop)
    with pytest.raises(Stopped):
        main(verb.split())
    assert shown == ["loading torch…"]


class Stopped(Exception):
    pass


def stop(*_: object) -> None:
    raise Stopped


@pytest.mark.parametrize("silent", ["--quiet", "--json", "--help"])
def test_a_terminal_shows_no_progress_where_none_is_wanted(silent):
    _, written = on_terminal("ask", "Hello", "--model", "/no/such/folder", silent)
    assert "…" not in written
    assert "\x1b" not in written


def test_what_is_not_needed_for_an_answer_is_not_imported():
    """What transformers imports itself bounds it: accelerate, torch._dynamo, torch.distributed.tensor."""
    yardstick = "import sys, torch, transformers.models.qwen2.modeling_qwen2"
    answer = "import sys\nfrom longview.cli import main\ntry: main(['ask', 'Hello', '-q'])\nexcept SystemExit: pass"
    listed = "\nprint('MODULES', *sys.modules)"
    needed, found = (
        set(subprocess.run([sys.executable, "-c", program + listed], capture_output=True, text=True).stdout.split())
        for program in (yardstick, answer)
    )
    heavy = {"av", "datasets", "diffusers", "llguidance", "matplotlib", "pandas", "peft", "rapidocr", "rich", "scipy"}
    heavy |= {"sklearn", "torch._inductor.compile_fx", "torch.testing", "torchvision", "yaml"}
    assert {"torch", "longview.engine", "longview.models.owl3.model"} <= found
    assert not found & (heavy - needed)
    assert sum(name.partition(".")[0] in ("torch", "transformers") for name in found - needed) < 80


def heed_ctrl_c() -> None:
    """Undo what a background job inherits: shells start it with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_an_answer_with_code_130(random_model):
    command = [sys.executable, "-m", "longview", "ask", "--model", str(random_model), "--max-tokens", "3000", "Hello"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.read(1)
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
        assert b"Traceback" not in program.stderr.read()


def test_a_mistake_ends_the_process_with_code_2_and_one_line():
    command = [sys.executable, "-m", "longview", "ask", "/no/such/file.jpg", "What?"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "longview: there is no file /no/such/file.jpg; check the path\n"


def options_of(verb: str) -> dict[str, Any]:
    commands: Any = typer.main.get_command(app)
    return {option.name: option for option in commands.commands[verb].params}


@pytest.mark.parametrize("verb", ["ask", "chat"])
@pytest.mark.parametrize("owner", [library.MediaOptions, library.SamplingParams, library.Limits])
def test_every_setting_of_a_request_is_an_option_with_its_help_and_default(verb, owner):
    options = options_of(verb)
    for name, declared in settings_of(owner).items():
        if not declared.option:
            assert name not in options
            continue
        option = options[name]
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert (option.help, option.default) == (declared.help, declared.default)
        assert option.multiple == (name in ("stop", "indices"))


def test_what_only_a_server_narrows_is_no_option():
    hidden = {name for name, declared in settings_of(library.Limits).items() if not declared.option}
    assert hidden == {"allow_urls", "url_hosts", "file_roots"}


def receipt(frames: list[FrameUsed], warnings: tuple[str, ...] = ()) -> Receipt:
    usage = Usage(prompt_tokens=1, completion_tokens=2, pictures=len(frames), visual_tokens=9 * len(frames))
    return Receipt("demo", tuple(frames), usage, Timings(0.1, 0.02, 0.3, 0.04, 0.5, 0.46), {}, warnings)


def frame(medium: int, name: str, index: int = 0, seconds: float | None = None, crops: int = 1) -> FrameUsed:
    return FrameUsed(medium, name, "image" if seconds is None else "video", index, seconds, 640, 480, crops)


def test_a_receipt_lists_few_frames_and_sums_up_many():
    few = [frame(1, "few.mp4", i, i / 4) for i in range(3)]
    many = [frame(2, "many.mp4", i, i * 2.0) for i in range(60)]
    lines = receipt_lines(receipt([frame(0, "a.jpg", crops=5), *few, *many]))
    assert lines[:3] == [
        "looked at a.jpg, 640×480, 5 crops",
        "          few.mp4, 640×480, 3 frames at 0.00, 0.25, 0.50 s",
        "          many.mp4, 640×480, 60 frames from 0.00 to 118.00 s, one every 2.00 s",
    ]
    assert lines[3] == "prompt    1 token and 64 pictures of 576 tokens, answer 2 tokens"
    assert lines[4] == "took      0.46 s to the first token (media 0.12, encode 0.30, prefill 0.04), 0.50 s after it"


def test_a_receipt_begins_with_its_warnings():
    assert receipt_lines(receipt([], ("a.mp4: it is odd",)))[0] == "warning: a.mp4: it is odd"


def test_the_list_of_verbs_fits_a_terminal(longview, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = longview("--help").out
    assert "..." not in listed.partition("Commands:")[2]
    assert max(map(len, listed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("longview in", "info"),
        ("longview ask --sel", "--select"),
        ("longview chat --mo", "--model"),
    ],
)
def test_the_shell_completes_verbs_and_options(line, expected):
    asked = {"_LONGVIEW_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    program = "import sys\nfrom longview.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **asked})
    assert expected in ran.stdout.split(), ran
