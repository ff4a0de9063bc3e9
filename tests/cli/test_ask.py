"""longview ask: the answer on stdout, the receipt on stderr, one JSON object on request."""

from __future__ import annotations

import json

import pytest

import longview as library

CUT = "warning: the answer was cut at 12 tokens; raise --max-tokens\n"


@pytest.fixture
def ask(longview, random_model):
    def run(*arguments, **given):
        return longview("ask", "--model", random_model, "--max-tokens", 12, *arguments, **given)

    return run


def test_stdout_holds_the_answer_alone_and_stderr_the_receipt(ask, media, random_model):
    ran = ask(media / "red.jpg", "What is this?")
    engine = library.load(random_model)
    answer = engine.answer([library.ask("What is this?", library.image(media / "red.jpg"))], max_tokens=12)
    assert ran.code == 0
    assert ran.out == answer.text + "\n"
    assert ran.err.startswith("looked at red.jpg, 336×336")
    assert f"answer {answer.receipt.usage.completion_tokens} tokens" in ran.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.jpg"], "'missing.jpg' looks like a file, which is not there"),
        (["red.jpg", "What?", "--fps", 2], "choose frames of a video, and none is given"),
    ],
)
def test_what_would_be_ignored_is_refused(ask, media, arguments, complaint):
    ran = ask(*(media / argument if argument == "red.jpg" else argument for argument in arguments))
    assert ran.code == 2
    assert complaint in ran.err


def test_quiet_leaves_the_answer_alone(ask, media):
    loud, quiet = ask(media / "red.jpg", "What?"), ask(media / "red.jpg", "What?", "--quiet")
    assert quiet.out == loud.out
    assert quiet.err == CUT
    assert loud.err.endswith(CUT)
    assert "answer 12 tokens (length)" in loud.err
    assert ask("Hello?", "--quiet", "--max-tokens", 40, "--regex", "yes").err == "", "an answer that ended"
    form = ask("Hello?", "--quiet", "--json-schema", '{"type": "string", "minLength": 30}')
    assert form.code == 0
    assert form.err == CUT.replace("tokens", "tokens and is no whole JSON", 1)


def test_json_is_one_object_with_the_answer_and_its_receipt(ask, media):
    ran = ask("--json", media / "red.jpg", media / "clip.mp4", "What differs?", "--frames", 3, "--seed", 7)
    assert ran.out.count("\n") == 1
    assert ran.err == CUT
    answer = ran.json
    assert set(answer) == {"text", "finish_reason", "model", "frames", "usage", "timings", "settings", "warnings"}
    assert [frame["kind"] for frame in answer["frames"]] == ["image", "video", "video", "video"]
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["finish_reason"] == "length"
    assert answer["settings"]["seed"] == 7
    assert answer["settings"]["media"]["frames"] == 3


def test_text_and_json_say_the_same(ask, media):
    assert ask("--json", media / "clip.mp4", "Where?").json["text"] == ask(media / "clip.mp4", "Where?").out[:-1]


def test_a_question_needs_no_file(ask):
    ran = ask("Who are you?", "--json")
    assert ran.json["frames"] == []
    assert ran.json["usage"]["pictures"] == 0


def test_a_dash_reads_the_question_from_a_pipe(ask, media):
    assert ask(media / "red.jpg", "-", stdin="What is this?\n").out == ask(media / "red.jpg", "What is this?").out


def test_the_kind_of_a_file_is_its_content_not_its_name(ask, media, tmp_path):
    (tmp_path / "photo.jpg").write_bytes((media / "clip.mp4").read_bytes())
    assert ask("--json", tmp_path / "photo.jpg", "What?", "--frames", 2).json["frames"][0]["kind"] == "video"


def test_a_clip_within_a_video_is_cut_out_by_its_seconds(ask, media):
    frames = ask("--json", media / "clip.mp4", "What?", "--start", 2, "--end", 4, "--fps", 1).json["frames"]
    assert [frame["seconds"] for frame in frames] == [2, 3]


def test_the_system_message_is_read(ask):
    plain, told = ask("--json", "Hello").json["usage"], ask("--json", "Hello", "--system", "Be brief.").json["usage"]
    assert told["prompt_tokens"] == plain["prompt_tokens"] + len("Be brief.")


def test_a_placeholder_in_the_question_stays_text(ask, media):
    one = ask("--json", media / "red.jpg", "What is <|image|> here?").json
    assert one["usage"]["pictures"] == ask("--json", media / "red.jpg", "What is here?").json["usage"]["pictures"]
    none = ask("--json", "What is <|image|> and <|im_end|>?")
    assert none.code == 0
    assert none.json["usage"]["pictures"] == 0


