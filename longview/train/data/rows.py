"""One row of a user's data, in any of the spellings people have, as an `Example`: messages with their media in place.

    messages   {"messages": [{"role", "content"}, …], "images": […], "videos": […]}          ms-swift, OpenAI, Anthropic
    LLaVA      {"image": … , "conversations": [{"from": "human" | "gpt", "value"}, …]}       also ShareGPT
    pairs      {"conversation": [{"human", "assistant"}, …]}                                 ShareGPT as ms-swift has it
    question   {"query", "response", "history": [[question, answer], …], "system"}           also Alpaca
    TRL        {"prompt": text or messages, "completion" or "chosen" and "rejected": the same, "images": […]}
    caption    {"caption", "image_path"}                                                     Ovis: without a template

Any of them may hold `rejected_response`, the answer that is to become less likely. In a user's text `<image>` is the
next picture and `<video>` the next video, as is a block {"type": "image"} that names none; where there are neither, the
media stand in front of the first question. Elsewhere these are ordinary text. A key that is not understood is refused,
not dropped.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from longview.errors import RecipeError, RequestError
from longview.messages import Message, Part, Source
from longview.wording import counted

SYNONYMS = {
    "messages": ("messages", "conversations", "conversation"),
    "images": ("images", "image", "image_path"),
    "videos": ("videos", "video", "video_frames"),
    "system": ("system", "system_prompt"),
    "query": ("query", "question", "prompt", "instruction"),
    "input": ("input",),
    "response": ("response", "answer", "output", "completion", "chosen"),
    "history": ("history",),
    "rejected_response": ("rejected_response", "rejected"),
    "rejected_messages": ("rejected_messages",),
    "caption": ("caption",),
    "max_partition": ("max_partition",),
}
"""Our name of each column, and all that it is known by."""
NAMES = {name: column for column, names in SYNONYMS.items() for name in names}
UNUSED = ("id",)
"""Columns without meaning for a model."""
UNLEARNABLE = ("audios", "audio", "tools", "objects", "label", "channel", "chat_template_kwargs", "rejected_images")
"""Columns of ms-swift that no model here can learn from; empty ones are accepted."""
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
TAG = re.compile("<(image|video)>")

Kind = Literal["text", "single", "several", "video"]
KINDS: tuple[str, ...] = get_args(Kind)
"""What media a sample has: pictures rich in text, another single picture, several of them, or video."""


@dataclass(frozen=True)
class Example:
    """A conversation to learn from; its last message is the assistant's."""

    messages: tuple[Message, ...]
    rejected: Message | None = None
    """An answer that is worse than the last message."""
    unlearned: frozenset[int] = frozenset()
    """Numbers, among the assistant's messages, of those that are context only."""
    plain: bool = False
    """Learned without the chat template: pictures, and the caption right behind them."""
    max_partition: int | None = None
    """How many crops a picture is cut into at most, where the row says so."""
    text_rich: bool = False
    """Its pictures are full of text, so that crops of them matter."""

    @property
    def media(self) -> list[Part]:
        return [part for message in self.messages for part in message.media]

    @property
    def kind(self) -> Kind | None:
        """None: it has no media."""
        media = self.media
        if any(part.type == "video" for part in media):
            return "video"
        if media and self.text_rich:
            return "text"
        return ("single" if len(media) == 1 else "several") if media else None

    @property
    def words(self) -> int:
        """Its length without a tokenizer: words between spaces, and one for each picture or video."""
        return len(self.media) + sum(len(part.text.split()) for message in self.messages for part in message.parts)


def as_caption(example: Example) -> Example:
    """The media and the answer alone, for the template `plain`; the question is left out.

    Raises:
        RecipeError: there is more than one answer, or there are no media.
    """
    roles = [message.role for message in example.messages]
    if roles != ["user", "assistant"] or not example.media:
        raise RecipeError(
            "template plain learns one answer about pictures; the row has "
            f"{counted(len(example.media), 'picture')} and the messages {', '.join(roles)}"
        )
    shown, answer = example.messages
    return replace(example, messages=(Message.of("user", *shown.media), answer), plain=True)


