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
from longview.chat import Chat
from longview.cli.chat import COMMANDS, ChatSession
from longview.cli.kept_chats import MAX_KEPT, chats_folder, keep, latest_chat, new_chat


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Conversations are kept here, not in the user's folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


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
    assert all(f"{command} " in ran.err for command in COMMANDS)


def test_three_quotation_marks_hold_a_question_of_several_lines(chat):
    ran = chat("--json", stdin='"""\n/add is a command.\nWhat is this?\n"""\nHello\n')
    assert len(ran.out.splitlines()) == 2


def test_a_saved_conversation_goes_on_as_if_it_had_never_stopped(chat, media, tmp_path):
    path = tmp_path / "talk.json"
    whole = chat("--json", media / "red.jpg", stdin=f"What?\n/save {path}\nAnd now?\n")
    rest = chat("--json", stdin=f"/load {path}\nAnd now?\n")
    assert json.loads(rest.out)["text"] == json.loads(whole.out.splitlines()[1])["text"]
    assert [frame["name"] for frame in json.loads(rest.out)["frames"]] == ["red.jpg"]


def test_continue_goes_on_with_the_conversation_that_was_kept_last(chat, refused, random_model, media):
    assert "no conversation to continue" in refused("chat", "--model", random_model, "--continue", stdin="Hello\n")
    older = [library.ask("What?", library.image(media / "blue.png")), library.Message.of("assistant", "a star")]
    newer = [library.ask("What?", library.image(media / "red.jpg")), library.Message.of("assistant", "a circle")]
    for messages in (older, newer):
        keep(messages, new_chat())
    os.utime(latest_chat(), ns=(2**62, 2**62))
    ran = chat("--json", "--continue", stdin="And now?\n")
    expected = library.load(random_model).answer([*newer, library.ask("And now?")], max_tokens=8).text
    assert json.loads(ran.out)["text"] == expected
    assert len(json.loads(latest_chat().read_text())) == 4, "it is kept from then on"
    assert "leave one of them out" in refused("chat", "--continue", "--system", "Be brief.", stdin="Hello\n")


def test_a_pipe_leaves_nothing_behind(chat):
    chat(stdin="Hello\n")
    assert not chats_folder().exists()


def test_only_the_newest_conversations_are_kept():
    messages = [library.Message.of("assistant", "a cat")]
    for number in range(MAX_KEPT + 2):
        path = new_chat()
        keep(messages, path)
        os.utime(path, ns=(number, number))
    keep(messages, path := new_chat())
    assert len(list(chats_folder().iterdir())) == MAX_KEPT
    assert latest_chat() == path
    assert chats_folder().stat().st_mode & 0o777 == 0o700


@pytest.fixture(scope="module")
def engine(random_model):
    return library.load(random_model)


@pytest.fixture
def session(engine, capsys):
    """A conversation on a terminal, but for the terminal."""
    settings = {
        "params": library.SamplingParams(max_tokens=4),
        "media": library.MediaOptions(),
        "limits": library.Limits(),
        "hooks": [],
    }

    def enter(*entries: object) -> str:
        left = iter(map(str, entries))

        def read_line(prompt: str) -> str:
            line = next(left, None)
            if line is None:
                raise EOFError
            return line

        enter.session.run(read_line)
        return capsys.readouterr().err

    enter.session = ChatSession(engine, settings, Chat(), interactive=True, kept=new_chat())
    return enter


def test_what_was_added_is_confirmed_and_what_will_be_shown_is_listed(session, media):
    assert session(f"/add {media / 'red.jpg'}") == "to show   red.jpg, 336×336\n"
    assert session(media / "clip.mp4") == (
        "to show   Image 1: red.jpg, 336×336\n          Video 2: clip.mp4, 336×336, 8.0 s, 8 frames\n"
    )
    assert session("/drop") == "dropped red.jpg, clip.mp4\n"
    assert session("/media") == "shown     nothing yet\n"
    session(f"{media / 'red.jpg'} What is this?")
    assert session(f"/add {media / 'blue.png'}", "/media").endswith("shown     red.jpg\nto show   blue.png, 336×336\n")
    session("And this?")
    assert [frame.name for frame in session.session.receipt.frames] == ["red.jpg", "blue.png"]


