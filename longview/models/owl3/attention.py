"""Kernels of hyper attention that never hold a mask of text tokens times visual keys; `fusion.py` has the dense form.

A token attends to a *prefix* of its row's pictures, those whose placeholders stand before it. So the queries of a row
fall into runs with the same number of visible pictures, and each run attends to a slice of the keys:

    token      <|im_start|>  user  \\n   ▣₀  ▣₀  ▣₀   ▣₁  ▣₁  ▣₁   What  is  this
    pictures        0         0    0    1   1   1    2   2   2     2    2    2
    run        └──── no pictures ────┘ └ keys[:P] ┘ └────── keys[:2P] ──────────┘

Many short runs are many small products of matrices, so they are cut into few rectangles of queries and keys, all of
which are visible to each other; torch's fused attention computes those where it can. A GPU, which would wait for the
next small product to be launched, takes the last small rectangles of a group of runs at once, with a mask.

Each kernel returns its output and the log-sum-exp of its scores, with which softmaxes over different keys are merged
exactly (`fusion.merge_softmaxes`). Both are fp32.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longview.models.fused_attention import (
    FusedAttention,
    fused_attention,
    fused_gradients,
    has_gradient,
    with_gradient_of_lse,
)
from longview.models.owl3.int8 import Int8KeyValue
from longview.models.owl3.visual_kv_cache import StoredKeyValue, plain

SCORES_BYTES = 64 << 20
"""Attention scores held at a time, in bytes."""
BLOCK_KEYS = 4096
"""Keys of pictures attended to at a time, about: they stay in the processor's cache. Blocks are whole pictures, so that
few different shapes of matrices occur; a CPU keeps compiled code and memory for each."""
PIECES, PIECE_KEYS = 16, 4096
"""Of the keys that a single token sees: as many at most, and with so many keys at least."""
STAIRCASE_BYTES = {"cuda": 64 << 20}
"""By type of device: attention scores of runs that are computed at once, with a mask. Elsewhere each is alone."""


class Run(NamedTuple):
    """Consecutive queries of one row: to tokens `begin:end`, pictures `first:pictures` are visible."""

    begin: int
    end: int
    pictures: int
    first: int = 0  # above 0 where the row holds several samples


def runs_of(
    placeholder_starts: Sequence[int], begin: int, length: int, inclusive: bool, sample_starts: Sequence[int] = ()
) -> list[Run]:
    """Split the queries `begin … begin + length` of a row into runs; without visible pictures they belong to none.

    Args:
        placeholder_starts: Ascending positions of the placeholders' first tokens, in the row that `begin` counts in.
        inclusive: A picture is visible to its placeholder's first token already (241101), or from the next one on.
        sample_starts: Ascending positions at which further samples of a packed row begin: from there on, pictures
            before it are not visible.
    """
    first_visible = [start if inclusive else start + 1 for start in placeholder_starts]
    end = begin + length
    changes = {begin, end}
    for ascending in (first_visible, sample_starts):
        changes.update(ascending[bisect_right(ascending, begin) : bisect_left(ascending, end)])
    runs = []
    for left, right in itertools.pairwise(sorted(changes)):
        visible = bisect_right(first_visible, left)
        num_samples = bisect_right(sample_starts, left)  # that have begun
        first = bisect_left(placeholder_starts, sample_starts[num_samples - 1]) if num_samples else 0
        if visible > first:
            runs.append(Run(left - begin, right - begin, visible, first))
    return runs


def rectangles_of(runs: Sequence[Run], most: int = 0) -> tuple[list[Run], list[Run]]:
    """The same pairs of queries and pictures in few and large rectangles, each a run whose queries see all of it.

    Args:
        most: Pairs of a query and a picture in a rectangle that is not cut further, a staircase.

    Returns:
        Rectangles all of which is seen; and staircases, whose queries see what their own runs say.

    What all queries see comes first; of the others, the later half sees what the earlier half sees at most, and so on.

        pictures ▶                     ■ all see    ▤ the later half sees    · one run each
        queries  ■ ■ ·
           ▼     ■ ■ · ·
                 ■ ■ ▤ ▤ ·
                 ■ ■ ▤ ▤ · ·
    """
    rectangles: list[Run] = []
    staircases: list[Run] = []

    def split(runs: list[Run], first: int) -> None:
        """Append the rectangles of runs of one sample, from picture `first` on."""
        bounds = Run(runs[0].begin, runs[-1].end, runs[-1].pictures, first)
        if len(runs) > 1 and (bounds.end - bounds.begin) * (bounds.pictures - first) <= most:
            staircases.append(bounds)
            return
        lowest = runs[0].pictures
        if lowest > first:
            rectangles.append(Run(runs[0].begin, runs[-1].end, lowest, first))
        rest = runs[1:]
        if len(rest) == 1:
            split(rest, lowest)
        elif rest:
            earlier, later = rest[: len(rest) // 2], rest[len(rest) // 2 :]
            split(earlier, lowest)
            if earlier[-1].pictures > lowest:
                rectangles.append(Run(later[0].begin, later[-1].end, earlier[-1].pictures, lowest))
            split(later, earlier[-1].pictures)

    for first, same_sample in itertools.groupby(runs, key=lambda run: run.first):
        split(list(same_sample), first)
    return rectangles, staircases


# ── visual keys ──────────────────────────────────────────────────────────────────────────────────────────────────────


def attend_row(query: Tensor, key_value: StoredKeyValue, runs: list[Run], patches: int) -> tuple[Tensor, Tensor]:
    """Attention of one row to its pictures, as they are stored; see `attend_by_runs`."""
    if isinstance(key_value, Int8KeyValue) and _sees_all(query, key_value.count, runs, patches):
        found = key_value.attend(query)
        if found is not None:
            return found
    key, value = plain(key_value)
    return attend_by_runs(query.to(key.dtype), key, value, runs, patches)  # dtypes differ under autocast


def attend_by_runs(query: Tensor, key: Tensor, value: Tensor, runs: list[Run], patches: int) -> tuple[Tensor, Tensor]:
    """Attention of one row to its pictures, by the kernel that suits the runs.

    Args:
        query: (Hkv, G, T, D), scaled.
        key, value: (Hkv, M, D).

    Returns:
        Output (Hkv, G, T, D) and log-sum-exp (Hkv, G, T). Where no picture is visible they are 0 and −∞.
    """
    if _sees_all(query, key.shape[1], runs, patches):
        return attend_single_token(query, key, value)
    return PrefixAttention.apply(query, key, value, runs, patches)


def _sees_all(query: Tensor, keys: int, runs: list[Run], patches: int) -> bool:
    """Whether it is a single token, in decoding, that sees all keys, and whose scores fit into `SCORES_BYTES`."""
    scores_bytes = 4 * query.shape[0] * (query.shape[1] + 7) * keys
    all_visible = query.shape[2] == 1 and bool(runs) and (runs[0].first, runs[0].pictures * patches) == (0, keys)
    return all_visible and scores_bytes <= SCORES_BYTES and not torch.is_grad_enabled()


class PrefixAttention(torch.autograd.Function):
    """Attention of one row over prefixes of its pictures' keys, rectangle by rectangle; exact, and differentiable.

    Only `SCORES_BYTES` of scores exist at a time, forwards and backwards, whatever the number of pictures.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: list[Run], patches: int
    ) -> tuple[Tensor, Tensor]:
        """See `attend_by_runs`."""
        output = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        lse = torch.full(query.shape[:-1], -torch.inf, dtype=torch.float32, device=query.device)
        most = STAIRCASE_BYTES.get(query.device.type, 0) // (4 * query.shape[0] * query.shape[1] * patches)
        rectangles, staircases = rectangles_of(runs, most)
        for rectangle in rectangles:
            rows = slice(rectangle.begin, rectangle.end)
            keys = slice(rectangle.first * patches, rectangle.pictures * patches)
            q = query[:, :, rows]
            for new_output, new_lse in _attend_all(q.flatten(1, 2), key[:, keys], value[:, keys], patches):
                _merge_into(output[:, :, rows], lse[:, :, rows], new_output.view(q.shape), new_lse.view(q.shape[:-1]))
        if staircases:
            visible = _visible_keys(runs, patches, query)
        for part in staircases:
            rows, first = slice(part.begin, part.end), part.first * patches
            keys = slice(first, part.pictures * patches)
            found = _attend_visible(query[:, :, rows], key[:, keys], value[:, keys], visible[rows] - first)
            _merge_into(output[:, :, rows], lse[:, :, rows], *found)
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
        fused = has_gradient(query.flatten(1, 2)[None], key[None], value[None])
        rest = with_gradient_of_lse(output, grad_output, grad_lse) if fused else shift
        for rectangle in rectangles_of(ctx.runs)[0]:
            rows = slice(rectangle.begin, rectangle.end)
            keys = slice(rectangle.first * ctx.patches, rectangle.pictures * ctx.patches)
            k, v, grad_k, grad_v = (each[:, keys] for each in (key, value, grad_key, grad_value))
            q, g, log_total, r = (each[:, :, rows].flatten(1, 2) for each in (query, grad_output, lse, rest))
            if fused:
                found = fused_gradients(q[None], k[None], v[None], r[None], log_total[None], g[None])
                dq, dk, dv = (each[0] for each in found)
                grad_k += dk
                grad_v += dv
            else:
                dq = _add_gradients(grad_k, grad_v, q, k, v, log_total, r, g, ctx.patches)
            grad_query[:, :, rows] += dq.view(grad_query[:, :, rows].shape)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _add_gradients(
    grad_key: Tensor,
    grad_value: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    shift: Tensor,
    grad_output: Tensor,
    patches: int,
) -> Tensor:
    """Add to the gradients of keys and values (Hkv, m, D) what queries (Hkv, R, D) that see all of them give.

    Args:
        lse, shift: (Hkv, R); the latter is d lse − output · d output.
        grad_output: (Hkv, R, D).

    Returns:
        The gradient of the queries, fp32.
    """
    grad_query = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    for block in _blocks(range(key.shape[1]), patches, rows=query.shape[0] * query.shape[1]):
        k, v = key[:, block], value[:, block]
        weights = ((query @ k.transpose(1, 2)).float() - lse.unsqueeze(-1)).exp_()
        grad_value[:, block] += weights.transpose(1, 2) @ grad_output
        grad_scores = weights * (grad_output @ v.float().transpose(1, 2) + shift.unsqueeze(-1))
        grad_query += grad_scores @ k.float()
        grad_key[:, block] += grad_scores.transpose(1, 2) @ query.float()
    return grad_query


