"""The forward passes of a step: pixels → features, tokens → logits; and their chunk sizes, by the time they take.

Which requests take part, `scheduler.py` decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longview.engine.decode_batch import DecodeBatch
from longview.engine.kv_cache import KVCache
from longview.engine.score import passes_of
from longview.models.base import Model
from longview.models.transformers_seams import masks_of_any_form

MAX_CHUNK_SECONDS = 0.25
"""Seconds of a step that encoding, and as many that prefilling, may take while other requests wait."""
KEPT = 0.8
"""Of the weight of a measurement when the next one comes."""
MAX_CHUNK_TOKENS = 2048
"""Prompt tokens of a step at most."""
MAX_ATTENTION_BYTES = 64 << 20
"""Attention of one layer in fp32 that is held for evidence, about; one token's at least."""
MAX_SCORED_BYTES = 256 << 20
"""Logits of a pass over answers that are scored, about."""


@dataclass
class ChunkSize:
    """How many pictures or tokens to process in one step, by the time that the steps before took.

    A pass takes some time however small it is, and some for each picture or token: a line through the passes so far,
    of which recent ones weigh more. Without the first part a few small passes would make all that follow small.
    """

    limit: int
    fixed: float = 0.0
    """Seconds of a pass."""
    each: float = 0.0
    """Seconds of a picture or token, beside that."""
    _sums: tuple[float, ...] = (0.0,) * 5
    """Weights; amounts, their squares; seconds, and their products with amounts."""

    def current(self, others_wait: bool) -> int:
        """At most `limit`; while others wait, what takes about `MAX_CHUNK_SECONDS`."""
        if not others_wait or not self.each:
            return self.limit
        return max(1, min(self.limit, int((MAX_CHUNK_SECONDS - self.fixed) / self.each)))

    def record(self, seconds: float, amount: int) -> None:
        """A chunk of this size took so long."""
        new = (1.0, amount, amount**2, seconds, seconds * amount)
        self._sums = tuple(KEPT * old + now for old, now in zip(self._sums, new, strict=True))
        weight, amounts, squares, all_seconds, products = self._sums
        spread = weight * squares - amounts**2  # 0 where all were of one size
        slope = (weight * products - amounts * all_seconds) / spread if spread > 1e-3 * amounts**2 else 0.0
        level = (all_seconds - slope * amounts) / weight
        if slope <= 0 or level < 0:  # one size only, or noise: all of the time is for what was in it
            slope, level = all_seconds / amounts, 0.0
        self.each, self.fixed = slope, min(level, MAX_CHUNK_SECONDS / 2)