def read_row(row: Any, folder: Path, ignore: Sequence[str] = (), caption_template: str | None = None) -> Example:
    """Understand a row.

    Args:
        folder: Where relative paths of media begin.
        ignore: Columns to be left out of account.
        caption_template: Text around the `<image>` in front of a caption; default: the picture alone.

    Raises:
        RecipeError: a column is unknown, or the row is not understood; says what was expected.
    """
    if not isinstance(row, Mapping):
        raise RecipeError(f"a row is an object with messages, not {row!r:.60}")
    columns = _columns(row, ignore)
    given = _given(columns, folder)
    try:
        messages, unlearned = _place(_turns(columns, caption_template), given, folder)
        rejected = _rejected(columns, messages)
    except RequestError as error:
        raise RecipeError(str(error)) from error
    if messages[-1].role != "assistant":
        raise RecipeError(f"the last message is the {messages[-1].role}'s; what is learned is the assistant's answer")
    if len(unlearned) == sum(message.role == "assistant" for message in messages):
        raise RecipeError("no answer is to be learned: loss is false in every one; leave the row out")
    return Example(messages, rejected, unlearned, "caption" in columns, _crops(columns.get("max_partition")))


def read_question(row: Any, folder: Path, ignore: Sequence[str] = ()) -> tuple[Message, ...]:
    """Understand a row that is to be answered; an answer that it holds is left out.

    Raises:
        RecipeError: as `read_row`.
    """
    if not isinstance(row, Mapping):
        raise RecipeError(f"a row is an object with a question or messages, not {row!r:.60}")
    columns = {name: value for name, value in _columns(row, ignore).items() if not name.startswith("rejected_")}
    if "caption" in columns:
        raise RecipeError("the row has a caption and no question; give it as a question, or leave it out")
    if "messages" not in columns:
        columns["response"] = ""
    given = _given(columns, folder)
    try:
        messages, _ = _place(_turns(columns, None), given, folder)
    except RequestError as error:
        raise RecipeError(str(error)) from error
    if messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise RecipeError("the row asks nothing: the last message but for an answer is the user's")
    return messages


def _columns(row: Mapping[str, Any], ignore: Sequence[str]) -> dict[str, Any]:
    """The columns that hold something, by our names."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key in ignore or key in UNUSED or (value in (None, "", []) and key in (*NAMES, *UNLEARNABLE)):
            continue
        if key in UNLEARNABLE:
            raise RecipeError(f"column {key!r} holds what cannot be learned here; name it in the dataset's ignore")
        if key not in NAMES:
            near = difflib.get_close_matches(str(key), NAMES, n=1, cutoff=0)[0]
            raise RecipeError(f"unknown column {key!r}; the nearest known one is {near!r}, or name it under ignore")
        if NAMES[key] in found:
            raise RecipeError(f"column {key!r} says again what another one says; keep one")
        if key == "video_frames":
            value = [value]
        found[NAMES[key]] = value
    if isinstance(found.get("response"), list) and "messages" not in found:  # TRL's: the prompt's messages go on
        found["messages"] = _joined(found.pop("query", []), found.pop("response"))
        if isinstance(found.get("rejected_response"), list):
            found["rejected_messages"] = found.pop("rejected_response")
    return found


def _joined(prompt: Any, answer: list) -> list:
    return [*(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]), *answer]


def _crops(value: Any) -> int | None:
    """A row's `max_partition`; tables have NaN where they hold nothing, and then 9.0 for 9."""
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise RecipeError(f"max_partition is {value!r:.40}; it is a whole number of crops, from 1 up")
    return int(value)


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Turn = tuple[str, Any, bool]
"""A role, its content (text or blocks), and whether it is learned."""


def _turns(columns: Mapping[str, Any], caption_template: str | None) -> list[Turn]:
    whole = next((key for key in ("caption", "messages") if key in columns), None)
    others = [key for key in ("messages", "query", "input", "response", "history") if key != whole and key in columns]
    if whole and others:
        raise RecipeError(f"the row has {whole} and a column {others[0]!r} as well; keep one of them")
    if whole == "caption":
        return _caption(columns, caption_template)
    if whole == "messages":
        turns = list(_messages(columns["messages"]))
    else:
        turns = list(_question(columns))
    if "system" in columns:
        if turns and turns[0][0] == "system":
            raise RecipeError("the row has a column system and a message of role system; keep one")
        turns.insert(0, ("system", columns["system"], False))
    if not turns:
        raise RecipeError("the row holds no messages")
    return turns


def _caption(columns: Mapping[str, Any], template: str | None) -> list[Turn]:
    """The text around a picture, and its caption."""
    extra = next((key for key in ("system", "rejected_response", "rejected_messages") if key in columns), None)
    if extra:
        raise RecipeError(f"the row has a caption and a column {extra!r} as well; keep one of them")
    caption = columns["caption"]
    if not isinstance(caption, str) or not (caption := caption.replace("<image>", "").strip()):
        raise RecipeError(f"a caption is text, not {columns['caption']!r:.60}")
    if not any(columns.get(kind) for kind in ("images", "videos")):
        raise RecipeError("the row has a caption and no picture")
    return [("user", template or "", False), ("assistant", caption, True)]