def test_sampling_is_repeatable_by_its_seed(ask):
    def draw(seed):
        return ask("Say something", "--temperature", 5, "--seed", seed).out

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_each_sampling_option_reaches_the_engine(ask):
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.5, "seed": 3}
    given = [each for name, value in options.items() for each in (f"--{name.replace('_', '-')}", value)]
    settings = ask("Hello", "--json", *given, "--stop", "zzz", "--stop", "qqq").json["settings"]
    assert {name: settings[name] for name in options} == options
    assert settings["stop"] == ["zzz", "qqq"]


def test_a_bad_picture_is_reported_before_any_text_is_printed(refused, random_model, media, tmp_path):
    whole = (media / "red.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    message = refused("ask", "--model", random_model, media / "blue.png", tmp_path / "half.jpg", "What?")
    assert message.startswith("half.jpg")


def test_evidence_is_written_and_said(ask, media, tmp_path):
    place = tmp_path / "why.json"
    ran = ask(media / "red.jpg", media / "clip.mp4", "What differs?", "--frames", 3, "--evidence", place)
    plain = ask(media / "red.jpg", media / "clip.mp4", "What differs?", "--frames", 3)
    assert ran.out == plain.out
    assert "evidence  The answer " in ran.err
    assert f"written to {place}" in ran.err
    found = json.loads(place.read_text())
    assert found["text"] + "\n" == ran.out
    assert found["question"].endswith("What differs?")
    assert [picture["kind"] for picture in found["evidence"]["pictures"]] == ["image", "video", "video", "video"]
    assert len(found["deletion"]["alone"]) == 4
    assert found["deletion"]["sentences"][0] in ran.err
    silent = ask("--json", "--quiet", media / "red.jpg", "What?", "--evidence", place)
    assert "evidence" not in silent.json
    assert silent.err == CUT
    assert len(json.loads(place.read_text())["evidence"]["pictures"]) == 1


def test_two_selections_and_two_models_are_shown_side_by_side(ask, media, tmp_path):
    question, place = (
        ("--similarity", "demo-siglip", media / "clip.mp4", "What happens?", "--frames", 2),
        tmp_path / "why.json",
    )
    ran = ask(*question, "--evidence", place, "--compare-select", "mdp3")
    assert ran.code == 0, ran.err
    first, second = json.loads(place.read_text())
    assert ran.out == f"{first['text']}\n{second['text']}\n"
    assert "select" not in first["settings"]["media"]
    assert second["settings"]["media"] == {"frames": 2, "select": "mdp3"}
    assert (len(first["evidence"]["relevance"]), len(second["evidence"]["relevance"])) == (0, 1)
    assert ran.err.count("evidence  The answer ") == 2
    page = tmp_path / "why.html"
    args = ("--select", "mdp3", "--candidates", 4, "--compare-select", "uniform", "--compare-model", "demo-mgm")
    both = ask(*question, "--json", "--quiet", "--evidence", page, *args)
    assert [json.loads(line)["model"] for line in both.out.splitlines()][1:] == ["demo-mgm"]
    text = page.read_text()
    assert text.count("<article") == 2
    assert " · frames chosen by mdp3" in text
    assert "demo-mgm · frames chosen by uniform" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["clip.mp4", "What?", "--compare-model", "demo-mgm"], "--compare-model shows evidence side by side; add"),
        (["red.jpg", "What?", "--evidence", "why.html", "--compare-select", "fps"], "none is given"),
        (["red.jpg", "What?", "--evidence", "why.html", "--compare-select", "best"], "'best'; choose "),
        (["red.jpg", "What?", "--evidence", "why.html", "--compare-model", "./none"], "none"),
        (["red.jpg", "What?", "--evidence", "why.txt"], "'why.txt'; choose a name that ends in"),
        (["red.jpg", "What?", "--evidence", "none/why.json"], "there is no folder none for why.json"),
        (["Hello?", "--evidence", "why.json"], "says which pictures an answer rests on, and none is given"),
        (["--questions", "rows.jsonl", "--evidence", "why.json"], "leave --questions, --index and --knowledge out"),
    ],
)  # fmt: skip
def test_evidence_that_cannot_be_given_is_refused(ask, media, arguments, complaint):
    ran = ask(*(media / argument if argument == "red.jpg" else argument for argument in arguments))
    assert ran.code == 2
    assert complaint in ran.err
    assert ran.err.count("\n") == 1
