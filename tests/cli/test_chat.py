"""longview chat: several turns, pictures in any of them, from a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import time

import pytest

import longview as library


@pytest.fixture
def chat(longview, random_model):
    def run(*arguments, stdin):
        return longview("chat", "--model", random_model, "--max-tokens", 8, *arguments, stdin=stdin)

    return run


def test_each_turn_sees_the_turns_before_it(chat, random_model, media):
    ran = chat("--json", media / "red.jpg", stdin=f"What is this?\n/add {media / 'blue.png'}\nAnd this?\n")
    first, second = [json.loads(line) for line in ran.out.splitlines()]
    assert len(first["frames"]) == 1
    assert [frame["name"] for frame in second["frames"]] == ["red.jpg", "blue.png"]
    history = [
        library.ask("What is this?", library.image(media / "red.jpg")),
        library.Message.of("assistant", first["text"]),
        library.ask("And this?", library.image(media / "blue.png")),
    ]
    assert library.load(random_model).answer(history, max_tokens=8).text == second["text"]


def test_a_pipe_gets_the_answers_and_nothing_else(chat, media):
    said = [json.loads(line)["text"] for line in chat("--json", stdin="Hello\nAnd you?\n").out.splitlines()]
    ran = chat(stdin="Hello\n\nAnd you?\n")
    assert ran.out == "".join(f"{text}\n" for text in said)
    assert ran.err == "warning: the answer was cut at 8 tokens; raise --max-tokens\n" * 2


def test_reset_forgets_everything_but_the_system_message(chat, media):
    ran = chat("--json", "--system", "Be brief.", media / "red.jpg", stdin="Hello\n/reset\nHello\n")
    fresh = chat("--json", "--system", "Be brief.", stdin="Hello\n")
    before, after = [json.loads(line) for line in ran.out.splitlines()]
    assert before["frames"]
    assert not after["frames"]
    assert after["text"] == json.loads(fresh.out)["text"]


def test_receipt_shows_the_last_answers(chat, media):
    assert "nothing has been answered" in chat(stdin="/receipt\n").err
    assert "looked at red.jpg" in chat(media / "red.jpg", stdin="What?\n/receipt\n").err


def test_save_writes_what_the_engine_reads_and_never_overwrites(chat, random_model, media, tmp_path):
    path = tmp_path / "a talk.json"
    ran = chat("--json", media / "red.jpg", stdin=f'What?\n/save "{path}"\n')
    saved = json.loads(path.read_text())
    assert [turn["role"] for turn in saved] == ["user", "assistant"]
    assert saved[1]["content"][0]["text"] == json.loads(ran.out)["text"]
    again = library.load(random_model).answer(saved[:1], max_tokens=8)
    assert again.text == json.loads(ran.out)["text"]
    ran = chat(stdin=f'/save "{path}"\n')
    assert ran.code == 2
    assert "File exists" in ran.err
    assert json.loads(path.read_text()) == saved


def test_help_lists_every_command_and_quit_ends(chat):
    ran = chat(stdin="/help\n/quit\nHello\n")
    assert ran.code == 0
    assert ran.out == ""
    assert all(f"/{command}" in ran.err for command in ("add", "receipt", "reset", "save", "help", "quit"))


@pytest.mark.parametrize("line", ["/nonsense", "/add", "/save", "/add /no/such/file", "/add 'open"])
def test_a_wrong_command_in_a_pipe_ends_with_code_2(refused, random_model, line):
    refused("chat", "--model", random_model, stdin=f"{line}\nHello\n")


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        pid, self.master = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job inherits that Ctrl-C is ignored
            os.environ |= {"TERM": "dumb", "OMP_NUM_THREADS": "1"}
            os.execv(sys.executable, [sys.executable, "-m", "longview", *map(str, arguments)])
        self.pid = pid
        self.seen = ""

    def until(self, text: str, seconds: float = 180) -> str:
        """What is shown until some text appears."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended without {text!r}: {self.seen!r}") from None
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(random_model):
    terminal = Terminal("chat", "--model", random_model, "--max-tokens", 3000)
    terminal.until("> ")
    terminal.type("Tell me everything\n")
    terminal.until("everything")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.until("(stopped)")
    terminal.until("> ")
    terminal.type("/nonsense\n")
    terminal.until("longview: there is no command /nonsense")
    terminal.until("> ")
    terminal.type("/receipt\n")
    terminal.until("nothing has been answered yet")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