def _messages(value: Any) -> Iterator[Turn]:
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise RecipeError(f"messages are a list of objects with role and content, not {value!r:.60}")
    for message in value:
        if "human" in message or "assistant" in message:  # a question and its answer in one
            _check_keys(message, ("human", "assistant"))
            if set(message) != {"human", "assistant"}:
                raise RecipeError(f"a pair holds human and assistant; found {', '.join(message)}")
            yield "user", message["human"], False
            yield "assistant", message["assistant"], True
            continue
        _check_keys(message, ("role", "from", "content", "value", "loss", "loss_scale"))
        role, content = (_one_of(message, keys) for keys in (("role", "from"), ("content", "value")))
        if role not in ROLES:
            raise RecipeError(f"unknown role {role!r:.40}; expected one of {', '.join(ROLES)}")
        for key in ("loss", "loss_scale"):
            loss = message.get(key)
            if loss not in (None, 1, 0) or (loss and ROLES[role] != "assistant"):
                raise RecipeError(
                    f"{key} is {loss!r:.40} in the {role}'s message; it is true or false in the assistant's"
                )
        learned = message.get("loss") not in (0,) and message.get("loss_scale") not in (0,)
        yield ROLES[role], content, ROLES[role] == "assistant" and learned


def _question(columns: Mapping[str, Any]) -> Iterator[Turn]:
    """A question and its answer, and those before them."""
    lacking = [key for key in ("query", "response") if key not in columns]
    if lacking:
        names = ", ".join(SYNONYMS[lacking[0]])
        raise RecipeError(f"the row has neither messages nor a {lacking[0]} (one of {names})")
    history = columns.get("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RecipeError(f"history is a list of [question, answer], not {history!r:.60}")
    query = columns["query"]
    if "input" in columns:  # Alpaca's: what the instruction is about
        query = f"{query}\n{columns['input']}"
    for question, answer in [*history, [query, columns["response"]]]:
        yield "user", question, False
        yield "assistant", answer, True


def _rejected(columns: Mapping[str, Any], messages: Sequence[Message]) -> Message | None:
    """The worse answer; of `rejected_messages` the last one, as those before it are the conversation again."""
    if "rejected_messages" in columns:
        if "rejected_response" in columns:
            raise RecipeError("the row has rejected_response and rejected_messages; keep one")
        turns = list(_messages(columns["rejected_messages"]))
        if len(turns) not in (1, len(messages)) or turns[-1][0] != "assistant":
            raise RecipeError(
                f"rejected_messages holds {len(turns)} messages; give the conversation with another last answer"
            )
        mine = [(message.role, TAG.sub("", message.text)) for message in messages[:-1]]
        if len(turns) > 1 and any(
            (role, TAG.sub("", content)) != expected
            for (role, content, _), expected in zip(turns, mine, strict=False)
            if isinstance(content, str)
        ):
            raise RecipeError("rejected_messages differ from messages before the last answer; only that may differ")
        answer = turns[-1][1]
        if isinstance(answer, list):
            answer = Message.of("assistant", *_parts(answer, None, Path())).text
    elif "rejected_response" in columns:
        answer = columns["rejected_response"]
    else:
        return None
    if not isinstance(answer, str):
        raise RecipeError(f"the rejected answer is text, not {answer!r:.60}")
    if answer == messages[-1].text:
        raise RecipeError("the rejected answer is the chosen one; nothing can be learned of the pair")
    return Message.of("assistant", answer)


# ── media ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _place(
    turns: Sequence[Turn], given: Mapping[str, list[Part]], folder: Path
) -> tuple[tuple[Message, ...], frozenset[int]]:
    """Turns → messages with their media in the places of their tags."""
    tags = [tag for role, content, _ in turns if role == "user" for tag in _tags(content)]
    for kind, parts in given.items():
        if tags.count(kind) not in (0, len(parts)):
            raise RecipeError(
                f"the user's text holds {tags.count(kind)} <{kind}>, and the row {len(parts)} {kind}s; give as many"
            )
    queues = {kind: iter(parts) for kind, parts in given.items()}
    front = [part for kind, parts in given.items() if kind not in tags for part in parts]
    messages: list[Message] = []
    unlearned: set[int] = set()
    for role, content, learned in turns:
        if role == "assistant" and not learned:
            unlearned.add(sum(message.role == "assistant" for message in messages))
        parts = _parts(content, queues if role == "user" else None, folder)
        if role == "user":
            parts, front = [*front, *parts], []
        messages.append(Message.of(role, *parts))  # type: ignore[arg-type]  # one of `ROLES`
    if front:
        raise RecipeError("the row has pictures or videos, and no message of the user's to stand in")
    return tuple(messages), frozenset(unlearned)


