"""Incremental detokenisation: pieces add up to the answer, without half characters, and end before a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longview.engine.text import TextStream


def decode(ids: list[int]) -> str:
    """A byte tokenizer: the hardest case, for every character of several bytes is cut."""
    return bytes(ids).decode(errors="replace")


def run(text: str, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(decode, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


@given(st.text())
def test_the_pieces_add_up_to_the_whole_text(text):
    assert "".join(run(text)) == text


@given(st.text(alphabet="né漢字🦉👩‍👩‍👧 ab\n", max_size=30))
def test_no_piece_holds_half_a_character(text):
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in run(text))


@given(st.text(alphabet="abé", max_size=20), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(text, stop):
    shown = "".join(run(text, tuple(stop)))
    ends = [text.find(s) for s in stop if s in text]
    if not ends:
        assert shown == text
        return
    # the stop string that is complete first ends the text, at the earliest of those complete by then
    complete = min(text.find(s) + len(s) for s in stop if s in text)
    assert shown == text[: min(at for s in stop if (at := text[:complete].find(s)) >= 0)]


def test_text_is_shown_as_soon_as_it_cannot_be_a_stop_string():
    stream = TextStream(decode, ("END",))
    assert [stream.push(b) for b in b"xENx"] == ["x", "", "", "ENx"]
    assert not stream.stopped


def test_a_character_cut_off_by_the_end_shows_as_a_replacement():
    stream = TextStream(decode)
    assert [stream.push(b) for b in "é".encode()[:1]] == [""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
