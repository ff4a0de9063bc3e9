"""Pictures in the language sequence: where the ids hold one placeholder, the sequence holds all positions of a picture.

    input_ids      What  is  ▣  ?          a placeholder for each picture
    inputs_embeds   t    t  pppp t         P positions for each

`PicturesInSequence` is the mixin of models that work so. mPLUG-Owl3's pictures never enter the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationMixin

from longview.errors import RequestError
from longview.messages import Progress
from longview.models.base import IGNORED
from longview.models.evidence import recorded
from longview.models.packing import pack
from longview.models.transformers_seams import CACHE_NAME, takes_cache_by_either_name
from longview.wording import counted


class Merged(NamedTuple):
    """Text tokens and pictures in one sequence of L positions."""

    embeds: Tensor  # (B, L, D)
    mask: Tensor  # (B, L), boolean
    labels: Tensor | None  # (B, L)


class PicturesInSequence(GenerationMixin):
    """Mixin for models whose pictures stand in the language sequence: all of `base.Model` that follows from that.

        input_ids (B, T) ────────── embeddings (B, T, D) ─┐
        pixel_values ── encode ── features (N, P, D) ── merge ── inputs_embeds (B, L, D) ── language model ── logits

    A family adds `encode` and `merge`, and names its placeholder.
    """

    placeholder: int
    """Stands in `input_ids` for one picture."""
    signal = "attention to the picture's positions of the language sequence, the mean over all heads and layers"
    config: Any
    device: torch.device
    language_model: Any
    encode: Callable[..., Tensor]

    def merge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None,
        features: Sequence[Tensor] | None,
        left_padding: bool = False,
    ) -> Merged:
        """Ids (B, T) and the features of each row's pictures, (n, P, D), as one sequence; None: there are no pictures.

        A family's own, around the function of the same name.
        """
        raise NotImplementedError

    def has_pictures(self, input_ids: Tensor) -> bool:
        """Whether `merge` has anything to do for these ids."""
        return bool((input_ids == self.placeholder).any())

    def merge_pictures(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        left_padding: bool = False,
        progress: Progress | None = None,
        features: Tensor | None = None,
    ) -> Merged:
        """Encode the pictures (N, 3, R, R), unless `features` (N, P, D) are given, and merge them into the sequence.

        Raises:
            RequestError: the numbers of pictures and placeholders differ.
        """
        ids = input_ids.to(self.device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(self.device)
        counts = (ids == self.placeholder).sum(1).tolist()
        pictures = pixel_values if features is None else features
        check_counts(0 if pictures is None else len(pictures), sum(counts))
        if features is None and pixel_values is not None:
            features = self.encode(pixel_values, progress)
        rows = None if features is None else features.split(counts)
        return self.merge(ids, mask.bool(), None if labels is None else labels.to(self.device), rows, left_padding)

    def embed_pictures(
        self, model_inputs: Mapping[str, Any], progress: Progress | None = None, features: Tensor | None = None
    ) -> dict[str, Any]:
        """See `base.Model.embed_pictures`."""
        arguments = dict(model_inputs)
        merged = self.merge_pictures(
            arguments.pop("input_ids"),
            arguments.pop("attention_mask", None),
            arguments.pop("labels", None),
            arguments.pop("pixel_values", None),
            arguments.pop("left_padding", False),
            progress,
            features,
        )
        arguments |= {"inputs_embeds": merged.embeds, "attention_mask": merged.mask.long()}
        if merged.labels is not None:
            arguments["labels"] = merged.labels
        return arguments

    @takes_cache_by_either_name
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
        **kwargs: Any,
    ) -> Any:
        """One pass over `input_ids` (B, T), which continue `past_key_values` where there are any.

        Args:
            attention_mask: (B, past + T), 0 for padding on either side.
            labels: (B, T), −100 where nothing is learned; they grow with the pictures as the ids do.
            pixel_values: (N, 3, R, R), the pictures of all rows, row after row; or a form of the official calls.
            left_padding: Pad rows in front, where pictures make them different in length.
            inputs_embeds: What `embed_pictures` made of ids and pictures, in place of both.

        Raises:
            RequestError: the numbers of pictures and placeholders differ.
        """
        if input_ids is not None and (pixel_values is not None or self.has_pictures(input_ids)):
            cached_mask, mask = split_mask(attention_mask, input_ids.shape[1])
            merged = self.merge_pictures(input_ids, mask, labels, pixel_values, left_padding)
            input_ids, inputs_embeds, labels = None, merged.embeds, merged.labels
            attention_mask = extend_mask(cached_mask, merged, cached_length(past_key_values))
        sequence = input_ids if input_ids is not None else inputs_embeds
        if sequence is None:
            raise RequestError("forward needs input_ids or inputs_embeds")
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions_of(attention_mask)[:, -sequence.shape[1] :]
        return self.language_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{CACHE_NAME: past_key_values},
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with transformers' machinery: greedy, beams, sampling, streamers. Returns the *new* tokens only.

        What the call leaves open is generation_config.json's to say.
        """
        if input_ids is None:
            raise RequestError("generate needs input_ids; make them with the processor")
        kwargs.pop("left_padding", None)
        merged = self.merge_pictures(input_ids, attention_mask, None, pixel_values, left_padding=True)
        return super().generate(inputs_embeds=merged.embeds, attention_mask=merged.mask.long(), **kwargs)

    @torch.no_grad()
    def evidence(self, positions: Tensor, **arguments: Any) -> tuple[Tensor, Sequence[int]]:
        """See `base.Model.evidence`: attention to the pictures' positions, the mean over all heads and layers."""
        tokens: Tensor = arguments["inputs_embeds"] if "inputs_embeds" in arguments else arguments["input_ids"]
        with recorded(self.language_model.config, positions) as record:
            self.forward(**arguments, logits_to_keep=1, evidence=record)
        return record.mean(tokens.shape[1]), tuple(record.layers)

    def picture_starts(self, arguments: Mapping[str, Any]) -> list[int]:
        """None: all pictures are part of the sequence."""
        return []

    def prefill_chunk(self, arguments: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
        """See `base.Model.prefill_chunk`."""
        return slice_positions(arguments, begin, end)

    def collate_chunks(self, chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `base.Model.collate_chunks`."""
        return pad_chunks(chunks)

    pack = staticmethod(pack)


# ── the sequence ─────────────────────────────────────────────────────────────────────────────────────────────────────


def check_counts(num_pictures: int, num_placeholders: int, where: str = "") -> None:
    """
    Raises:
        RequestError: the numbers of pictures and placeholders differ; says both.
    """
    if num_pictures != num_placeholders:
        raise RequestError(
            f"{counted(num_pictures, 'picture')} for {counted(num_placeholders, 'placeholder')}{where}; "
            "pictures and input_ids must come from the same processor call"
        )


def merge(
    tokens: Tensor,
    placeholders: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    pictures: Sequence[Tensor],
    kept: slice = slice(None),
    left_padding: bool = False,
    compact: bool = False,
) -> Merged:
    """Put pictures where the placeholders are, and pad the rows, now of different lengths.

    Args:
        tokens: (B, T, D) embeddings; those at placeholders are replaced.
        placeholders: (B, T), boolean.
        mask, labels: (B, T); of a picture every position is attended to, and none is learned.
        pictures: One (n, P, D) a row, as many as it has placeholders.
        kept: The positions of each row that are kept.
        left_padding: Pad in front, as generation needs it.
        compact: Leave positions out that the mask hides, before anything is cut or padded.
    """
    embeds: list[Tensor] = []
    masks: list[Tensor] = []
    learned: list[Tensor] = []
    for row, features in enumerate(pictures):
        width = features.shape[1] if len(features) else 1
        times = placeholders[row] * (width - 1) + 1
        if compact:
            times = times * (mask[row] | placeholders[row])
        sources = torch.arange(len(times), device=times.device).repeat_interleave(times)
        is_picture = placeholders[row, sources]  # each placeholder P times
        embeds.append(tokens[row, sources].masked_scatter(is_picture[:, None], features.flatten(0, 1)))
        masks.append(mask[row, sources] | is_picture)
        if labels is not None:
            learned.append(labels[row, sources].masked_fill(is_picture, IGNORED))

    def padded(rows: list[Tensor], fill: float) -> Tensor:
        side = "left" if left_padding else "right"
        return pad_sequence([row[kept] for row in rows], batch_first=True, padding_value=fill, padding_side=side)

    return Merged(padded(embeds, 0.0), padded(masks, False), padded(learned, IGNORED) if learned else None)


def expanded_positions(placeholders: Tensor, width: int) -> Tensor:
    """Rows and positions of pictures that take `width` positions each, in rows padded on the right: (N, width, 2).

    Args:
        placeholders: (B, T), boolean.
    """
    starts = (1 + placeholders * (width - 1)).cumsum(1)[placeholders] - width
    positions = starts[:, None] + torch.arange(width)
    return torch.stack([placeholders.nonzero()[:, :1].expand_as(positions), positions], dim=-1)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position ids of a mask (B, L) → (B, L): what it hides does not count, so padding on the left shifts nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def cached_length(past_key_values: Any) -> int:
    """Positions that a KV cache holds; 0 without one."""
    return 0 if past_key_values is None else int(past_key_values.get_seq_length())


def split_mask(attention_mask: Tensor | None, length: int) -> tuple[Tensor | None, Tensor | None]:
    """A mask (B, past + T) as that of what is cached, (B, past), and of `length` new positions, (B, T)."""
    if attention_mask is None:
        return None, None
    border = attention_mask.shape[1] - length
    return attention_mask[:, :border], attention_mask[:, border:]


def extend_mask(cached_mask: Tensor | None, merged: Merged, past: int) -> Tensor | None:
    """The attention mask (B, past + L) of what is cached and of the sequence that pictures have made longer.

    Args:
        cached_mask: (B, past); None where no mask was given.
    """
    if cached_mask is not None:
        return torch.cat([cached_mask.to(merged.mask.device).bool(), merged.mask], dim=1).long()
    return None if past else merged.mask.long()


# ── prefill in chunks ────────────────────────────────────────────────────────────────────────────────────────────────


def slice_positions(arguments: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
    """Positions `begin` to `end` of the language sequence in arguments of `forward`."""
    return {name: arguments[name][:, begin:end] for name in ("input_ids", "inputs_embeds") if name in arguments}


def pad_chunks(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The language sequences of several rows as one batch, padded on the right."""
    name = next(name for name in ("input_ids", "inputs_embeds") if name in chunks[0])
    return {name: pad_sequence([chunk[name][0] for chunk in chunks], batch_first=True)}
