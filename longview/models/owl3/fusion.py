"""The idea of mPLUG-Owl3: hyper attention. Text tokens attend to pictures, which never enter the language sequence.

    hidden (B, T, hidden) ── input_layernorm ──┬── q, k, v ── causal self-attention over text ─────────┐
                                               └── the same q ──┐                                      ├─ fuse ── o_proj
    features (N, P, hidden) ── input_layernorm ── v_kv_proj ── K rotated by MI-RoPE, V ── attention ───┘

With Kt, Vt of the text tokens up to a token and Kv, Vv of the pictures whose placeholders stand before it, a head of
width D computes

    241101            softmax(q [Kv Kt]ᵀ/√D) [Vv Vt]                                `joint_attention`
    240728, 241014    (1 − g) · softmax(q Ktᵀ/√D) Vt + g · softmax(q Kvᵀ/√D) Vv     `visual_attention`, `gate_contexts`
                      g = sigmoid(W · text context + b), by token and head (240728), or sigmoid(w) (241014)
                      g = 0 for a token that no picture stands before

MI-RoPE: the P keys of a picture are rotated by the position of its placeholder. This file is the dense reference, which
also runs where little is to be attended to; `attention.py` has the kernels that hold no mask of tokens times keys, and
`visual_kv_cache.py` keeps Kv and Vv.

Source: the mPLUG-Owl3 paper (arXiv 2408.04840), section 2.2, and the released weights, which differ from it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from longview.models.owl3.attention import attend_row, attend_text, runs_of, text_mask
from longview.models.owl3.config import Owl3Config
from longview.models.owl3.int8 import Int8KeyValue, channels_of
from longview.models.owl3.visual_kv_cache import KeyValue, StoredKeyValue, VisualKVCache, plain
from longview.models.transformers_seams import (
    CACHE_NAME,
    Qwen2DecoderLayer,
    attention_implementation,
)

PROJECTED_BYTES = 4 << 20
"""Of features in fp32 that a CPU projects at a time: they stay in its cache, and need no fresh memory each time."""
NORMED_ROWS = {"cpu": 64}
"""Of features, by type of device: what a CPU keeps in its cache, where a GPU would wait for launches."""
DENSE_BYTES = 16 << 20
"""Rows whose padded visual keys, values and mask stay below this are computed densely as one batch, not one by one."""


# ── the equations, dense ─────────────────────────────────────────────────────────────────────────────────────────────


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE, the two halves of the last dimension being the pairs' first and second numbers."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


def joint_attention(
    query: Tensor, text: KeyValue, text_visible: Tensor, visual: KeyValue, visual_visible: Tensor, scale: float
) -> Tensor:
    """One softmax over pictures and text, with their keys concatenated: (B, H, T, D).

    Args:
        query: (B, H, T, D).
        text: Keys and values (B, Hkv, S, D). visual: (B, Hkv, M, D).
        text_visible: Bool (B or 1, 1, T, S). visual_visible: bool (B, 1, T, M).
    """
    visible = torch.cat([visual_visible, text_visible.expand(len(visual_visible), -1, -1, -1)], dim=-1)
    # a finite floor keeps padding, which attends to nothing, free of NaN
    bias = query.new_zeros(visible.shape).masked_fill_(~visible, torch.finfo(query.dtype).min)
    key, value = (torch.cat(pair, dim=2) for pair in zip(visual, text, strict=True))
    grouped = query.shape[1] != key.shape[1]
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=scale, enable_gqa=grouped
    )


def visual_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """A softmax over the pictures alone. Where none is visible, the output is 0 and the log-sum-exp −∞.

    query (B, Hkv, G, T, D), scaled; key, value (B, Hkv, M, D); visible bool (B, 1, T, M)
    → output (B, Hkv, G, T, D) and log-sum-exp (B, Hkv, G, T), fp32.
    """
    visible = visible.unsqueeze(2)  # (B, 1, 1, T, M)
    sees_none = ~visible.any(-1, keepdim=True)
    scores = query.float() @ key.float().transpose(-1, -2).unsqueeze(2)  # (B, Hkv, G, T, M)
    # tokens that see no picture attend to all and are set to 0 after: a softmax over nothing has NaN gradients
    scores = scores.masked_fill(~(visible | sees_none), -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    output = (scores - lse).exp() @ value.float().unsqueeze(2)
    return output.masked_fill(sees_none, 0.0), lse.masked_fill(sees_none, -torch.inf).squeeze(-1)


def gate_contexts(text: Tensor, visual: Tensor, gate: Tensor) -> Tensor:
    """240728 and 241014: the contexts of two softmaxes, mixed by a gate."""
    return text * (1 - gate) + visual.to(text.dtype) * gate


def merge_softmaxes(text: Tensor, text_lse: Tensor, visual: Tensor, visual_lse: Tensor) -> Tensor:
    """241101 from two softmaxes: the context of one over the keys of both, by the mass (log-sum-exp) of each."""
    visual_share = torch.sigmoid(visual_lse - text_lse).unsqueeze(-1)
    return text + visual_share * (visual - text)


# ── the block ────────────────────────────────────────────────────────────────────────────────────────────────────────


class HyperAttention(nn.Module):
    """Qwen2's self-attention, plus keys and values of the pictures, and the release's way of fusing the two."""

    is_causal = True  # with num_key_value_groups, used by transformers' attention implementations

    def __init__(self, config: Owl3Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.joint_softmax = config, layer_idx, config.joint_softmax
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
            self.gate = nn.Parameter(torch.zeros(width))

    def project_pictures(self, normed: Tensor, positions: Tensor) -> KeyValue:
        """Normalised features (n, P, hidden) and positions (n,) → keys, rotated by MI-RoPE, and values: (Hkv, n·P, D).

        The projection's rows interleave keys and values head by head: [K₀ V₀ K₁ V₁ …].
        """
        states = self.v_kv_proj(normed).unflatten(-1, (-1, 2, self.head_dim))  # (n, P, Hkv, 2, D)
        key, value = states[..., 0, :], states[..., 1, :]
        theta = self.config.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, self.head_dim, 2, device=key.device).float() / self.head_dim)
        angles = (positions.to(key.device).float()[:, None] * frequencies).repeat(1, 2)[:, None, None]  # (n, 1, 1, D)
        rotated = rotate(key.float(), angles.cos(), angles.sin()).to(key.dtype)
        return rotated.flatten(0, 1).transpose(0, 1), value.flatten(0, 1).transpose(0, 1)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        kv_cache: Any = None,
        side_cache: VisualKVCache | None = None,
        visual: list[StoredKeyValue] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, T, hidden) → (B, T, hidden).

        Args:
            attention_mask: As transformers makes it for the implementation of attention that is set.
            kv_cache: transformers' cache of the text tokens' keys and values.
            visual: Keys and values of each row of `side_cache` in this layer, as they are stored.
        """
        batch, length = hidden_states.shape[:2]
        heads = (batch, length, -1, self.head_dim)
        cos, sin = position_embeddings[0].unsqueeze(1), position_embeddings[1].unsqueeze(1)
        query = rotate(self.q_proj(hidden_states).view(heads).transpose(1, 2), cos, sin)  # (B, H, T, D)
        key = rotate(self.k_proj(hidden_states).view(heads).transpose(1, 2), cos, sin)  # (B, Hkv, T, D)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        begin = 0
        if kv_cache is not None:
            if side_cache is not None:
                begin = int(kv_cache.get_seq_length(self.layer_idx))
            key, value = kv_cache.update(key, value, self.layer_idx)
        if side_cache is not None and visual is not None and side_cache.attended is not None:
            attended = self._attended(query, (key, value), attention_mask, side_cache, visual, begin)
            side_cache.attended[self.layer_idx] = attended
        if side_cache is None or visual is None:
            context = self._attend_text(query, key, value, attention_mask, **kwargs)
        elif self.joint_softmax:
            fused = self._fuse_jointly(query, (key, value), attention_mask, side_cache, visual, begin)
            context = fused.to(hidden_states.dtype)
        else:
            text = self._attend_text(query, key, value, attention_mask, **kwargs)
            context = self._fuse_by_gate(query, text, side_cache, visual, begin).to(hidden_states.dtype)
        return self.o_proj(context.reshape(batch, length, -1))

    def _attend_text(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Causal self-attention over text, in the implementation of attention that is set: (B, T, H, D)."""
        kwargs["dropout"] = self.config.attention_dropout if self.training else 0.0
        kwargs |= {"scaling": self.scaling, "sliding_window": self.sliding_window}
        attend = attention_implementation(self.config)
        return attend(self, query, key, value, mask, **kwargs)[0]

    def _fuse_jointly(
        self,
        query: Tensor,
        text: KeyValue,
        mask: Tensor | None,
        side_cache: VisualKVCache,
        visual: list[StoredKeyValue],
        begin: int,
    ) -> Tensor:
        """One softmax over pictures and text: (B, T, H, D)."""
        if self._is_dense(query, visual):
            text_visible = text_mask(mask, query.shape[2], text[0].shape[2], query.device)
            text_visible = text_visible if text_visible.dtype == torch.bool else text_visible >= 0
            padded, visible = self._padded(side_cache, visual, query, begin)
            return joint_attention(query, text, text_visible, padded, visible, self.scaling).transpose(1, 2)
        grouped = query.unflatten(1, (text[0].shape[1], -1))  # (B, Hkv, G, T, D)
        visual_context = self._attend_by_runs(grouped * self.scaling, side_cache, visual, begin)
        text_context = attend_text(grouped * self.scaling, *text, mask)
        return merge_softmaxes(*text_context, *visual_context).flatten(1, 2).transpose(1, 2)

    def _fuse_by_gate(
        self, query: Tensor, text: Tensor, side_cache: VisualKVCache, visual: list[StoredKeyValue], begin: int
    ) -> Tensor:
        """Self-attention's context (B, T, H, D) and that of the pictures, mixed by the gate: (B, T, H, D)."""
        grouped = query.unflatten(1, (-1, self.num_key_value_groups)) * self.scaling  # (B, Hkv, G, T, D)
        if self._is_dense(query, visual):
            padded, visible = self._padded(side_cache, visual, query, begin)
            visual_context, lse = visual_attention(grouped, *padded, visible)
        else:
            visual_context, lse = self._attend_by_runs(grouped, side_cache, visual, begin)
        text_context = text.transpose(1, 2).unflatten(1, grouped.shape[1:3])  # (B, Hkv, G, T, D)
        gate = torch.where(torch.isfinite(lse).unsqueeze(-1), self._gate(text_context), 0.0)
        return gate_contexts(text_context, visual_context, gate).flatten(1, 2).transpose(1, 2)

    def _gate(self, text_context: Tensor) -> Tensor:
        """240728 and 241014: the part of the pictures' context, by channel, for that of text (B, Hkv, G, T, D)."""
        if self.config.gate == "token":
            return self.gate_proj(text_context)
        return torch.sigmoid(self.gate).view(1, *text_context.shape[1:3], 1, self.head_dim)

    def _attended(
        self,
        query: Tensor,
        text: KeyValue,
        mask: Tensor | None,
        side_cache: VisualKVCache,
        visual: list[StoredKeyValue],
        begin: int,
    ) -> Tensor:
        """What part of the fused context each visual key is, the mean over heads, of one row: (T, M), fp32.

        241101 has the visual part of the joint softmax. The others have the softmax over pictures times the gate, which
        is by channel: its mean.
        """
        grouped = query.unflatten(1, (text[0].shape[1], -1)) * self.scaling  # (1, Hkv, G, T, D)
        keys, _ = plain(visual[0])
        visible = side_cache.visible(1, begin, query.shape[2], keys.shape[1], self.joint_softmax, keys.device)
        scores = (grouped.to(keys.dtype) @ keys.transpose(-1, -2).unsqueeze(1)).float()  # (1, Hkv, G, T, M)
        scores = scores.masked_fill(~visible.unsqueeze(2), -torch.inf)
        text_context, text_lse = attend_text(grouped, *text, mask)
        lse = scores.logsumexp(-1)
        if self.joint_softmax:
            weights = (scores - torch.logaddexp(lse, text_lse).unsqueeze(-1)).exp()
        else:
            gate = self._gate(text_context.to(query.dtype)).float().mean(-1, keepdim=True)
            weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num() * gate
        return weights.mean((0, 1, 2))

    def _is_dense(self, query: Tensor, visual: list[StoredKeyValue]) -> bool:
        """Whether to compute with one padded batch and a mask: several rows with few keys, or where eager is set."""
        if self.config._attn_implementation == "eager":
            return True
        batch, length = query.shape[0], query.shape[2]
        if batch == 1 or any(isinstance(key_value, Int8KeyValue) for key_value in visual):
            return False
        heads, keys, width = max((key for key, _ in map(plain, visual)), key=lambda key: key.shape[1]).shape
        return 4 * batch * keys * (2 * heads * width + length) <= DENSE_BYTES

    def _padded(
        self, side_cache: VisualKVCache, visual: list[StoredKeyValue], query: Tensor, begin: int
    ) -> tuple[KeyValue, Tensor]:
        """The rows' pictures, padded to (B, Hkv, M, D), and which keys each token attends to: bool (B, 1, T, M)."""
        batch, length = query.shape[0], query.shape[2]
        keys, values = side_cache.padded(self.layer_idx, [plain(key_value) for key_value in visual], batch)
        visible = side_cache.visible(batch, begin, length, keys.shape[2], self.joint_softmax, keys.device)
        return (keys, values), visible

    def _attend_by_runs(
        self, query: Tensor, side_cache: VisualKVCache, visual: list[StoredKeyValue], begin: int
    ) -> tuple[Tensor, Tensor]:
        """As `visual_attention`, row by row, and run by run of tokens that see the same pictures, so without a mask."""
        batch, length = query.shape[0], query.shape[3]
        rows = []
        for batch_row in range(batch):
            number = side_cache.row_of(batch_row, batch)
            row = side_cache.rows[number]
            runs = runs_of(row.placeholder_starts, begin, length, self.joint_softmax, row.sample_starts)
            rows.append(attend_row(query[batch_row], visual[number], runs, side_cache.patches))
        outputs, totals = zip(*rows, strict=True)
        return torch.stack(outputs), torch.stack(totals)


def over_root_mean_square(features: Tensor, epsilon: float) -> Tensor:
    """Features (n, P, hidden) over their root mean square, as Qwen2's norm computes it, in blocks of bounded size."""
    result = torch.empty_like(features)
    size = NORMED_ROWS.get(features.device.type, 1 << 14)
    for rows, found in zip(*(each.flatten(0, 1).split(size) for each in (features, result)), strict=True):
        exact = rows.float()
        found.copy_(exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon))
    return result