def test_the_frames_that_a_question_will_choose_are_not_counted_beforehand(session, media):
    session.session.settings["media"] = library.MediaOptions(select="mdp3")
    assert session(media / "clip.mp4") == "to show   clip.mp4, 336×336, 8.0 s, frames by mdp3\n"


@pytest.mark.parametrize(
    "entry", ["/add {folder}/gone.jpg", "/add {folder}/broken.jpg", "{folder}/gone.jpg", "/ad {folder}/blue.png"]
)
def test_no_question_is_asked_about_old_pictures_after_a_failure(session, media, tmp_path, entry):
    (tmp_path / "broken.jpg").write_bytes((media / "red.jpg").read_bytes()[:600])
    session(f"/add {media / 'red.jpg'}", "What is this?")
    assert session(entry.format(folder=tmp_path)).startswith("longview: ")
    receipt = session.session.receipt
    shown = session("And this?")
    assert "so the question was not asked" in shown
    assert shown.count("\n") == 1
    assert session.session.receipt is receipt
    session("And this?")
    assert session.session.receipt is not receipt


def test_no_question_is_asked_about_the_old_conversation_after_a_failed_load(session, tmp_path):
    session("Hello")
    session(f"/load {tmp_path / 'gone.json'}")
    assert "gone.json was not loaded, so the question was not asked" in session("And now?")


def test_media_of_a_question_that_fails_are_shown_with_the_next_or_dropped(session, media, tmp_path, monkeypatch):
    path = tmp_path / "red.jpg"
    path.write_bytes((media / "red.jpg").read_bytes())
    session(f"/add {path}")
    path.unlink()
    assert "still to be shown: red.jpg; /drop takes that back" in session("What is this?")
    assert "still to be shown: red.jpg" in session("What is this?"), "and not answered without it"
    session("/drop", "What is this?")
    assert session.session.receipt.frames == ()


def test_a_conversation_on_a_terminal_is_kept_and_reset_begins_another(session):
    session("Hello", "And you?")
    assert len(json.loads(latest_chat().read_text())) == 4
    session("/reset", "Hello")
    assert sorted(len(json.loads(path.read_text())) for path in chats_folder().iterdir()) == [2, 4]


def test_a_conversation_that_cannot_be_kept_goes_on_and_says_so_once(session, tmp_path):
    (tmp_path / "state").write_text("no folder")
    assert "this conversation is not kept for --continue" in session("Hello")
    assert "not kept" not in session("And you?")


def test_warnings_of_an_answer_are_told_once(session, media):
    session.session.settings["limits"] = library.Limits(max_frames=2)
    first = session(f"/add {media / 'clip.mp4'}", "What happens?")
    assert "warning: clip.mp4 is thinned out" in first
    assert "thinned out" not in session("And then?")


@pytest.mark.parametrize("entry", ["/add 'open", "/reset now", "/save a.json b.json", '"""open', "file://nas/a.jpg"])
def test_a_mistake_on_a_terminal_is_one_line_and_the_conversation_goes_on(session, entry):
    told = session(entry)
    assert told.startswith("longview: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "/nonsense",
        "/add",
        "/save",
        "/load",
        "/load /no/such/file",
        "/add /no/such/file",
        "/add 'open",
        "/reset now",
        '"""open',
    ],
)
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


def test_on_a_terminal_tab_completes_commands_and_paths_and_the_conversation_is_kept(random_model, media):
    terminal = Terminal("chat", "--model", random_model, "--max-tokens", 4)
    terminal.until("> ")
    terminal.type(f"/a\t{media}/re\t")
    terminal.until("red.jpg")
    terminal.type("\n")
    terminal.until("to show   red.jpg, 336×336")
    terminal.until("> ")
    terminal.type('"""What\n')
    terminal.until("... ")
    terminal.type('is this?"""\n')
    terminal.until("cut at 4 tokens")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    (question, _) = json.loads(latest_chat().read_text())
    assert question["content"][-1]["text"] == "\nWhat\nis this?"
    assert question["content"][0]["path"] == str(media / "red.jpg")
