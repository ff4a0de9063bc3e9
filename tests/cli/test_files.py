"""What ask takes for files: folders, patterns, pipes, JSON lines; and what it says where a question is not quoted."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from longview.cli.files import expand, split_question
from longview.errors import MediaError, RequestError


@pytest.fixture
def ask(longview, random_model):
    def run(*arguments, **given):
        return longview("ask", "--model", random_model, "--max-tokens", 4, *arguments, **given)

    return run


@pytest.fixture
def folder(tmp_path, media) -> Path:
    """Two pictures, a text and a hidden picture."""
    names = {"b.PNG": "blue.png", "a.jpg": "red.jpg", ".c.jpg": "red.jpg"}
    for name, source in names.items():
        (tmp_path / name).write_bytes((media / source).read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_and_a_pattern_stand_for_their_media_in_the_order_of_names(folder, monkeypatch):
    assert expand(str(folder)) == [str(folder / "a.jpg"), str(folder / "b.PNG")]
    assert expand(f"{folder}/*.[jP]*") == [str(folder / "a.jpg"), str(folder / "b.PNG")]
    monkeypatch.chdir(folder)
    (folder / "odd[1].jpg").touch()
    assert expand("odd[1].jpg") == ["odd[1].jpg"], "a file that is there is no pattern"
    assert expand("missing.jpg") == ["missing.jpg"]
    assert expand("https://example.com/a?b=*") == ["https://example.com/a?b=*"]


def test_a_folder_or_pattern_without_media_is_named(tmp_path):
    with pytest.raises(MediaError, match=f"the folder {tmp_path} holds no pictures"):
        expand(str(tmp_path))
    with pytest.raises(MediaError, match=r"no file matches '.*\*\.jpg'"):
        expand(f"{tmp_path}/*.jpg")


def test_ask_shows_the_pictures_of_a_folder(ask, folder):
    frames = ask("--json", folder, "Which?").json["frames"]
    assert [frame["name"] for frame in frames] == ["a.jpg", "b.PNG"]


def test_a_dash_among_the_files_is_a_picture_from_a_pipe(ask, media, monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO((media / "red.jpg").read_bytes()))
    monkeypatch.setattr("longview.cli.files.sys", type("System", (), {"stdin": pipe}))
    piped = ask("--json", "-", "What?").json
    named = ask("--json", media / "red.jpg", "What?").json
    assert (piped["text"], piped["usage"]) == (named["text"], named["usage"])


def test_a_pipe_is_read_once_and_not_empty(refused, monkeypatch):
    assert "standard input, which can be read once" in refused("ask", "-", "-")
    assert "standard input, which can be read once" in refused("ask", "-", "--questions", "-")
    monkeypatch.setattr("longview.cli.files.sys", type("System", (), {"stdin": io.TextIOWrapper(io.BytesIO())}))
    assert "standard input is empty" in refused("ask", "-", "What?")


def test_image_file_takes_what_mgms_program_takes(ask, refused, media):
    both = f"{media / 'red.jpg'}, {media / 'blue.png'}"
    frames = ask("--json", "--image-file", both, "Which?").json["frames"]
    assert [frame["name"] for frame in frames] == ["red.jpg", "blue.png"]
    assert "takes photos" in refused("ask", "--image-file", media / "clip.mp4", "What?")


def test_questions_of_a_file_are_answered_a_line_each(ask, media, tmp_path):
    rows = [{"id": 7, "question": "What?", "files": ["red.jpg"]}, "Who are you?", {"question": "And this?"}]
    (tmp_path / "red.jpg").write_bytes((media / "red.jpg").read_bytes())
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    ran = ask(media / "blue.png", "--questions", tmp_path / "questions.jsonl")
    assert ran.code == 0
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["question"] for line in lines] == ["What?", "Who are you?", "And this?"]
    assert [line.get("id") for line in lines] == [7, None, None]
    names = [[frame["name"] for frame in line["frames"]] for line in lines]
    assert names == [["blue.png", "red.jpg"], ["blue.png"], ["blue.png"]]
    assert lines[1]["text"] == ask("--json", media / "blue.png", "Who are you?").json["text"]
    assert ask("--questions", "-", stdin='"Who are you?"\n').out.count("\n") == 1


def test_a_question_that_fails_is_an_error_in_its_line(ask, media, tmp_path):
    whole = (media / "red.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "questions.jsonl").write_text('{"question": "What?", "files": ["half.jpg"]}\n"Who are you?"\n')
    ran = ask("--questions", tmp_path / "questions.jsonl")
    first, second = map(json.loads, ran.out.splitlines())
    assert "half.jpg" in first["error"]
    assert "error" not in second
    assert (ran.code, ran.err) == (2, "longview: 1 of 2 questions could not be answered; their lines say why\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no questions"),
        ("{", "line 1 of .* is no JSON"),
        ('"ok?"\n{"files": []}', "line 2 of .* has no question"),
        ('{"question": "What?", "file": "a.jpg"}', "unknown key in line 1 of .*: 'file'.*did you mean 'files'"),
        ('{"question": "What?", "files": "a.jpg"}', "are a list of names"),
        ('{"question": "What?", "files": ["none.jpg"]}', "there is no file .*none.jpg"),
        ("\udcff", "it is not UTF-8 text"),
    ],
)
def test_a_bad_line_of_questions_is_named_before_anything_is_asked(refused, tmp_path, text, complaint):
    (tmp_path / "questions.jsonl").write_text(text, errors="surrogateescape")
    message = refused("ask", "--questions", tmp_path / "questions.jsonl")
    assert re.search(complaint, message), message


@pytest.mark.parametrize("arguments", ["What is this?", "{photo} What is this?", "{photo} Why so?"])
def test_a_question_without_quotation_marks_is_noticed(arguments, media):
    words = [word.format(photo=media / "red.jpg") for word in arguments.split()]
    with pytest.raises(RequestError, match=r"put that in quotation marks: '(What is this|Why so)"):
        split_question(words)


def test_a_missing_file_is_called_missing(refused, media):
    assert "there is no file" in refused("ask", "photo.jpg", "What?")
    assert "there is no file" in refused("ask", "some/photo", "What?")
    assert "there is no file 'photo'" in refused("ask", "photo", "What?")
    assert split_question(["photo", str(media / "red.jpg"), "What?"])[1] == "What?"


@pytest.mark.parametrize("question", ["-5?", "-5 + 3?", "- and then?", "-why is it?", "--what is it?"])
def test_a_question_that_begins_with_a_dash_comes_after_two(refused, ask, question):
    assert "comes after --" in refused("ask", question)
    assert ask("--", question).code == 0
    assert "see longview ask --help" in refused("ask", "Hello", "--tempratur", "1")


def test_what_is_meant_is_not_guessed_from_afar(refused):
    assert "did you mean" not in refused("ask", "Hello", "--select", "nonsense")
    assert "did you mean 'uniform'" in refused("ask", "Hello", "--select", "unifrom")
    assert "Did you mean" not in refused("photo.jpg")
