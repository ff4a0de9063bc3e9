"""The calling conventions of Ovis2's authors, in all their historic forms, as mixins of our model and processor.

    prompt, input_ids, pixel_values = model.preprocess_inputs("<image>\\nWhat is it?", [picture], max_partition=9)
    model.generate(input_ids[None], pixel_values=[pixel_values], …)           one entry of pixel_values for each row

In their strings, `<image>` is the next picture, and special tokens are what they look like.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from longview.errors import LongviewError, RequestError
from longview.models.chat import ChatProcessor
from longview.models.compat import OwnProcessor
from longview.models.ovis2.crops import WHOLE, ImageSettings, choose_grid, placeholders
from longview.models.processing import Segment
from longview.models.sequence import Merged, PicturesInSequence, check_counts
from longview.wording import counted

IMAGE = "<image>"
"""Stands for one picture in the authors' strings."""
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
"""The official names of roles, and those of the chat template."""
SYSTEM_PROMPT = "You are a helpful assistant."


class OfficialModelCalls(OwnProcessor, PicturesInSequence):
    """The official methods of the model, and `pixel_values` as a list with an entry for each row."""

    llm: Any
    visual_tokenizer: Any
    vte: Any

    def preprocess_inputs(self, text_or_conversations: Any, images: Any = (), **settings: Any) -> tuple:
        """See `OfficialProcessorCalls.preprocess_inputs`."""
        return self.processor.preprocess_inputs(text_or_conversations, images, **settings)

    def get_text_tokenizer(self) -> Any:
        return self.processor.tokenizer

    def get_visual_tokenizer(self) -> nn.Module:
        return self.visual_tokenizer

    def get_llm(self) -> nn.Module:
        return self.llm

    def get_vte(self) -> nn.Module:
        return self.vte

    def get_wte(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_lm_head(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    @torch.no_grad()
    def re_init_vte(self, mean: float, std: float) -> None:
        """Draw the visual embedding table anew, as training from scratch does with the text embeddings' statistics."""
        self.vte.weight.normal_(mean, std)

    def merge_pictures(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor | None] | None = None,
        *rest: Any,
        **named: Any,
    ) -> Merged:
        """As `PicturesInSequence.merge_pictures`, and with the official form of `pixel_values`.

        Args:
            pixel_values: One (n, 3, R, R) or None for each row. The crops of a row without placeholders are left out:
                the authors put one of zeros there.

        Raises:
            RequestError: as many rows, or crops in one of them, as do not match the placeholders.
        """
        if pixel_values is not None and not isinstance(pixel_values, Tensor):
            pixel_values = self._join_rows(pixel_values, (input_ids == self.placeholder).sum(1).tolist())
        return super().merge_pictures(input_ids, attention_mask, labels, pixel_values, *rest, **named)

    @staticmethod
    def _join_rows(rows: Sequence[Tensor | None], num_placeholders: Sequence[int]) -> Tensor | None:
        """The crops of all rows that have placeholders, (N, 3, R, R)."""
        if len(rows) != len(num_placeholders):
            raise RequestError(f"pixel_values describes {len(rows)} rows, but input_ids has {len(num_placeholders)}")
        crops: list[Tensor] = []
        for number, (pixels, count) in enumerate(zip(rows, num_placeholders, strict=True)):
            if count:
                check_counts(0 if pixels is None else len(pixels), count, f" in row {number}")
            if count and pixels is not None:
                crops.append(pixels)
        return torch.cat(crops) if crops else None


class OfficialProcessorCalls(ChatProcessor):
    """Mixin: `preprocess_inputs`, with which the authors' programs begin."""

    pixels: ImageSettings
    _build: Callable[..., tuple[list[int], list[int]]]

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
        """The official convention: `<image>` in a text is the next of `images`. The arguments are left as they are.

        Args:
            text_or_conversations: A question; or a list of {"from": "system" | "human" | "gpt", "value": text}.
            max_partition: How many crops a picture is cut into at most; None where there are no pictures.
            generation_preface: What the answer begins with. None: the conversation is complete, as for training.
            return_labels: Return labels, too: −100 but for what "gpt" says, and everywhere if an answer is to follow.
            propagate_exception: Off: a picture that cannot be encoded becomes a black one, and nothing is learned.
            frame_selector: Called with `conversations` and `frames`; returns those to use.

        Returns:
            The prompt; ids (T,), a picture's negative; pixels (N, 3, R, R), or None without pictures; and labels (T,).

        Raises:
            RequestError: fewer pictures than `<image>`, one that cannot be encoded, or an unknown role.
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
        num_markers = sum(turn["value"].count(IMAGE) for turn in conversation)
        if num_markers > len(images):
            raise RequestError(
                f"the text holds {num_markers} <image>, and {counted(len(images), 'picture')} came with it"
            )
        if num_markers < len(images):
            spare = len(images) - num_markers
            warnings.warn(f"{counted(spare, 'picture')} of {len(images)} without <image> in the text", stacklevel=3)
        if num_markers and max_partition is None:
            raise RequestError(
                "max_partition is None, which is for text alone; say how many crops a picture may become"
            )
        most = 1 if max_partition is None else max_partition
        crops, pictures, bad = self._pictures(images[:num_markers], most, propagate_exception)
        turns: list[tuple[str, list[Segment]]] = []
        for turn in conversation:
            pieces = re.split(f"({IMAGE})", turn["value"])
            turns.append((ROLES[turn["from"]], [None if piece == IMAGE else piece for piece in pieces]))
        open_answer = generation_preface is not None
        learn = not (bad or open_answer)
        ids, labels = self._build(turns, pictures, learn, parse_specials=True, open_answer=open_answer)
        starts = [f"<|im_start|>{ROLES[turn['from']]}\n{turn['value']}" for turn in conversation]
        prompt = "<|im_end|>\n".join(starts) + ("" if open_answer else "<|im_end|>\n")
        pixels = torch.stack(crops) if crops else None
        found = (prompt, torch.tensor(ids, dtype=torch.long), pixels)
        return (*found, torch.tensor(labels, dtype=torch.long)) if return_labels else found

    def preprocess_image(self, image: Image.Image, max_partition: int) -> tuple[list[Tensor], list[int]]:
        """One picture → its crops, (3, R, R) each, the whole of it first; and its ids."""
        grid = choose_grid(*image.size, self.image_settings.side, max_partition)
        return self.image_settings.crops(image, grid), placeholders(*grid)

    def _pictures(
        self, images: Sequence[Image.Image], max_partition: int, propagate_exception: bool
    ) -> tuple[list[Tensor], list[list[int]], bool]:
        """All crops, the ids of each picture, and whether a picture could not be encoded."""
        crops: list[Tensor] = []
        ids: list[list[int]] = []
        bad = False
        for image in images:
            try:
                views, own = self.preprocess_image(image, max_partition)
            except (LongviewError, OSError, ValueError):
                if propagate_exception:
                    raise
                side = self.image_settings.side
                views, own, bad = [torch.zeros(3, side, side)], placeholders(*WHOLE), True
            crops += views
            ids.append(own)
        return crops, ids, bad


def turns_of(text_or_conversations: Any) -> list[dict[str, str]]:
    """A question, or the turns of a conversation in the official form; copied.

    Raises:
        RequestError: a turn is malformed, or of an unknown role.
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

    For a `frame_selector`: after choosing frames, it has to change the text accordingly. A line break between two
    pictures goes with the second one; other text stays.

    Args:
        kept: Numbers of the pictures that stay, counted through the whole conversation.
    """
    number = 0
    turns = []
    for turn in conversation:
        *texts, tail = turn["value"].split(IMAGE)
        value = ""
        for text in texts:
            stays = number in kept
            value += ("" if text == "\n" and not stays else text) + (IMAGE if stays else "")
            number += 1
        turns.append({**turn, "value": value + ("" if texts and tail == "\n" else tail)})
    return turns