def attend_single_token(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`PrefixAttention` of a single token to which all keys are visible, as in decoding; the keys are loaded once.

    query (Hkv, G, 1, D), scaled; key, value (Hkv, M, D) → output (Hkv, G, 1, D) and log-sum-exp (Hkv, G, 1), fp32.
    """
    rows = query.flatten(1, 2)  # (Hkv, G, D)
    found = _attend_in_pieces(rows, key, value) if key.is_cpu and key.shape[1] >= PIECE_KEYS else None
    if found is not None:
        return found[0].unsqueeze(2), found[1].unsqueeze(2)
    # CPUs multiply a matrix by eight rows faster than by seven, and by rows of `linear` faster than by a batch of them
    padded = nn.functional.pad(rows, (0, 0, 0, -rows.shape[1] % 8))
    scores = torch.stack([nn.functional.linear(*pair) for pair in zip(padded, key, strict=True)])
    scores = scores[:, : rows.shape[1]].float()  # (Hkv, G, M)
    weights = scores.softmax(-1)
    lse = scores.amax(-1) - weights.amax(-1).log()
    return (weights.to(value.dtype) @ value).float().unsqueeze(2), lse.unsqueeze(2)


def _attend_in_pieces(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """The same of queries (Hkv, G, D) by the fused kernel, which shares work among threads by heads and pieces of keys.

    Returns:
        Output (Hkv, G, D) and log-sum-exp (Hkv, G), fp32; None where there is no such kernel.
    """
    num_keys = key.shape[1]
    pieces = min(PIECES, num_keys // PIECE_KEYS)
    size = num_keys // pieces
    keys, values = (states[:, : pieces * size].unflatten(1, (pieces, size)).transpose(0, 1) for states in (key, value))
    found = fused_attention(query.expand(pieces, -1, -1, -1), keys, values)
    if found is None:
        return None
    outputs, totals = list(found[0].float()), list(found[1])
    if pieces * size < num_keys:
        rest = fused_attention(query[None], key[None, :, pieces * size :], value[None, :, pieces * size :])
        assert rest is not None, "the operator has just taken such tensors"
        outputs, totals = [*outputs, rest[0][0].float()], [*totals, rest[1][0]]
    shares = torch.stack(totals).softmax(0).unsqueeze(-1)
    return (torch.stack(outputs) * shares).sum(0), torch.stack(totals).logsumexp(0)


def _visible_keys(runs: Sequence[Run], patches: int, query: Tensor) -> Tensor:
    """How many keys are before the first that a query does not see, (T,)."""
    visible = [0] * query.shape[2]
    for run in runs:
        visible[run.begin : run.end] = [run.pictures * patches] * (run.end - run.begin)
    return torch.tensor(visible, device=query.device)


def _attend_visible(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of queries (Hkv, G, t, D) to the first `visible` (t,) of keys (Hkv, m, D); each sees one at least.

    Returns:
        Output (Hkv, G, t, D) and log-sum-exp (Hkv, G, t), fp32.
    """
    scores = (query.flatten(1, 2) @ key.transpose(1, 2)).float().view(*query.shape[:3], -1)
    hidden = torch.arange(key.shape[1], device=key.device) >= visible[:, None]
    scores.masked_fill_(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = scores.sub_(lse.unsqueeze(-1)).exp_().to(value.dtype)
    return (weights.flatten(1, 2) @ value).float().view(query.shape), lse


def _attend_all(query: Tensor, key: Tensor, value: Tensor, patches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Attention of queries (Hkv, R, D) to keys (Hkv, m, D) that all of them see, in one piece or in several.

    Yields:
        Output (Hkv, R, D) and log-sum-exp (Hkv, R), fp32, over some of the keys.
    """
    fused = fused_attention(query[None], key[None], value[None])
    if fused is not None:
        yield fused[0][0].float(), fused[1][0]
        return
    for block in _blocks(range(key.shape[1]), patches, rows=query.shape[0] * query.shape[1]):
        scores = (query @ key[:, block].transpose(1, 2)).float()
        lse = scores.logsumexp(-1)
        weights = scores.sub_(lse.unsqueeze(-1)).exp_().to(value.dtype)
        yield (weights @ value[:, block]).float(), lse


def _merge_into(output: Tensor, lse: Tensor, new_output: Tensor, new_lse: Tensor) -> None:
    """Add a softmax over further keys to one over keys so far, in place; that over no keys is 0 and −∞."""
    share = torch.sigmoid(new_lse - lse).unsqueeze(-1)
    output += share * (new_output - output)
    torch.logaddexp(lse, new_lse, out=lse)


def _blocks(keys: range, patches: int, rows: int) -> list[slice]:
    """Keys of whole pictures in blocks, for so many rows of queries."""
    most = min(BLOCK_KEYS, SCORES_BYTES // (4 * rows))
    size = most // patches * patches or max(1, most)
    return [slice(begin, min(begin + size, keys.stop)) for begin in range(keys.start, keys.stop, size)]


# ── text keys ────────────────────────────────────────────────────────────────────────────────────────────────────────


def attend_text(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Causal attention over text tokens, with the log-sum-exp that transformers' implementations do not return.

    Args:
        query: (B, Hkv, G, T, D), scaled.
        key, value: (B, Hkv, S, D).
        mask: What transformers made for the layer: None (causal), boolean or additive (B or 1, 1, T, S), or padding.

    Returns:
        Output (B, Hkv, G, T, D) and log-sum-exp (B, Hkv, G, T), fp32.
    """
    length, num_keys = query.shape[3], key.shape[2]
    fused = _attend_text_fused(query.flatten(1, 2), key, value, mask) if query.is_cpu else None  # GPUs' take no mask
    if fused is not None:
        return fused[0].float().view(query.shape), fused[1].view(query.shape[:-1])
    mask = text_mask(mask, length, num_keys, query.device)
    mask = mask.unsqueeze(2)  # (B or 1, 1, 1, T, S)
    size = max(1, SCORES_BYTES // (4 * query.shape[:3].numel() * num_keys))
    outputs, totals = [], []
    for rows in (slice(begin, begin + size) for begin in range(0, length, size)):
        scores = (query[:, :, :, rows] @ key.unsqueeze(2).transpose(-1, -2)).float()
        bias = mask[:, :, :, rows]
        floor = torch.finfo(torch.float32).min  # finite, see `_finite`
        scores = scores.masked_fill(~bias, floor) if bias.dtype == torch.bool else (scores + bias).clamp(min=floor)
        lse = scores.logsumexp(-1)
        outputs.append(((scores - lse.unsqueeze(-1)).exp().to(value.dtype) @ value.unsqueeze(2)).float())
        totals.append(lse)
    return torch.cat(outputs, dim=3), torch.cat(totals, dim=3)


def _attend_text_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The same of queries (B, H, T, D) by the fused kernel; None where there is none for them."""
    learns = torch.is_grad_enabled()
    if learns and not has_gradient(query, key, value):
        return None
    length, num_keys = query.shape[2], key.shape[2]
    additive, causal = None, mask is None and length == num_keys
    if not causal and not (mask is None and length == 1):  # a single token attends to all that came before it
        additive = _finite(text_mask(mask, length, num_keys, query.device), query.dtype)
    return (FusedAttention.apply if learns else fused_attention)(query, key, value, additive, causal)


def _finite(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of any kind as an additive one, without −∞: padding, which attends to nothing, is to be free of NaN."""
    floor = torch.finfo(dtype).min / 2  # a score may be added to it
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, floor)
    return mask.clamp(min=floor).to(dtype)


def text_mask(mask: Tensor | None, length: int, num_keys: int, device: torch.device) -> Tensor:
    """What transformers made for a layer as one kind of mask, boolean or additive: (B or 1, 1, T, S)."""
    if mask is None or mask.dim() == 2:  # flash attention is handed the padding alone, (B, S)
        causal = torch.ones(length, num_keys, dtype=torch.bool, device=device).tril(num_keys - length)
        mask = causal[None, None] if mask is None else causal & mask[:, None, None, :num_keys].bool()
    return mask[:, :, :, :num_keys]
