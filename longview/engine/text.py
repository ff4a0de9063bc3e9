"""Incremental detokenisation: tokens → text, piece by piece; no half characters, nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Decodes tokens one at a time. The concatenation of what `push` and `finish` return is the whole answer.

    A byte-level tokenizer may split a character over several tokens, and a stop string may be split too: text that may
    be a part of either is held back until that is known.

    Args:
        decode: Token ids → text.
        stop: Strings before which the text ends.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.decode = decode
        self.stop = tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        self._begin = 0  # decoding starts here: a few tokens before the new ones, for tokenizers that need a neighbour
        self._decoded = 0  # tokens whose text is in `_held` or was returned
        self._held = ""

    def push(self, token: int) -> str:
        """Append a token; returns the text that can be shown now, which may be none."""
        assert not self.stopped, "the text has ended"
        self._ids.append(token)
        known, text = self.decode(self._ids[self._begin : self._decoded]), self.decode(self._ids[self._begin :])
        if len(text) <= len(known) or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._begin, self._decoded = self._decoded, len(self._ids)
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """The rest, when no token follows; half a character becomes a replacement character."""
        known, text = self.decode(self._ids[self._begin : self._decoded]), self.decode(self._ids[self._begin :])
        self._begin = self._decoded = len(self._ids)
        safe = "" if self.stopped else self._release(text[len(known) :])
        if self.stopped:
            return safe
        rest, self._held = self._held, ""
        return safe + rest

    def _release(self, text: str) -> str:
        self._held += text
        ends = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        if ends:
            self.stopped = True
            safe, self._held = self._held[: min(ends)], ""
            return safe
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
