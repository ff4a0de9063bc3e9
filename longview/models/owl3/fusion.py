"""The idea of mPLUG-Owl3: hyper attention. Words query pictures; pictures never enter the language sequence.

    hidden (B, T, D) ── input_layernorm ──┬── q, k, v ── causal self-attention over words ───────┐
                                          └── the same q ──┐                                     ├─ fuse ── o_proj
    pictures (N, P, D) ── input_layernorm ── v_kv_proj ── K turned by MI-RoPE, V ── attention ───┘

A token sees a *prefix* of its row's pictures: those whose placeholder stands before it. So the queries of a row fall
into runs with the same number of visible pictures, each run attends to a slice of the keys, and no mask is ever made:

    token      <|im_start|>  user  \\n   ▣₀  ▣₀  ▣₀   ▣₁  ▣₁  ▣₁   What  is  this
    pictures        0         0    0    1   1   1    2   2   2     2    2    2
    run        └──── no pictures ────┘ └ keys[:P] ┘ └────── keys[:2P] ──────────┘

MI-RoPE: all P keys of a picture turn by the position of its placeholder. Keys and values of a picture are computed
once (`VisualKVCache`) and kept with the text cache; the original recomputes them for every generated token.

Source: the mPLUG-Owl3 paper (arXiv 2408.04840), section 2.2, and the released weights, which differ from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
    rotate_half,
)

from longview.models.owl3.config import Owl3Config
from longview.models.transformers_seams import CACHE_NAMES, cache_argument

SCORES_BYTES = 64 << 20
"""Attention scores held at a time, in bytes."""
BLOCK_KEYS = 4096
"""Keys of pictures attended to at a time, about: they stay in the processor's cache. Blocks are whole pictures, so that
few different shapes of matrices occur; a CPU keeps compiled code and memory for each."""
DENSE_BYTES = 16 << 20
"""Rows whose padded keys, values and mask stay below this are attended to as one batch, not one by one."""


# ── which pictures a token sees ──────────────────────────────────────────────────────────────────────────────────────


class Run(NamedTuple):
    """Consecutive queries of one row that see the same pictures: tokens `begin:end` see `first … pictures`."""

    begin: int
    end: int
    pictures: int
    first: int = 0  # above 0 where the row holds several samples


def runs_of(starts: Sequence[int], begin: int, length: int, inclusive: bool, borders: Sequence[int] = ()) -> list[Run]:
    """Split the queries `begin … begin + length` of a row into runs; queries that see no picture belong to none.

    Args:
        starts: Ascending indices of the placeholders' first tokens, in the row that `begin` counts in.
        inclusive: The token at a placeholder's start sees its picture already (241101), or the next one does.
        borders: Where further samples of a packed row begin: from there on, pictures before it are not seen.
    """
    first_seen = [start if inclusive else start + 1 for start in starts]
    changes = sorted({begin, begin + length, *(t for t in (*first_seen, *borders) if begin < t < begin + length)})
    runs = []
    for left, right in itertools.pairwise(changes):
        visible = sum(t <= left for t in first_seen)
        own = max((border for border in borders if border <= left), default=0)
        first = sum(start < own for start in starts)
        if visible > first:
            runs.append(Run(left - begin, right - begin, visible, first))
    return runs


# ── keys and values of the pictures ──────────────────────────────────────────────────────────────────────────────────


@dataclass
class RowPictures:
    """The pictures of one row: where their placeholders stand, and their keys and values per hyper layer."""

    starts: list[int] = field(default_factory=list)
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer → K, V, each (Hkv, n·P, D)
    borders: list[int] = field(default_factory=list)  # of a packed row: where its further samples begin

    def copy(self) -> RowPictures:
        """A wall of its own with the same pictures; the tensors are shared."""
        return RowPictures(list(self.starts), dict(self.states), list(self.borders))

    def until(self, position: int, patches: int) -> RowPictures:
        """The pictures that stand before a position; nothing is copied."""
        starts = [start for start in self.starts if start < position]
        keys = len(starts) * patches
        return RowPictures(starts, {layer: (k[:, :keys], v[:, :keys]) for layer, (k, v) in self.states.items() if keys})


@dataclass
class PendingPictures:
    """Pictures on their way into a side_cache: projected by the first forward pass that meets them, then let go."""

    features: Tensor  # (N, P, D), those of all walls, wall after wall
    positions: list[list[int]]  # one list of MI-RoPE positions a wall
    moved: dict[torch.device, Tensor] = field(default_factory=dict)

    def on(self, device: torch.device) -> Tensor:
        """The features on a device; copied there once, however many layers live on it."""
        if device not in self.moved:
            self.moved[device] = self.features.to(device)
        return self.moved[device]


class VisualKVCache:
    """What the rows of a batch can look at. Rows may share a wall (the beams of one question do).

    It lives as long as the text cache it belongs to; without a cache, for one forward pass.
    """

    def __init__(self, num_walls: int, patches: int) -> None:
        self.walls = [RowPictures() for _ in range(num_walls)]
        self.patches = patches
        self.hanging: PendingPictures | None = None
        self._padded: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # kept by `padded` while nothing changes
        self._first_seen: dict[int, Tensor] = {}

    @classmethod
    def joined(cls, rows: Sequence[VisualKVCache | None]) -> VisualKVCache:
        """The walls of several side_caches as one batch; None is a row without pictures."""
        given = [side_cache for side_cache in rows if side_cache is not None]
        assert all(len(side_cache.walls) == 1 and side_cache.hanging is None for side_cache in given)
        batch = cls(0, given[0].patches)
        batch.walls = [RowPictures() if side_cache is None else side_cache.walls[0] for side_cache in rows]
        return batch

    def row(self, number: int) -> VisualKVCache | None:
        """The pictures of one row, copied, so that they do not keep those of the others; None if there are none."""
        wall = self.walls[number]
        if not wall.starts:
            return None
        alone = VisualKVCache(0, self.patches)
        states = {layer: (key.clone(), value.clone()) for layer, (key, value) in wall.states.items()}
        alone.walls = [RowPictures(list(wall.starts), states)]
        return alone

    def until(self, position: int) -> VisualKVCache:
        """The pictures that stand before a position; nothing is copied."""
        before = VisualKVCache(0, self.patches)
        before.walls = [wall.until(position, self.patches) for wall in self.walls]
        return before

    @property
    def num_pictures(self) -> int:
        return sum(len(wall.starts) for wall in self.walls)

    def pictures_of_row(self, row: int, num_rows: int) -> int:
        """Rows are the walls repeated in place (`repeat_interleave`), as generation expands beams."""
        return row * len(self.walls) // num_rows

    def hang(self, features: Tensor, starts: list[list[int]], positions: list[list[int]]) -> None:
        """Announce new pictures: features (N, P, D), and for each row where they stand and how far their keys turn."""
        if len(self.walls) != len(starts):  # rows that shared a wall part ways
            self.walls = [self.walls[self.pictures_of_row(row, len(starts))].copy() for row in range(len(starts))]
        for wall, new in zip(self.walls, starts, strict=True):
            wall.starts.extend(new)
        self.hanging = PendingPictures(features, positions)
        self._padded, self._first_seen = {}, {}

    def part(self, borders: Sequence[list[int]]) -> None:
        """Keep the samples of packed rows apart: where each row's further samples begin."""
        for wall, new in zip(self.walls, borders, strict=True):
            wall.borders = new

    def settled(self) -> None:
        """Every hyper layer has projected the new pictures; their features are no longer needed."""
        self.hanging = None

    def states(self, layer: int, project: Projection, device: torch.device, keep: bool) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each wall in a layer, (Hkv, n·P, D) each; new pictures are projected by `project`.

        Args:
            keep: Remember them for later calls. Off in training, where checkpointed layers run twice.
        """
        if self.hanging is None:
            key, value = next(wall.states[layer] for wall in self.walls if layer in wall.states)
            return [wall.states.get(layer, (key[:, :0], value[:, :0])) for wall in self.walls]
        positions = self.hanging.positions
        key, value = project(self.hanging.on(device), list(itertools.chain.from_iterable(positions)))
        sizes = [len(row) * self.patches for row in positions]
        found = []
        for wall, *new in zip(self.walls, key.split(sizes, dim=1), value.split(sizes, dim=1), strict=True):
            if layer in wall.states:
                new = [torch.cat(pair, dim=1) for pair in zip(wall.states[layer], new, strict=True)]
            if keep:
                wall.states[layer] = (new[0], new[1])
            found.append((new[0], new[1]))
        return found

    def padded(self, layer: int, pictures: list[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
        """What `states` gave for a layer, padded to keys and values (B, Hkv, M, D); made once while nothing changes."""
        if (layer, batch) in self._padded:
            return self._padded[layer, batch]
        walls = [self.pictures_of_row(row, batch) for row in range(batch)]
        if all(keys.shape == pictures[0][0].shape for keys, _ in pictures):
            keys, values = (torch.stack([kv[i] for kv in pictures])[walls] for i in (0, 1))
        else:
            pad = nn.utils.rnn.pad_sequence
            keys, values = (pad([kv[i].transpose(0, 1) for kv in pictures], True)[walls] for i in (0, 1))
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if self.hanging is None:
            self._padded[layer, batch] = keys, values
        return keys, values

    def visible(self, batch: int, begin: int, length: int, num_keys: int, inclusive: bool, device: Any) -> Tensor:
        """Which of the padded keys the tokens `begin … begin + length` of each row see: bool (B, 1, T, M)."""
        if batch not in self._first_seen:
            never = torch.iinfo(torch.long).max
            first = torch.full((batch, num_keys // self.patches), never)
            for row in range(batch):
                starts = torch.tensor(self.walls[self.pictures_of_row(row, batch)].starts, dtype=torch.long)
                first[row, : len(starts)] = starts if inclusive else starts + 1
            self._first_seen[batch] = first.repeat_interleave(self.patches, -1)[:, None, None].to(device)
        tokens = torch.arange(begin, begin + length, device=device)[:, None]
        seen = self._first_seen[batch].to(device) <= tokens
        if any(wall.borders for wall in self.walls):
            seen &= tokens < self._gone(batch, num_keys).to(device)
        return seen

    def _gone(self, batch: int, num_keys: int) -> Tensor:
        """Where the sample ends that each of the padded keys belongs to: (B, 1, 1, M)."""
        never = torch.iinfo(torch.long).max
        gone = torch.full((batch, num_keys // self.patches), never)
        for row in range(batch):
            wall = self.walls[self.pictures_of_row(row, batch)]
            ends = torch.tensor([*wall.borders, never])
            gone[row, : len(wall.starts)] = ends[torch.searchsorted(ends, torch.tensor(wall.starts), right=True)]
        return gone.repeat_interleave(self.patches, -1)[:, None, None]

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for wall in self.walls for pair in wall.states.values() for t in pair)


Projection = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]
"""Features (n, P, D) and n positions → keys and values, (Hkv, n·P, head width) each."""


# ── attention without a mask ─────────────────────────────────────────────────────────────────────────────────────────


class PrefixAttention(torch.autograd.Function):
    """Attention of one row over prefixes of its pictures' keys, with a streaming softmax; exact, and differentiable.

    Only `SCORES_BYTES` of scores exist at a time, forwards and backwards, whatever the number of pictures.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: list[Run], patches: int
    ) -> tuple[Tensor, Tensor]:
        """query (Hkv, G, T, D), scaled; key, value (Hkv, M, D) → output (Hkv, G, T, D) and log-sum-exp (Hkv, G, T).

        Both are fp32. Where a token sees no picture the output is 0 and the log-sum-exp −∞.
        """
        output = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        lse = torch.full(query.shape[:-1], -torch.inf, dtype=torch.float32, device=query.device)
        for run in runs:
            q = query[:, :, run.begin : run.end].flatten(1, 2)  # (Hkv, G·r, D)
            peak = q.new_full((*q.shape[:2], 1), -torch.inf, dtype=torch.float32)
            total, acc = torch.zeros_like(peak), torch.zeros_like(q, dtype=torch.float32)
            for block in _blocks(run, patches, rows=q.shape[0] * q.shape[1]):
                scores = (q @ key[:, block].transpose(1, 2)).float()
                new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
                weights, fade = scores.sub_(new_peak).exp_(), (peak - new_peak).exp_()
                total = total * fade + weights.sum(-1, keepdim=True)
                acc = acc * fade + (weights.to(value.dtype) @ value[:, block]).float()
                peak = new_peak
            shape = (query.shape[0], query.shape[1], run.end - run.begin)
            output[:, :, run.begin : run.end] = (acc / total).view(*shape, -1)
            lse[:, :, run.begin : run.end] = (peak + total.log()).view(shape)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.runs, ctx.patches = runs, patches
        return output, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        grad_output, grad_lse = grads
        grad_query = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        grad_key = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
        grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        # d score = weight · (d weight − Σ weight · d weight + d lse), and Σ weight · d weight = output · d output
        shift = grad_lse - (output * grad_output).sum(-1)
        for run in ctx.runs:
            rows = slice(run.begin, run.end)
            q = query[:, :, rows].flatten(1, 2)
            g = grad_output[:, :, rows].flatten(1, 2)
            s, log_total = shift[:, :, rows].flatten(1, 2), lse[:, :, rows].flatten(1, 2)
            dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
            for block in _blocks(run, ctx.patches, rows=q.shape[0] * q.shape[1]):
                k, v = key[:, block], value[:, block]
                weights = ((q @ k.transpose(1, 2)).float() - log_total.unsqueeze(-1)).exp_()
                grad_value[:, block] += weights.transpose(1, 2) @ g
                grad_scores = weights * (g @ v.float().transpose(1, 2) + s.unsqueeze(-1))
                dq += grad_scores @ k.float()
                grad_key[:, block] += grad_scores.transpose(1, 2) @ q.float()
            grad_query[:, :, rows] = dq.view(grad_query[:, :, rows].shape)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def attention_of_one(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`PrefixAttention` of a single token that sees all keys: what decoding does at each step, so it reads them once.

    query (Hkv, G, 1, D), scaled; key, value (Hkv, M, D) → output (Hkv, G, 1, D) and log-sum-exp (Hkv, G, 1), fp32.
    """
    rows = query.flatten(1, 2)  # (Hkv, G, D)
    # CPUs multiply a matrix by eight rows faster than by seven, and by rows of `linear` faster than by a batch of them
    padded = nn.functional.pad(rows, (0, 0, 0, -rows.shape[1] % 8))
    scores = torch.stack([nn.functional.linear(*pair) for pair in zip(padded, key, strict=True)])
    scores = scores[:, : rows.shape[1]].float()  # (Hkv, G, M)
    weights = scores.softmax(-1)
    lse = scores.amax(-1) - weights.amax(-1).log()
    return (weights.to(value.dtype) @ value).float().unsqueeze(2), lse.unsqueeze(2)


def _blocks(run: Run, patches: int, rows: int) -> list[slice]:
    """The keys of a run's pictures in blocks, for so many rows of queries."""
    most = min(BLOCK_KEYS, SCORES_BYTES // (4 * rows))
    size = most // patches * patches or max(1, most)
    first, last = run.first * patches, run.pictures * patches
    return [slice(begin, min(begin + size, last)) for begin in range(first, last, size)]


def text_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention over words that also tells the log-sum-exp, so that pictures can join its softmax afterwards.

    Args:
        query: (B, Hkv, G, T, D), scaled.
        key, value: (B, Hkv, S, D).
        mask: What `transformers` made for the layer: None (causal), boolean or additive (B or 1, 1, T, S), or padding.

    Returns:
        Output (B, Hkv, G, T, D) and log-sum-exp (B, Hkv, G, T), fp32.
    """
    length, num_keys = query.shape[3], key.shape[2]
    mask = text_mask(mask, length, num_keys, query.device).unsqueeze(2)  # (B or 1, 1, 1, T, S)
    size = max(1, SCORES_BYTES // (4 * query.shape[:3].numel() * num_keys))
    outputs, totals = [], []
    for rows in (slice(begin, begin + size) for begin in range(0, length, size)):
        scores = (query[:, :, :, rows] @ key.unsqueeze(2).transpose(-1, -2)).float()
        seen = mask[:, :, :, rows]
        # a finite floor keeps padding, which sees nothing, free of NaN
        floor = torch.finfo(torch.float32).min
        scores = scores.masked_fill(~seen, floor) if seen.dtype == torch.bool else (scores + seen).clamp(min=floor)
        lse = scores.logsumexp(-1)
        outputs.append(((scores - lse.unsqueeze(-1)).exp().to(value.dtype) @ value.unsqueeze(2)).float())
        totals.append(lse)
    return torch.cat(outputs, dim=3), torch.cat(totals, dim=3)


def text_mask(mask: Tensor | None, length: int, num_keys: int, device: torch.device) -> Tensor:
    """What `transformers` made for a layer as one kind of mask, boolean or additive: (B or 1, 1, T, S)."""
    if mask is None or mask.dim() == 2:  # flash attention is handed the padding alone, (B, S)
        causal = torch.ones(length, num_keys, dtype=torch.bool, device=device).tril(num_keys - length)
        mask = causal[None, None] if mask is None else causal & mask[:, None, None, :num_keys].bool()
    return mask[:, :, :, :num_keys]


# ── the layers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class HyperAttention(nn.Module):
    """Qwen2's self-attention, plus keys and values of the pictures, and the release's way of fusing the two."""

    is_causal = True  # read, with the next three, by the implementations in ALL_ATTENTION_FUNCTIONS

    def __init__(self, config: Owl3Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or width // heads
        self.num_key_value_groups = heads // kv_heads
        self.scaling = self.head_dim**-0.5
        sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding else None
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=True)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=True)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)
        self.v_kv_proj = nn.Linear(width, 2 * kv_heads * self.head_dim, bias=True)
        if config.gate == "token":
            self.gate_proj = nn.Sequential(nn.Linear(self.head_dim, self.head_dim), nn.Sigmoid())
        elif config.gate == "vector":
            self.gate = nn.Parameter(torch.zeros(config.hidden_size))

    def project_pictures(self, normed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features (n, P, hidden) and positions (n,) → keys, turned by MI-RoPE, and values: (Hkv, n·P, D).

        The projection's rows interleave keys and values head by head: [K₀ V₀ K₁ V₁ …].
        """
        states = self.v_kv_proj(normed).unflatten(-1, (-1, 2, self.head_dim))  # (n, P, Hkv, 2, D)
        key, value = states[..., 0, :], states[..., 1, :]
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, self.head_dim, 2, device=key.device).float() / self.head_dim)
        angles = (positions.to(key.device).float()[:, None] * frequencies).repeat(1, 2)[:, None, None]  # (n, 1, 1, D)
        turned = key.float() * angles.cos() + rotate_half(key.float()) * angles.sin()
        return turned.to(key.dtype).flatten(0, 1).transpose(0, 1), value.flatten(0, 1).transpose(0, 1)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        side_cache: VisualKVCache | None = None,
        pictures: list[tuple[Tensor, Tensor]] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, T, hidden), and keys and values of each wall of the side_cache → (B, T, hidden)."""
        batch, length = hidden_states.shape[:2]
        heads = (batch, length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (B, H, T, D)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)  # (B, Hkv, T, D)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        begin = 0
        if past_key_values is not None:
            begin = int(past_key_values.get_seq_length(self.layer_idx))
            key, value = past_key_values.update(key, value, self.layer_idx)
        if side_cache is None or pictures is None:
            context = self._attend_text(query, key, value, attention_mask, **kwargs)
            return self.o_proj(context.reshape(batch, length, -1).contiguous())

        dense = self.config._attn_implementation == "eager" or self._is_small(batch, length, pictures)
        if self.config.fused and dense:
            fused = self._attend_all(query, key, value, attention_mask, side_cache, pictures, begin)
            return self.o_proj(fused.transpose(1, 2).reshape(batch, length, -1))
        attend = self._attend_masked if dense else self._attend_by_runs
        grouped = query.unflatten(1, (key.shape[1], -1))  # (B, Hkv, G, T, D)
        seen, seen_lse = attend(grouped * self.scaling, side_cache, pictures, begin)
        if self.config.fused:
            read, read_lse = text_attention(grouped * self.scaling, key, value, attention_mask)
            share = torch.sigmoid(seen_lse - read_lse).unsqueeze(-1)
            fused = read + share * (seen - read)
        else:
            context = self._attend_text(query, key, value, attention_mask, **kwargs)
            read = context.transpose(1, 2).unflatten(1, (key.shape[1], -1))  # (B, Hkv, G, T, D)
            looks = torch.isfinite(seen_lse).unsqueeze(-1)
            gate = torch.where(looks, self._gate(read), 0.0)  # a token before the first picture keeps what it read
            fused = read * (1 - gate) + seen.to(read.dtype) * gate
        fused = fused.flatten(1, 2).transpose(1, 2).reshape(batch, length, -1)  # (B, T, H·D)
        return self.o_proj(fused.to(hidden_states.dtype))

    def _attend_text(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Causal self-attention over the text, in the implementation that the model is set to: (B, T, H, D)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        kwargs |= {
            "scaling": self.scaling,
            "dropout": self.config.attention_dropout if self.training else 0.0,
            "sliding_window": self.sliding_window,
        }
        return attend(self, query, key, value, mask, **kwargs)[0]

    def _gate(self, read: Tensor) -> Tensor:
        """How much of the picture replaces what was read, in (0, 1), broadcast to (B, Hkv, G, T, D)."""
        if self.config.gate == "token":
            return self.gate_proj(read)
        return torch.sigmoid(self.gate).view(1, read.shape[1], read.shape[2], 1, self.head_dim)

    def _attend_by_runs(
        self, query: Tensor, side_cache: VisualKVCache, pictures: list[tuple[Tensor, Tensor]], begin: int
    ) -> tuple[Tensor, Tensor]:
        outputs, totals = [], []
        for row in range(query.shape[0]):
            wall = side_cache.pictures_of_row(row, query.shape[0])
            hung = side_cache.walls[wall]
            runs = runs_of(hung.starts, begin, query.shape[3], self.config.fused, hung.borders)
            key, value = pictures[wall]
            asking = query[row].to(key.dtype)  # they differ under autocast
            scores = 4 * query.shape[1] * (query.shape[2] + 7) * key.shape[1]
            sees_all = query.shape[3] == 1 and runs and runs[0].pictures * side_cache.patches == key.shape[1]
            if sees_all and scores <= SCORES_BYTES and not torch.is_grad_enabled():
                output, lse = attention_of_one(asking, key, value)
            else:
                output, lse = PrefixAttention.apply(asking, key, value, runs, side_cache.patches)
            outputs.append(output)
            totals.append(lse)
        return torch.stack(outputs), torch.stack(totals)

    @staticmethod
    def _is_small(batch: int, length: int, pictures: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether several rows are better looked at as one padded batch with a mask than row by row, run by run."""
        heads, keys, width = max((key for key, _ in pictures), key=lambda key: key.shape[1]).shape
        return batch > 1 and 4 * batch * keys * (2 * heads * width + length) <= DENSE_BYTES

    def _attend_all(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        side_cache: VisualKVCache,
        pictures: list[tuple[Tensor, Tensor]],
        begin: int,
    ) -> Tensor:
        """One softmax over pictures and words, (B, H, T, D), with the keys side by side: [pictures; words]."""
        keys, values, visible = self._padded(side_cache, pictures, query.shape[0], query.shape[2], begin)
        readable = text_mask(mask, query.shape[2], key.shape[2], query.device)
        if readable.dtype != torch.bool:
            readable = readable >= 0
        seen = torch.cat([visible, readable.expand(len(visible), -1, -1, -1)], dim=-1)
        # a finite floor keeps padding, which sees nothing, free of NaN
        bias = query.new_zeros(seen.shape).masked_fill_(~seen, torch.finfo(query.dtype).min)
        return nn.functional.scaled_dot_product_attention(
            query,
            torch.cat([keys, key], dim=2),
            torch.cat([values, value], dim=2),
            attn_mask=bias,
            scale=self.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _attend_masked(
        self, query: Tensor, side_cache: VisualKVCache, pictures: list[tuple[Tensor, Tensor]], begin: int
    ) -> tuple[Tensor, Tensor]:
        """`_attend_by_runs` with one padded batch and a mask: plain to read, grows as T·N·P."""
        keys, values, visible = self._padded(side_cache, pictures, query.shape[0], query.shape[3], begin)
        visible = visible.unsqueeze(2)  # (B, 1, 1, T, M)
        blind = ~visible.any(-1, keepdim=True)
        scores = query.float() @ keys.float().transpose(-1, -2).unsqueeze(2)  # (B, Hkv, G, T, M)
        # blind tokens look at everything first and are dropped after: a softmax over nothing has no gradient
        scores = scores.masked_fill(~(visible | blind), -torch.inf)
        lse = scores.logsumexp(-1, keepdim=True)
        output = (scores - lse).exp() @ values.float().unsqueeze(2)
        return output.masked_fill(blind, 0.0), lse.masked_fill(blind, -torch.inf).squeeze(-1)

    def _padded(
        self, side_cache: VisualKVCache, pictures: list[tuple[Tensor, Tensor]], batch: int, length: int, begin: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of the rows' pictures, (B, Hkv, M, D), and who sees which: bool (B, 1, T, M)."""
        keys, values = side_cache.padded(self.layer_idx, pictures, batch)
        return keys, values, side_cache.visible(batch, begin, length, keys.shape[2], self.config.fused, keys.device)


class HyperDecoderLayer(Qwen2DecoderLayer):
    """A Qwen2 block whose input norm is shared by words and pictures, and whose attention sees both."""

    looks = True

    def __init__(self, config: Owl3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = HyperAttention(config, layer_idx)

    def project(self, features: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Projector features (n, P, hidden) → keys and values (Hkv, n·P, D). See `HyperAttention.project_pictures`."""
        turns = torch.tensor(positions, dtype=torch.long)
        size = len(positions) if torch.is_grad_enabled() else self.self_attn.config.vision_batch_size
        if len(positions) <= size:
            return self.self_attn.project_pictures(self.input_layernorm(features), turns)
        # fp32 intermediates of 400 pictures would outweigh the result: write chunk by chunk into its place
        heads, width = self.self_attn.config.num_key_value_heads, self.self_attn.head_dim
        patches = features.shape[1]
        key, value = (features.new_empty(heads, len(positions) * patches, width) for _ in range(2))
        for begin in range(0, len(positions), size):
            chunk, place = slice(begin, begin + size), slice(begin * patches, (begin + size) * patches)
            normed = self.input_layernorm(features[chunk])
            key[:, place], value[:, place] = self.self_attn.project_pictures(normed, turns[chunk])
        return key, value

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        side_cache: VisualKVCache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, T, hidden) → (B, T, hidden); the text's cache comes under transformers' name for it."""
        assert position_embeddings is not None
        past_key_values, pictures = cache_argument(kwargs), None
        if side_cache is not None:
            keep = past_key_values is not None
            pictures = side_cache.states(self.self_attn.layer_idx, self.project, hidden_states.device, keep)
        passed = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            side_cache=side_cache,
            pictures=pictures,
            **passed,
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
