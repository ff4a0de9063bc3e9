"""Chat templates: those that MGM's language models were instructed with, to the letter.

    [system] [user … ] [header gap answer end] [between user … ] [header        and the model goes on

A template is chosen by the tokenizer's special tokens, never by a folder's name: `template_of`. Llama 3's answers stand
under the header `system`, as the authors trained it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from longview.errors import RequestError
from longview.models.processing import Segment


@dataclass(frozen=True)
class Span:
    """A stretch of text."""

    text: str
    of_template: bool = True
    """Not a message's, so special tokens in it are special tokens."""
    learned: bool = False


Turn = tuple[str, Sequence[Segment] | None]
"""A role and its message; None for an answer that is to follow."""


@dataclass(frozen=True)
class Template:
    """Texts around messages. Those before and after are pairs."""

    user: tuple[str, str]
    header: str
    """Before an answer; the prompt ends with it."""
    end: str
    """After an answer; the model ends with it."""
    gap: str = ""
    """Between header and answer. Not in the prompt, so the model has to write it, and learns it."""
    between: str = ""
    """After an answer, before the user's next message."""
    opened: str | None = None
    """In place of the header where an answer is to follow, if it differs."""
    system_prompt: str = ""
    """The system's message where the conversation has none."""
    system: tuple[str, str] = ("", "")
    inside: bool = False
    """The system's message stands inside the user's first turn; without one, nothing does."""
    masking: Literal["two", "inst", "llama_3", "gemma", "mpt", "plain"] | None = None
    """How the authors' trainer finds what is learned; see `labels.py`."""

    @property
    def text(self) -> str:
        """All that the template writes around messages."""
        return "".join((*self.system, *self.user, self.header, self.end, self.between))


_CURIOUS = "A chat between a curious {who} and an artificial intelligence assistant. "
_ABLE = (
    "You are able to understand the visual content that the user provides, and assist the user with a variety of tasks "
    "using natural language."
)
_VICUNA = Template(
    ("USER: ", " "),
    "ASSISTANT:",
    "</s>",
    gap=" ",
    system_prompt=_CURIOUS.format(who="user")
    + "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    system=("", " "),
    masking="two",
)
_HUMAN = (
    _CURIOUS.format(who="human") + "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_INST = Template(
    ("[INST] ", " [/INST]"),
    "",
    " </s>",
    gap=" ",
    between="<s>",
    system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    inside=True,
    masking="inst",
)
_CHATML = Template(
    ("<|im_start|>user\n", "<|im_end|>"),
    "<|im_start|>assistant\n",
    "<|im_end|>",
    system_prompt="Answer the questions.",
    system=("<|im_start|>system\n", "<|im_end|>"),
    masking="mpt",
)

TEMPLATES: dict[str, Template] = {
    "vicuna_v1": _VICUNA,
    "v1": _VICUNA,
    "imgsp_v1": _VICUNA,
    "phi_2": replace(_VICUNA, end="<|endoftext|>"),
    "llava_v1": replace(_VICUNA, system_prompt=_HUMAN),
    "v1_mmtag": replace(
        _VICUNA,
        system_prompt=_CURIOUS.format(who="user")
        + _ABLE.replace("You are", "The assistant is")
        + "The visual content will be provided with the following format: <Image>visual content</Image>.",
    ),
    "gemma": Template(
        ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "<start_of_turn>model\n",
        "<end_of_turn>\n<eos>",
        system=("", "\n\n"),
        inside=True,
        masking="gemma",
    ),
    "llama_3": Template(
        ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "<|eot_id|>",
        system_prompt="You are a helpful language and vision assistant. " + _ABLE,
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        masking="llama_3",
    ),
    "mistral_instruct": _INST,
    "llama_2": replace(
        _INST,
        system_prompt="You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
        "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, "
        "or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a "
        "question does not make any sense, or is not factually coherent, explain why instead of answering something "
        "not correct. If you don't know the answer to a question, please don't share false information.",
    ),
    "llava_llama_2": replace(_INST, system_prompt="You are a helpful language and vision assistant. " + _ABLE),
    "chatml_direct": _CHATML,
    "mistral_direct": _CHATML,
    "mpt": replace(
        _CHATML,
        system_prompt="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
        "honest answers.",
    ),
    "llava_v0": Template(("Human: ", "###"), "Assistant:", "###", gap=" ", system_prompt=_HUMAN, system=("", "###")),
    "plain": Template(("", ""), "", "\n", opened="\n", masking="plain"),
}


def template_of(specials: Sequence[str], language: str) -> str:
    """The template that a model was instructed with, by its tokenizer's special tokens and kind of language model."""
    for token, name in (
        ("<start_of_turn>", "gemma"),
        ("<|start_header_id|>", "llama_3"),
        ("<|im_start|>", "chatml_direct"),
    ):
        if token in specials:
            return name
    return "mistral_instruct" if language in ("mixtral", "mistral") else "vicuna_v1"


def render(template: Template, turns: Sequence[Turn], learn: bool = False) -> list[Span | None]:
    """A conversation as spans of text, and None for each picture.

    Args:
        turns: The system's, if any, comes first. Answers before the first question are left out, as in training.
        learn: The assistant's messages are to be learned.

    Raises:
        RequestError: a system message that is not the first.
    """
    system: Sequence[Segment] = [template.system_prompt]
    if turns and turns[0][0] == "system":
        system, turns = turns[0][1] or [], turns[1:]
    before, after = template.system
    opening = [Span(before), *_message(system), Span(after)]
    if template.inside and not any(system):
        opening = []
    spans: list[Span | None] = [] if template.inside else [*opening]
    turns = turns[unasked(turns) :]
    answered = False
    for number, (role, message) in enumerate(turns):
        if role == "system":
            raise RequestError("a system message comes first or not at all; move it to the front")
        empty = message is not None and not any(segment is None or segment for segment in message)
        if role == "user":
            first = template.inside and not number
            spans += [Span((template.between if answered else "") + template.user[0]), *(opening if first else [])]
            spans += [*_message(message or []), Span(template.user[1])]
        elif message is None:
            spans.append(Span(template.header if template.opened is None else template.opened))
        elif empty:  # the authors' code writes the header alone
            spans.append(Span(template.header))
        else:
            spans += [Span(template.header), Span(template.gap, learned=learn), *_message(message, learn)]
            spans.append(Span(template.end, learned=learn))
        answered = answered or role == "assistant"
    return [span for span in spans if span is None or span.text]


def unasked(turns: Sequence[Turn]) -> int:
    """How many answers a conversation begins with, before anything is asked: the authors' trainer leaves them out."""
    return next((n for n, (role, message) in enumerate(turns) if role != "assistant" or message is None), len(turns))


def _message(segments: Sequence[Segment], learned: bool = False) -> list[Span | None]:
    return [None if segment is None else Span(segment, of_template=False, learned=learned) for segment in segments]


def text_of(spans: Sequence[Span | None], picture: str = "<image>") -> str:
    """Pieces as the authors' prompt string."""
    return "".join(picture if span is None else span.text for span in spans)
