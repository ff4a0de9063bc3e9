"""The calling conventions of MGM's authors, in all their historic forms, as mixins of our model and processor.

    prompt = processor.render([{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": None}])
    inputs = processor(prompt, [picture])             input_ids with −200 for each <image>, images, images_aux
    model.generate(**inputs, …)

In their strings, `<image>` is the next picture, and special tokens are what they look like. Pictures come in two sizes:
`images` for the low-resolution tower, `images_aux` for the high-resolution one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature

from longview.errors import RequestError
from longview.models.chat import ChatProcessor
from longview.models.compat import OwnProcessor
from longview.models.llama_tokenizer import is_legacy
from longview.models.mgm.conversation import Span, Template, Turn, render, text_of
from longview.models.mgm.fusion import small_views
from longview.models.mgm.labels import labels_of
from longview.models.sequence import Merged, PicturesInSequence, check_counts
from longview.wording import counted

IMAGE = "<image>"
"""Stands for one picture in the authors' strings."""
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
"""The official names of roles, and ours."""

Images = Tensor | Sequence[Tensor] | None


class TwoSizes(NamedTuple):
    """The authors' form of `pixel_values`: the same pictures in two sizes."""

    images: Tensor | Sequence[Tensor]
    images_aux: Images


class OfficialModelCalls(OwnProcessor, PicturesInSequence):
    """The official methods of the model, and pictures given as `images` and `images_aux`."""

    vision_tower: Any
    vision_tower_aux: Any
    encode_images: Callable[[Tensor, Tensor | None], Tensor]

    def get_vision_tower(self) -> nn.Module:
        return self.vision_tower

    def get_vision_tower_aux(self) -> nn.Module:
        return self.vision_tower_aux

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Any = None,
        left_padding: bool = False,
        images: Images = None,
        images_aux: Images = None,
        **kwargs: Any,
    ) -> Any:
        """As `PicturesInSequence.forward`, and with the official forms of pictures.

        Args:
            images, images_aux: The pictures of all rows, row after row, in two sizes; see `MGMModel.encode_images`. A
                row without placeholders may have one picture, which is left out. Rows are padded on the side, and cut
                at the length, that the config's `tokenizer_padding_side` and `tokenizer_model_max_length` name.
        """
        if images is not None:
            pixel_values = TwoSizes(images, images_aux)
            left_padding = left_padding or self.config.tokenizer_padding_side == "left"
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            pixel_values=pixel_values,
            left_padding=left_padding,
            **kwargs,
        )

    def generate(  # type: ignore[override]  # the authors' order of arguments
        self,
        inputs: Tensor | None = None,
        images: Images = None,
        images_aux: Images = None,
        attention_mask: Tensor | None = None,
        pixel_values: Any = None,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `PicturesInSequence.generate`, and with the official names and forms of ids and pictures."""
        ids = input_ids if input_ids is not None else inputs
        pixels = TwoSizes(images, images_aux) if images is not None else pixel_values
        return super().generate(ids, pixels, attention_mask, **kwargs)

    def merge_pictures(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Any = None,
        left_padding: bool = False,
        *rest: Any,
        **named: Any,
    ) -> Merged:
        """As `PicturesInSequence.merge_pictures`, and with `TwoSizes`, whose rows are cut at the config's length."""
        if not isinstance(pixel_values, TwoSizes):
            return super().merge_pictures(input_ids, attention_mask, labels, pixel_values, left_padding, *rest, **named)
        counts = (input_ids == self.placeholder).sum(1).tolist()
        limit = self.config.tokenizer_model_max_length
        longest = input_ids.shape[1] + max(counts) * (self.config.patches_per_picture - 1)
        if limit is not None and longest > limit:
            warnings.warn(
                f"only {limit} of {longest} positions of text and pictures are kept: raise the config's "
                "tokenizer_model_max_length, or give fewer pictures",
                stacklevel=5,
            )
        ids = input_ids.to(self.device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self.device)
        labels = None if labels is None else labels.to(self.device)
        rows = self._encode_rows(counts, *pixel_values)
        return self.merge(ids, mask.bool(), labels, rows, left_padding, limit)  # type: ignore[call-arg]  # MGM's own

    def _encode_rows(
        self, num_placeholders: Sequence[int], images: Tensor | Sequence[Tensor], images_aux: Images
    ) -> list[Tensor]:
        """The authors' pictures as embeddings, one (n, P, D) a row.

        Raises:
            RequestError: as many of them as do not match the placeholders.
        """
        images = images if isinstance(images, Tensor) else torch.stack(list(images))
        if images_aux is not None and not isinstance(images_aux, Tensor):
            images_aux = torch.stack(list(images_aux))
        num_pictures, slots = len(images), [max(1, count) for count in num_placeholders]
        if num_pictures == sum(num_placeholders):
            slots = list(num_placeholders)
        elif num_pictures != sum(slots):  # in the authors' batches, a row without pictures has one of zeros
            check_counts(num_pictures, sum(num_placeholders))
        if images_aux is not None and len(images_aux) != num_pictures:
            raise RequestError(
                f"images holds {counted(num_pictures, 'picture')}, images_aux {len(images_aux)}; give both sizes"
            )
        step = self.config.pictures_per_chunk
        fine = images_aux.split(step) if images_aux is not None else [None] * -(-num_pictures // step)
        embeds = [self.encode_images(small, large) for small, large in zip(images.split(step), fine, strict=True)]
        rows = torch.cat(embeds).split(slots)
        return [row[:count] for row, count in zip(rows, num_placeholders, strict=True)]


class OfficialProcessorCalls(ChatProcessor):
    """Mixin: rendered prompts with `<image>`, their ids, and pictures in two sizes."""

    tokenizer: Any
    config: Any
    template: Template
    _tokens: Callable[[Sequence[Span | None]], tuple[list[int], list[int]]]
    pixel_inputs: Callable[[Sequence[Image.Image]], dict[str, Tensor]]

    def __call__(  # type: ignore[override]  # the authors' order of arguments
        self, prompt: str | None = None, images: Any = None, text: Any = None, videos: Any = None, **options: Any
    ) -> BatchFeature:
        """A rendered prompt and its pictures → `input_ids`, `attention_mask`, `images`, `images_aux` of `forward`.

        Args:
            text: In the place of a prompt: transformers' form of the call, see `ChatProcessor`; `videos` and `options`
                are of it.

        Raises:
            RequestError: as many pictures as do not match the `<image>` of the prompt.
        """
        if prompt is None:
            return super().__call__(images, text, videos, **options)
        if images is not None and not isinstance(images, (list, tuple)):
            raise RequestError("images is a list, one entry for each <image>; wrap the one you have: images=[…]")
        images = list(images or ())
        if prompt.count(IMAGE) != len(images):
            raise RequestError(
                f"the prompt holds {prompt.count(IMAGE)} <image>, and {counted(len(images), 'picture')} came with it"
            )
        ids = torch.tensor([self.tokenize(prompt)], dtype=torch.long)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            tensors["images"], tensors["images_aux"] = self.process_images(images)
        return BatchFeature(tensors)

    def tokenize(self, prompt: str) -> list[int]:
        """A prompt string → ids, −200 for each `<image>`. Special tokens in it are what they look like."""
        spans: list[Span | None] = []
        for number, text in enumerate(prompt.split(IMAGE)):
            spans += [None] * (number > 0) + [Span(text)]
        return self._tokens(spans)[0]

    def render(self, conversation: Sequence[Mapping[str, str | None]]) -> str:
        """Turns {"from": "human" | "gpt", "value": text or None} as the prompt string. None: an answer is to follow.

        Raises:
            RequestError: a turn of another role.
        """
        turns: list[Turn] = []
        for turn in conversation:
            if turn.get("from") not in ROLES:
                raise RequestError(f'a turn is {{"from": who, "value": text}}, by human or gpt; found {turn!r:.80}')
            text = turn.get("value")
            turns.append((ROLES[str(turn["from"])], None if text is None else [text]))
        return text_of(render(self.template, turns))

    def preprocess(self, sources: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """A conversation of the authors' training data → ids and labels, as their trainer makes them.

        In each turn `<image>` moves to the front; several in one become one, as there.
        """
        turns = []
        for source in sources:
            text = source["value"]
            if IMAGE in text:
                text = f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()
            turns.append({"from": source["from"], "value": text})
        if self.template.masking == "plain":
            turns[0]["value"] = IMAGE
        text = self.render(turns)
        ids = self.tokenize(text)
        legacy = is_legacy(self.tokenizer)
        return ids, labels_of(text, ids, self.template, lambda span: len(self.tokenize(span)), legacy)

    def process_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Pictures in the two sizes of the authors' calls, `images` and `images_aux`."""
        large = self.pixel_inputs(images)["pixel_values"]
        return small_views(large, self.config.vision_config.image_size, self.config.image_grid), large