def _tags(content: Any) -> list[str]:
    """Kinds of the media that a message takes from the row's columns, in order."""
    if isinstance(content, str):
        return TAG.findall(content)
    tags: list[str] = []
    for block in content if isinstance(content, list) else []:
        if isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str):
            tags += TAG.findall(block["text"])
        elif _is_tag(block):
            tags.append(block["type"])
    return tags


def _is_tag(block: Any) -> bool:
    """A block that marks the place of a picture or video, and does not name it."""
    named = isinstance(block, Mapping) and block.get("type") in ("image", "video")
    return named and all(value is None for key, value in block.items() if key != "type")


def _parts(content: Any, queues: Mapping[str, Iterator[Part]] | None, folder: Path) -> list[Part]:
    """A message's content: text with tags, or blocks as OpenAI, Anthropic and Hugging Face write them."""
    if isinstance(content, str):
        if queues is None:
            return [Part("text", text=content)]
        pieces = TAG.split(content)  # text, kind, text, kind, … text
        parts = [next(queues[piece]) if at % 2 else Part("text", text=piece) for at, piece in enumerate(pieces)]
        return [part for part in parts if part.type != "text" or part.text]
    if not isinstance(content, list):
        raise RecipeError(f"a message's content is text or a list of blocks, not {content!r:.60}")
    found: list[Part] = []
    for block in content:
        if isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str):
            found += _parts(block["text"], queues, folder)
            continue
        if queues is not None and _is_tag(block):
            found.append(next(queues[block["type"]]))
            continue
        part = Part.from_dict(_plain(block))
        found.append(Part(part.type, source=_source(part.source, part.type, folder)))
    return found


def _plain(block: Any) -> Any:
    """Anthropic's blocks keep a picture's bytes or address under `source`."""
    source = block.get("source") if isinstance(block, Mapping) else None
    if not isinstance(source, Mapping):
        return block
    if source.get("type") == "base64":
        return {"type": block["type"], "url": f"data:{source.get('media_type')};base64,{source.get('data')}"}
    return {"type": block["type"], "url": source.get("url")}


def _given(columns: Mapping[str, Any], folder: Path) -> dict[str, list[Part]]:
    """The media of a row's columns, by kind."""
    return {kind: _media(columns.get(f"{kind}s"), kind, folder) for kind in ("image", "video")}


def _media(value: Any, kind: str, folder: Path) -> list[Part]:
    """A column of media: one source or several; a list inside a list of videos is a video's frames."""
    sources = value if isinstance(value, list) else [] if value is None else [value]
    return [Part(kind, source=_source(source, kind, folder)) for source in sources]  # type: ignore[arg-type]


def _source(source: Any, kind: str, folder: Path) -> Source:
    if isinstance(source, Mapping) and {"bytes", "path"} & source.keys():  # as Hugging Face's image columns have it
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (bytes, Image.Image)) and source:
        return source
    if isinstance(source, list) and kind == "video" and source:
        return [_source(frame, "image", folder) for frame in source]
    if not isinstance(source, str) or not source:
        raise RecipeError(f"{kind} {source!r:.60} is no path, URL or data URI")
    if re.match(r"(https?|data|file):", source, re.IGNORECASE):
        return source
    return str(_relocated(folder / Path(source).expanduser()))


def _relocated(path: Path) -> Path:
    """The present path of a picture in the collections that LLaVA's and MGM's files name: OCR-VQA's may be PNG, and
    both parts of Visual Genome lie in one folder."""
    if any("ocr" in part for part in path.parts) and path.suffix == ".jpg":
        other = path.with_suffix(".png")
    elif {"VG_100K", "VG_100K_2"} & {*path.parts}:
        other = Path(*("images" if part.startswith("VG_100K") else part for part in path.parts))
    else:
        return path
    return other if other.exists() and not path.exists() else path


def _one_of(message: Mapping[str, Any], keys: tuple[str, str]) -> Any:
    found = [key for key in keys if key in message]
    if len(found) != 1:
        raise RecipeError(f"a message has either {keys[0]} or {keys[1]}; found {', '.join(message)}")
    return message[found[0]]


def _check_keys(message: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in message:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
            raise RecipeError(f"unknown key {key!r} in a message; the nearest known one is {near!r}")