class ModelRunner:
    """Calls a family's model with rows of the KV cache. A pass that raises leaves the rows' lengths as they were."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.num_layers: int = model.language_model.config.num_hidden_layers
        self.encode_size = ChunkSize(model.config.vision_batch_size)
        """Pictures of a step."""
        self.prefill_size = ChunkSize(MAX_CHUNK_TOKENS)
        """Prompt tokens of a step, with padding."""

    def encode(
        self, frames: Sequence[Mapping[str, Tensor]], with_details: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The pixels of several frames, each with a row a crop → the features (crops, P, D) of each, in one pass.

        Args:
            with_details: Also what `Model.detail` names, (crops, P, …) of each.
        """
        began = time.perf_counter()
        pixels: dict[str, Any] = {name: torch.cat([frame[name] for frame in frames]) for name in frames[0]}
        details: list[Tensor] = []
        if with_details:
            pixels["details"] = details
        features = self.model.encode(**pixels)
        self.encode_size.record(time.perf_counter() - began, len(features))
        counts = [count_pictures(frame) for frame in frames]
        return _apart(features, counts), _apart(torch.cat(details), counts) if details else []

    def prefill(self, rows: KVCache, chunk: Mapping[str, Any], *counts: int) -> Tensor:
        """Append a chunk of the prompts to rows of one length.

        Args:
            chunk: Of `Model.prefill_chunk` or `Model.collate_chunks`, (B, T).
            counts: Positions of each row in the chunk; the rest is padding on the right.

        Returns:
            Logits (B, V) after the last of them.
        """
        began, device, begin = time.perf_counter(), self.model.device, rows.longest
        last = torch.tensor([count - 1 for count in counts], device=device)
        kept, index = last.unique(return_inverse=True)
        output = self.model(
            **chunk,
            **_side_cache(rows),
            position_ids=torch.arange(begin, begin + max(counts), device=device).expand(len(counts), -1),
            past_key_values=rows,
            use_cache=True,
            logits_to_keep=kept,
        )
        logits = output.logits[torch.arange(len(counts), device=device), index]
        rows.side_cache = getattr(output, "side_cache", rows.side_cache)
        rows.advance(*counts)
        self.prefill_size.record(time.perf_counter() - began, len(counts) * max(counts))
        return logits

    def decode(self, decode_batch: DecodeBatch, tokens: Sequence[int]) -> Tensor:
        """Append one token to each row of a decode batch → logits (B, V)."""
        device = self.model.device
        decode_batch.reserve(decode_batch.longest + 1, len(tokens))
        padding = [0] * (decode_batch.rows_per_pass - len(tokens))
        output = self.model(
            input_ids=torch.tensor([*tokens, *padding], device=device)[:, None],
            attention_mask=self._mask(decode_batch, device),
            position_ids=torch.tensor(decode_batch.lengths + padding, device=device)[:, None],
            past_key_values=decode_batch,
            use_cache=True,
            logits_to_keep=1,
            **_side_cache(decode_batch),
        )
        logits = output.logits[: len(tokens), -1]
        decode_batch.advance(1)
        return logits

    def score(self, rows: KVCache, answers: Sequence[Sequence[Sequence[int]]], logits: Tensor) -> list[list[float]]:
        """The log-probability of each row's answers. The rows keep nothing of them.

        Args:
            answers: Of each row, the tokens of its answers.
            logits: (B, V), after the last token of each row.
        """
        count = len(rows.lengths)
        first = logits.float().log_softmax(-1)
        wanted = [(row, tokens[0]) for row, of_row in enumerate(answers) for tokens in of_row]
        found = iter(first[[row for row, _ in wanted], [token for _, token in wanted]].tolist())
        scores = [[next(found) for _ in of_row] for of_row in answers]
        most = max(count, MAX_SCORED_BYTES // (4 * logits.shape[-1]))
        for answer_pass in passes_of(list(rows.lengths), answers, most):
            ids, positions, visible = answer_pass.inputs(self.model.device)
            rows.reserve(rows.longest + ids.shape[1], count)
            with rows.level(), masks_of_any_form(self.model.language_model.config):
                output = self.model(
                    input_ids=ids,
                    attention_mask=self._masked(visible[:, None]),
                    position_ids=positions,
                    past_key_values=rows,
                    use_cache=True,
                    **_side_cache(rows),
                )
            more = answer_pass.logprobs(output.logits)
            for (row, number, _), logprob in zip(answer_pass.answers, more, strict=True):
                scores[row][number] += logprob
        return scores

    def evidence(
        self, row: KVCache, sequence: Tensor, positions: Tensor, keys: int
    ) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """What tokens behind a row attend to, some at a time; see `Model.evidence`. They are appended to the row.

        Args:
            sequence: Tokens (1, T), or their embeddings (1, T, D).
            positions: Of each picture's placeholder, (N, W).
            keys: Positions and patches that a token attends to at most.
        """
        heads = self.model.language_model.config.num_attention_heads
        name = "inputs_embeds" if sequence.dim() == 3 else "input_ids"
        for tokens in sequence.split(max(1, MAX_ATTENTION_BYTES // (4 * heads * keys)), dim=1):
            begin, count = row.longest, tokens.shape[1]
            found = self.model.evidence(
                positions,
                **{name: tokens},
                **_side_cache(row),
                position_ids=torch.arange(begin, begin + count, device=self.model.device)[None],
                past_key_values=row,
                use_cache=True,
            )
            row.advance(count)
            yield found

    def _mask(self, decode_batch: DecodeBatch, device: torch.device) -> Tensor | None:
        """The attention mask of a decode pass, in the form that the model's attention implementation takes."""
        visible = decode_batch.mask(device)
        if visible is not None and self.model.config._attn_implementation.startswith("flash"):
            return visible[:, 0, 0].long()
        return None if visible is None else self._masked(visible)

    def _masked(self, visible: Tensor) -> Tensor:
        """A boolean mask as it is, or for eager attention as an additive one."""
        if self.model.config._attn_implementation != "eager":
            return visible
        floor = torch.finfo(self.model.dtype).min
        return torch.zeros(visible.shape, dtype=self.model.dtype, device=visible.device).masked_fill_(~visible, floor)


def _apart(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The rows of several frames, each in memory of its own: a view would keep the memory of all."""
    parts = tensor.split(list(counts))
    return [part.clone() if len(parts) > 1 else part for part in parts]


def count_pictures(frame: Mapping[str, Tensor]) -> int:
    """Rows of a frame's pixels."""
    return len(next(iter(frame.values())))


def _side_cache(rows: KVCache) -> dict[str, Any]:
    """The argument of `forward` for what the family keeps beside the KV cache; none where it keeps nothing."""
    return {} if rows.side_cache is None else {"side_cache": rows.side_cache}
