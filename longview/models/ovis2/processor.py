"""Messages and frames → what `Ovis2Model.forward` takes; and the authors' own calling convention beside it.

A picture is cut into the crops that cover it best, each fitted into a square without changing its shape. In the ids it
is a few negative numbers: one for each crop, others for where the picture, its rows and its columns begin and end.
Text is ChatML with a system prompt.

Two ways in, one builder behind them:

    prepare(messages, media)            structure decides: only a media part becomes a picture, only the template makes
                                        special tokens, whatever a user's text contains
    preprocess_inputs(query, images)    the authors' strings: `<image>` in a text is the next picture
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from longview.errors import CheckpointError, LongviewError, RequestError
from longview.media import Medium
from longview.messages import Message
from longview.models import checkpoint
from longview.models.base import DEFAULT_FORMAT, EncoderInput, ModelInputs, SampleFormat
from longview.models.ovis2.config import OvisConfig
from longview.models.ovis2.fusion import ATOM, BEGIN, COLUMN, END, ROW, THUMBNAIL
from longview.models.processing import Segment, check_media, frames_used, join_texts, pad_rows
from longview.models.sequence import IGNORED, places
from longview.models.tiling import resize
from longview.requests import MediaOptions

SYSTEM_PROMPT = "You are a helpful assistant."
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
"""The official names of who speaks, and those the model knows."""
COVERED = 0.9
"""Share of a picture that its crops must show for a smaller number of them to be preferred."""
ALONE, AMONG_OTHERS = 9, 4
"""How many crops a picture is cut into at most, as the authors' program says."""
WHOLE = (1, 1)
"""The grid of a picture that is not cut; frames of videos never are."""

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def boxes(width: int, height: int, rows: int, columns: int) -> list[Box]:
    """Cut a picture into crops, row after row; what does not divide evenly goes to the last ones."""
    high, wide = height // rows, width // columns
    return [
        (
            column * wide,
            row * high,
            width if column + 1 == columns else (column + 1) * wide,
            height if row + 1 == rows else (row + 1) * high,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def covered(width: int, height: int, rows: int, columns: int, side: int) -> float:
    """How much of a picture's area its crops still show after each was fitted into a square of `side` pixels.

    A crop that is enlarged shows no more than it has.
    """
    area = 0.0
    for left, upper, right, lower in boxes(width, height, rows, columns):
        longer, shorter = sorted((right - left, lower - upper), reverse=True)
        area += shorter / longer * side * side if longer > side else longer * shorter
    return area / (width * height)


def choose_grid(width: int, height: int, side: int, max_partition: int) -> tuple[int, int]:
    """The (rows, columns) of at most `max_partition` crops: the fewest that show enough, or those that show most."""
    grids = [
        (rows, columns)
        for rows in range(1, max_partition + 1)
        for columns in range(1, max_partition + 1)
        if rows * columns <= max_partition
    ]
    if not grids:
        raise RequestError(f"max_partition is {max_partition!r}; a picture needs at least 1 crop")
    shown = {grid: covered(width, height, *grid, side) for grid in grids}
    enough = [grid for grid in grids if shown[grid] > COVERED]
    if enough:
        return min(enough, key=lambda grid: (grid[0] * grid[1], -shown[grid]))
    return min(grids, key=lambda grid: (-shown[grid], grid[0] * grid[1]))


def placeholders(rows: int, columns: int) -> list[int]:
    """The ids of a picture of rows · columns crops: 2 × 2 is `[ ▣ thumbnail ▣ │ ▣ ─ ▣ │ ▣ ]`."""
    ids = [BEGIN, ATOM, THUMBNAIL]
    if rows * columns > 1:
        for row in range(rows):
            ids += [ROW] * (row > 0) + [ATOM] + [COLUMN, ATOM] * (columns - 1)
    return [*ids, END]


def turns_of(text_or_conversations: Any) -> list[dict[str, str]]:
    """A question, or the turns of a conversation in the official form; copied.

    Raises:
        RequestError: a turn is malformed, or by somebody else.
    """
    if isinstance(text_or_conversations, str):
        return [{"from": "human", "value": text_or_conversations}]
    for turn in text_or_conversations:
        if not isinstance(turn, Mapping) or turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
            raise RequestError(
                f'a turn is {{"from": who, "value": text}}, expected system, human or gpt; found {turn!r:.80}'
            )
    return [dict(turn) for turn in text_or_conversations]


def keep_pictures(conversation: Sequence[Mapping[str, str]], kept: Collection[int]) -> list[dict[str, str]]:
    """A conversation in the official form without the `<image>` of pictures that were not selected.

    For a `frame_selector`: after choosing frames, it has to say so in the text. A line break between two pictures goes
    with the second one; other text stays.

    Args:
        kept: Numbers of the pictures that stay, counted through the whole conversation.
    """
    number = 0
    turns = []
    for turn in conversation:
        *clips, tail = turn["value"].split("<image>")
        value = ""
        for clip in clips:
            stays = number in kept
            value += ("" if clip == "\n" and not stays else clip) + ("<image>" if stays else "")
            number += 1
        turns.append({**turn, "value": value + ("" if clips and tail == "\n" else tail)})
    return turns


class Pixels(NamedTuple):
    """How a crop becomes numbers: the fields of preprocessor_config.json that the authors' code reads."""

    side: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resample: int = 3  # bicubic, as PIL numbers them
    rescale_factor: float = 0.00392156862745098

    @classmethod
    def of(cls, settings: Mapping[str, Any], kind: str) -> Pixels:
        size = settings.get("size" if kind == "siglip" else "crop_size") or settings["size"]
        return cls(
            side=size if isinstance(size, int) else size.get("height") or size["shortest_edge"],
            mean=tuple(settings.get("image_mean", cls._field_defaults["mean"])),
            std=tuple(settings.get("image_std", cls._field_defaults["std"])),
            resample=settings.get("resample", 3),
            rescale_factor=settings.get("rescale_factor", cls._field_defaults["rescale_factor"]),
        )

    def as_dict(self, kind: str) -> dict[str, Any]:
        """The same file again."""
        square = {"height": self.side, "width": self.side}
        return {
            "crop_size": square,
            "do_center_crop": False,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "SiglipImageProcessor" if kind == "siglip" else "CLIPImageProcessor",
            "image_std": list(self.std),
            "resample": self.resample,
            "rescale_factor": self.rescale_factor,
            "size": square if kind == "siglip" else {"shortest_edge": self.side},
        }

    def fit(self, image: Image.Image) -> Tensor:
        """A crop → (3, side, side): its longer side fills the square, the rest is the mean colour.

        Raises:
            RequestError: it is so narrow that nothing would be left of it.
        """
        longer, shorter = max(image.size), min(image.size)
        other = int(shorter / longer * self.side) if longer != shorter else self.side
        if not other:
            raise RequestError(
                f"a crop of {image.width} × {image.height} pixels has no width left when it is fitted into "
                f"{self.side} × {self.side}; cut the picture into parts that are less narrow"
            )
        size = (self.side, other) if image.width == longer else (other, self.side)
        resized = resize(image, size, self.resample)
        pixels: Any = (np.asarray(resized) * self.rescale_factor).astype(np.float32)  # scaled in fp64, as numpy 2 does
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        canvas = np.zeros((3, self.side, self.side), np.float32)
        left, upper = (self.side - size[0]) // 2, (self.side - size[1]) // 2
        canvas[:, upper : upper + size[1], left : left + size[0]] = pixels.transpose(2, 0, 1)
        return torch.from_numpy(canvas)


SETTINGS = "preprocessor_config.json"
COUNTS = ("max_partition", "frames")
"""What may stand there beside the authors' settings."""


def _settings(folder: Path) -> dict[str, Any] | None:
    """What a folder says of preprocessing; None: it has no such file.

    Raises:
        CheckpointError: it cannot be read, or holds a count that is none.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    try:
        fields = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how crops are made ({error!r}); fetch it again") from None
    for name in COUNTS:
        count = fields.get(name)
        if count is not None and (type(count) is not int or count < 1):
            raise CheckpointError(f"{path}: {name} is {count!r:.40}; expected a whole number from 1 up")
    return fields


# ── the processor ────────────────────────────────────────────────────────────────────────────────────────────────────


class Ovis2Processor:
    """Tokenizer, chat format and picture processing of Ovis2.

    Args:
        pixels: How crops become numbers. Default: as the authors' preprocessor_config.json, in the model's size.
        max_partition: How many crops a picture is cut into at most, in messages; frames of videos never are. Default:
            9 for a picture alone, 4 for each of several.
        frames: How many frames of a video are looked at, unless a request says otherwise. Default: 12.
    """

    default_media = MediaOptions(select="ovis2")
    draws = False
    crop_settings = ("cut", "max_partition")

    def __init__(
        self,
        tokenizer: Any,
        config: OvisConfig,
        pixels: Pixels | None = None,
        max_partition: int | None = None,
        frames: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.max_partition = max_partition
        self.default_media = MediaOptions(select="ovis2", frames=frames)
        visual = config.visual_tokenizer_config
        side = visual.backbone_config.image_size
        grey = (0.5, 0.5, 0.5)
        self.pixels = pixels or (Pixels(side, mean=grey, std=grey) if visual.kind == "siglip" else Pixels(side))
        if self.pixels.side != side:
            raise CheckpointError(
                f"preprocessor_config.json makes crops of {self.pixels.side} pixels, but config.json's model looks at "
                f"{side}; take both from the same checkpoint"
            )
        self._specials = {
            token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
        }
        missing = [token for token, number in self._specials.items() if number is None]
        if missing:
            raise RequestError(f"the tokenizer lacks {', '.join(missing)}; use the one in the checkpoint's folder")

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> Ovis2Processor:
        """Open the tokenizer and settings of a checkpoint folder or hub id."""
        folder = checkpoint.resolve(str(name), revision=kwargs.get("revision"))
        config = kwargs.get("config") or checkpoint.open_config(OvisConfig, folder)
        pixels, fields = None, _settings(folder)
        if fields is not None:
            try:
                pixels = Pixels.of(fields, config.visual_tokenizer_config.kind)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{folder / SETTINGS} does not say how crops are made ({error!r}); fetch it again"
                ) from None
        counts = {name: kwargs.get(name, (fields or {}).get(name)) for name in COUNTS}
        return cls(checkpoint.open_tokenizer(folder), config, pixels, **counts)

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """See `longview.models.base.Processor.sampling`."""
        return MediaOptions(select="ovis2", frames=(_settings(folder) or {}).get("frames"))

    def save_pretrained(self, folder: str | PathLike, **_: Any) -> None:
        """Write tokenizer and settings beside the weights."""
        self.tokenizer.save_pretrained(folder)
        settings = self.pixels.as_dict(self.config.visual_tokenizer_config.kind)
        counts = {"max_partition": self.max_partition, "frames": self.default_media.frames}
        settings |= {name: count for name, count in counts.items() if count is not None}
        (Path(folder) / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    @property
    def end_tokens(self) -> list[int]:
        return [self._specials["<|im_end|>"], self._specials["<|endoftext|>"]]

    # ── our way in ──

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        train: bool = False,
        sample_format: SampleFormat = DEFAULT_FORMAT,
    ) -> ModelInputs:
        """One conversation → ModelInputs. See `longview.models.base.Processor.prepare`."""
        check_media(messages, media, "Ovis2")
        most = sample_format.max_partition or self.max_partition or (ALONE if len(media) == 1 else AMONG_OTHERS)
        if sample_format.cut is False:
            most = 1
        encoder_inputs: list[EncoderInput] = []
        counts: list[int] = []
        pictures: list[list[int]] = []
        turns: list[tuple[str, list[Segment]]] = []
        queue = iter(media)
        for message in messages:
            segments: list[Segment] = []
            for part in message.parts:
                if part.type == "text":
                    segments.append(part.text)
                    continue
                medium = next(queue)
                if not medium.frames:
                    raise RequestError("a video without frames cannot be shown to the model; choose at least one frame")
                for number, frame in enumerate(medium.frames):
                    grid = WHOLE if medium.kind == "video" else self._grid(frame.image, most)
                    ids = placeholders(*grid)
                    segments += ["\n"] * (number > 0) + [None]
                    pictures.append(ids)
                    settings, pixels = (self.pixels, grid), partial(self._seen, grid=grid)
                    encoder_inputs.append(EncoderInput(len(counts), number, ids.count(ATOM), settings, pixels))
                counts.append(ids.count(ATOM))
            turns.append((message.role, segments))
        ids, labels = self._plain(turns, pictures) if sample_format.plain else self._build(turns, pictures, learn=train)
        words: dict[str, Any] = {
            "input_ids": torch.tensor([ids], dtype=torch.long),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if train:
            words["labels"] = torch.tensor([labels], dtype=torch.long)
        num_crops = ids.count(ATOM)
        return ModelInputs(
            BatchFeature(words),
            length=len(ids) + num_crops * (self.config.patches_per_picture - 1),
            frames=frames_used(media, counts),
            num_pictures=num_crops,
            visual_tokens=num_crops * self.config.patches_per_picture,
            warnings=tuple(warning for medium in media for warning in medium.warnings),
            media=media,
            encoder_inputs=encoder_inputs,
        )

    def collate(self, samples: Sequence[ModelInputs], padding_side: str = "right") -> BatchFeature:
        """Pad rows to the longest; the model pads again, on the same side, where crops make them longer."""
        batch, _ = pad_rows(samples, self._specials["<|endoftext|>"], padding_side)
        if padding_side == "left":
            batch["left_padding"] = True
        return BatchFeature(batch)

    # ── the authors' way in ──

    def preprocess_inputs(
        self,
        text_or_conversations: str | Sequence[Mapping[str, str]],
        images: Sequence[Image.Image] | None = (),
        max_partition: int | None = 9,
        generation_preface: str | None = "",
        return_labels: bool = False,
        propagate_exception: bool = True,
        frame_selector: Callable[..., tuple[Any, Any]] | None = None,
        frame_selector_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple:
        """The official convention: `<image>` in a text is the next of `images`. Nothing that is given is changed.

        Args:
            text_or_conversations: A question; or a list of {"from": "system" | "human" | "gpt", "value": text}.
            max_partition: How many crops a picture is cut into at most; None where there are no pictures.
            generation_preface: What the answer begins with. None: the conversation is complete, as for training.
            return_labels: Return labels, too: −100 but for what "gpt" says, and everywhere if an answer is to follow.
            propagate_exception: Off: a picture that cannot be shown becomes a black one, and nothing is learned.
            frame_selector: Called with `conversations` and `frames`; returns those to use.

        Returns:
            The prompt; ids (T,), a picture's negative; pixels (N, 3, R, R), or None without pictures; and labels (T,).

        Raises:
            RequestError: fewer pictures than `<image>`, one that cannot be shown, or an unknown speaker.
        """
        conversation = turns_of(text_or_conversations)
        if images is not None and not isinstance(images, (list, tuple)):
            raise RequestError("images is a list, one entry for each <image>; wrap the one you have: images=[…]")
        images = list(images or ())
        if frame_selector is not None:
            settings = frame_selector_kwargs or {}
            conversation, images = frame_selector(conversations=conversation, frames=images, **settings)
        if not conversation or conversation[0]["from"] != "system":
            conversation = [{"from": "system", "value": SYSTEM_PROMPT}, *conversation]
        if generation_preface is not None:
            conversation = [*conversation, {"from": "gpt", "value": generation_preface}]
        asked = sum(turn["value"].count("<image>") for turn in conversation)
        if asked > len(images):
            raise RequestError(f"the text holds {asked} <image>, but {len(images)} pictures were given")
        if asked < len(images):
            warnings.warn(f"{len(images) - asked} of {len(images)} pictures have no <image> in the text", stacklevel=3)
        if asked and max_partition is None:
            raise RequestError(
                "max_partition is None, which is for text alone; say how many crops a picture may become"
            )
        crops, shown, bad = self._pictures(images[:asked], max_partition, propagate_exception)
        turns: list[tuple[str, list[Segment]]] = []
        for turn in conversation:
            pieces = re.split("(<image>)", turn["value"])
            turns.append((ROLES[turn["from"]], [None if piece == "<image>" else piece for piece in pieces]))
        open_answer = generation_preface is not None
        ids, labels = self._build(turns, shown, not (bad or open_answer), parse_specials=True, open_answer=open_answer)
        starts = [f"<|im_start|>{ROLES[turn['from']]}\n{turn['value']}" for turn in conversation]
        prompt = "<|im_end|>\n".join(starts) + ("" if open_answer else "<|im_end|>\n")
        pixels = torch.stack(crops) if crops else None
        found = (prompt, torch.tensor(ids, dtype=torch.long), pixels)
        return (*found, torch.tensor(labels, dtype=torch.long)) if return_labels else found

    def _pictures(
        self, images: Sequence[Image.Image], max_partition: int | None, propagate_exception: bool
    ) -> tuple[list[Tensor], list[list[int]], bool]:
        """Crops and ids of each picture, and whether one of them could not be shown."""
        crops: list[Tensor] = []
        shown: list[list[int]] = []
        bad = False
        for image in images:
            assert max_partition is not None
            try:
                views, ids = self.picture(image, max_partition)
            except (LongviewError, OSError, ValueError):
                if propagate_exception:
                    raise
                views, ids, bad = [torch.zeros(3, self.pixels.side, self.pixels.side)], placeholders(1, 1), True
            crops += views
            shown.append(ids)
        return crops, shown, bad

    # ── pictures ──

    def picture(self, image: Image.Image, max_partition: int) -> tuple[list[Tensor], list[int]]:
        """One picture → its crops, (3, R, R) each, the whole of it first; and its ids."""
        grid = self._grid(image, max_partition)
        return self._crops(image, grid), placeholders(*grid)

    def _grid(self, image: Image.Image, max_partition: int) -> tuple[int, int]:
        return choose_grid(*image.size, self.pixels.side, max_partition)

    def _crops(self, image: Image.Image, grid: tuple[int, int]) -> list[Tensor]:
        image = image.convert("RGB")
        views = [image]
        if grid != WHOLE:
            views += [image.crop(box) for box in boxes(*image.size, *grid)]
        return [self.pixels.fit(view) for view in views]

    def _seen(self, image: Image.Image, grid: tuple[int, int]) -> dict[str, Tensor]:
        """One picture → what `Ovis2Model.encode` takes."""
        return {"pixel_values": torch.stack(self._crops(image, grid))}

    # ── text ──

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """See `longview.models.base.Processor.pictures`."""
        return {"pixel_values": torch.stack([self.pixels.fit(image) for image in images])}

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """The visual tokens. See `longview.models.base.Processor.places`."""
        return places(batch["input_ids"] == ATOM, self.config.patches_per_picture)

    def _build(
        self,
        turns: list[tuple[str, list[Segment]]],
        pictures: Sequence[list[int]],
        learn: bool,
        parse_specials: bool = False,
        open_answer: bool | None = None,
    ) -> tuple[list[int], list[int]]:
        """Turns of text and pictures → ids and labels, which are −100 but for the assistant's words and their end.

        Args:
            pictures: The ids of each picture, in order.
            parse_specials: As the authors do: `<|im_end|>` and the like in a text are special tokens, and an answer is
                tokenised together with its header.
            open_answer: The last turn has no end; default: begin an answer after the last turn, unless learning.
        """
        if open_answer is None:
            open_answer = not learn
            turns = [*turns, ("assistant", [])] if open_answer else turns
        if not turns or turns[0][0] != "system":
            turns = [("system", [SYSTEM_PROMPT]), *turns]
        ids: list[int] = []
        labels: list[int] = []
        newline, queue = self._encode("\n"), iter(pictures)
        for number, (role, segments) in enumerate(turns):
            header = [self._specials["<|im_start|>"], *self._encode(f"{role}\n")]
            if role == "assistant" and not parse_specials:
                tokens = [*header, *self._tokens(segments, queue, parse_specials)]
            else:
                tokens = [header[0], *self._tokens([f"{role}\n", *segments], queue, parse_specials)]
            closed = number + 1 < len(turns) or not open_answer
            learned = role == "assistant" and learn
            ids += [*tokens, *([self._specials["<|im_end|>"], *newline] if closed else [])]
            words = [IGNORED if token < 0 else token for token in tokens[len(header) :]]
            labels += [IGNORED] * len(header) + (words if learned else [IGNORED] * len(words))
            if closed:
                labels += [self._specials["<|im_end|>"] if learned else IGNORED] + [IGNORED] * len(newline)
        return ids, labels

    def _plain(
        self, turns: Sequence[tuple[str, list[Segment]]], pictures: Sequence[list[int]]
    ) -> tuple[list[int], list[int]]:
        """Turns side by side, without a template and without an end → ids and labels."""
        ids: list[int] = []
        labels: list[int] = []
        queue = iter(pictures)
        for role, segments in turns:
            tokens = self._tokens(segments, queue)
            ids += tokens
            labels += tokens if role == "assistant" else [IGNORED] * len(tokens)
        return ids, labels

    def _tokens(
        self, segments: Sequence[Segment], pictures: Iterator[list[int]], parse_specials: bool = False
    ) -> list[int]:
        """Texts and pictures → ids; each None takes the ids of the next picture."""
        ids: list[int] = []
        for texts in join_texts(segments):
            ids += next(pictures) if texts is None else self._encode("".join(texts), parse_specials)
        return ids

    def _encode(self, text: str, parse_specials: bool = False) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_specials)
        return list(encoded["input_ids"])