class HyperDecoderLayer(Qwen2DecoderLayer):
    """A Qwen2 block whose input norm is shared by text and pictures, and whose attention is over both.

    Its submodules are Qwen2's but for the attention; its forward pass is its own.
    """

    attends_to_side_cache = True

    def __init__(self, config: Owl3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = HyperAttention(config, layer_idx)

    def _in_8_bits(self, key_value: KeyValue) -> StoredKeyValue:
        """As keys and values of pictures are kept under `kv_dtype="int8"`."""
        attention = self.self_attn
        return Int8KeyValue.of(*key_value, *channels_of(attention.v_kv_proj, attention.config.num_key_value_heads))

    def project(self, features: Tensor, positions: list[int], over_rms: bool = False) -> KeyValue:
        """Features (n, P, hidden) → keys and values (Hkv, n·P, D). See `HyperAttention.project_pictures`.

        Args:
            over_rms: They are over their root mean square already, so that nothing is left of the norm but its weight.
        """
        attention, at = self.self_attn, torch.tensor(positions, dtype=torch.long)
        patches, heads = features.shape[1], attention.config.num_key_value_heads
        size = len(positions)
        if not torch.is_grad_enabled():
            size = attention.config.vision_batch_size
            if features.is_cpu:
                size = max(1, min(size, PROJECTED_BYTES // (4 * patches * features.shape[2])))
        if len(positions) <= size:
            return attention.project_pictures(self._normed(features, over_rms), at)
        # fp32 intermediates of 400 pictures would outweigh the result: write chunk by chunk into its place
        key, value = (features.new_empty(heads, len(positions) * patches, attention.head_dim) for _ in range(2))
        for begin in range(0, len(positions), size):
            chunk, place = slice(begin, begin + size), slice(begin * patches, (begin + size) * patches)
            normed = self._normed(features[chunk], over_rms)
            key[:, place], value[:, place] = attention.project_pictures(normed, at[chunk])
        return key, value

    def _normed(self, features: Tensor, over_rms: bool) -> Tensor:
        weight = self.input_layernorm.weight
        if over_rms and not weight.is_meta:
            return weight * features
        return self.input_layernorm(features)  # an offloaded weight is there in it alone; twice over 1 is the same

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Any = None,
        side_cache: VisualKVCache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, T, hidden) → (B, T, hidden); the text's KV cache comes under transformers' name for it."""
        kv_cache = kwargs.pop(CACHE_NAME, None)
        visual = None
        if side_cache is not None:
            visual = self._key_values(side_cache, hidden_states.device, store=kv_cache is not None)
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            kv_cache=kv_cache,
            side_cache=side_cache,
            visual=visual,
            **kwargs,
        )
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def _key_values(self, side_cache: VisualKVCache, device: torch.device, store: bool) -> list[StoredKeyValue]:
        """Keys and values of each row of the cache in this layer; those of new pictures are projected first.

        Args:
            store: Keep what is projected. Not without a KV cache, as in training, where checkpointed layers run twice.
        """
        layer = self.self_attn.layer_idx
        if side_cache.pending is None:
            return side_cache.key_values(layer)
        config, projection, options = self.self_attn.config, self.project, dict[str, Any]()
        if not torch.is_grad_enabled():  # the hyper layers' norms differ in their weights alone
            projection = functools.partial(self.project, over_rms=True)
            options["prepared"] = functools.partial(over_root_mean_square, epsilon=config.rms_norm_eps)
            if config.kv_dtype is not None:
                options["stored_as"] = self._in_8_bits
        key_values = side_cache.project(layer, projection, device, **options)
        if store:
            side_cache.store(layer, key_values)
        return key_values
