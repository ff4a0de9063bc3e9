"""What is typed at the prompt of a chat: several lines, pasted paths, and completion."""

from __future__ import annotations

import pytest

from longview.cli.prompt import completions, fenced, pasted_paths, read_entry, split_paths
from longview.errors import RequestError

COMMANDS = ["/add", "/receipt", "/reset", "/save"]
OF_FILES = ["/add", "/save"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.jpg", "my photo.jpg", "it's.png", "notes", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more films").mkdir()
    (tmp_path / "more films" / "f.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def typed(*lines: str):
    left = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    return read_line


@pytest.mark.parametrize(
    ("lines", "entry", "text"),
    [
        (["What?", "Why?"], "What?", None),
        (['"""What?"""'], '"""What?"""', "What?"),
        (['"""', "/add a.jpg", "", 'What? """'], '"""\n/add a.jpg\n\nWhat? """', "/add a.jpg\n\nWhat? "),
        (['"""What', 'is "this"?"""'], '"""What\nis "this"?"""', 'What\nis "this"?'),
        (['a """b"""'], 'a """b"""', None),
    ],
)
def test_three_quotation_marks_hold_several_lines(lines, entry, text):
    assert read_entry(typed(*lines)) == entry
    assert fenced(entry) == text


def test_open_quotation_marks_at_the_end_are_a_mistake():
    with pytest.raises(RequestError, match="does not end"):
        read_entry(typed('"""What', "is this?"))
    with pytest.raises(RequestError, match="does not end"):
        read_entry(typed('"""'))


@pytest.mark.parametrize(
    ("entry", "names", "rest"),
    [
        ("{folder}/a.jpg", ["{folder}/a.jpg"], ""),
        ("'{folder}/my photo.jpg' ", ["{folder}/my photo.jpg"], ""),
        ("{folder}/my\\ photo.jpg", ["{folder}/my photo.jpg"], ""),
        ("{folder}/my photo.jpg", ["{folder}/my photo.jpg"], ""),
        ("{folder}/it\\'s.png {folder}/a.jpg", ["{folder}/it's.png", "{folder}/a.jpg"], ""),
        ("file://{folder}/my%20photo.jpg What's this?", ["{folder}/my photo.jpg"], "What's this?"),
        ("file://localhost{folder}/a.jpg", ["{folder}/a.jpg"], ""),
        ("file://{folder}/gone.jpg What?", ["{folder}/gone.jpg"], "What?"),
        ("{folder}/gone.jpg", ["{folder}/gone.jpg"], ""),
        ("{folder}/notes What?", ["{folder}/notes"], "What?"),
        ("~/a.jpg What is it?", ["~/a.jpg"], "What is it?"),
        ("./a.jpg What is it?", ["./a.jpg"], "What is it?"),
        ("https://example.com/a.jpg What?", ["https://example.com/a.jpg"], "What?"),
        ("a.jpg", ["a.jpg"], ""),
        ('a.jpg "my photo.jpg"', ["a.jpg", "my photo.jpg"], ""),
        ("a.jpg shows what?", [], "a.jpg shows what?"),
        ("notes", [], "notes"),
        ("What is {folder}/a.jpg?", [], "What is {folder}/a.jpg?"),
        ("/add a.jpg", [], "/add a.jpg"),
        ("'What' is meant?", [], "'What' is meant?"),
        ("What's in it?", [], "What's in it?"),
    ],
)
def test_pasted_paths_are_told_from_questions(folder, entry, names, rest):
    found = pasted_paths(entry.format(folder=folder))
    assert found == ([name.format(folder=folder) for name in names], rest.format(folder=folder))


def test_a_file_of_another_machine_is_refused(folder):
    with pytest.raises(RequestError, match="a file on nas"):
        pasted_paths("file://nas/a.jpg")


def test_paths_behind_a_command_are_read_as_a_shell_does(folder):
    assert split_paths(f"a.jpg 'my photo.jpg' file://{folder}/a.jpg") == ["a.jpg", "my photo.jpg", f"{folder}/a.jpg"]
    assert split_paths("it's.png") == ["it's.png"]
    with pytest.raises(RequestError, match="open quotation mark"):
        split_paths("it's.jpg")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/re", ["/receipt ", "/reset "]),
        ("/add ", ["a.jpg", "it\\'s.png", "more\\ films/", "my\\ photo.jpg", "notes"]),
        ("/add my", ["my\\ photo.jpg"]),
        ("/add my\\ ph", ["photo.jpg"]),
        ('/add "my ph', ['photo.jpg"']),
        ("/add 'mo", ["'more films/"]),
        ("/add a.jpg more\\ films/", ["films/f.mp4"]),
        ("/add ~/a", ["~/a.jpg"]),
        ("/add .h", [".hidden.jpg"]),
        ("/add nowhere/", []),
        ("/receipt ", []),
        ("~/a", ["~/a.jpg"]),
        ("What is a", []),
        ("", []),
    ],
)
def test_commands_and_paths_are_completed(folder, line, found):
    begin = line.rfind(" ") + 1  # as readline splits
    assert completions(line, begin, COMMANDS, OF_FILES) == found


def test_a_path_is_completed_at_the_beginning(folder):
    assert completions(f"{folder}/my", 0, COMMANDS, OF_FILES) == [f"{folder}/my\\ photo.jpg"]
