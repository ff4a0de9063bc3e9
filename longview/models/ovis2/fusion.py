"""The idea of Ovis2: structural embedding alignment. Pictures are embedded as text is: by rows of a table.

    features (n, p, d) ── s · s neighbours concatenated ─ (n, P, s²d) ── head: Linear, LayerNorm ── logits (n, P, V−5)
                                                                                                        │ tokenize
    embeddings (n, P, D) ── mean of the table's rows, weighted ── visual tokens (n, P, V), each adds up to 1 ┘

    visual words     0 … V−6             V−5       V−4        V−3        V−2     V−1
    in input_ids     ▣ −300, P of them   −301      −302       −303       −304    −305
                     mixed               [ begins  thumbnail  │ column   ─ row   ] ends

Letters: p patches of the tower, P = p / s² visual tokens of a crop, V visual words, as the paper calls the entries of
the visual vocabulary. The last five rows are indicators. The head has no outputs for them (visual tokens end in five
zeros), so they are only ever looked up. A picture of 1 × 2 crops is `[ ▣ thumbnail ▣ │ ▣ ]`: one placeholder a crop,
which grows to P positions when the modalities are merged:

    ids         <|im_start|> user \\n  [  ▣  thumbnail  ▣  │  ▣  ]  What  is  this
    embeddings        t        t   t  i  pppp    i    pppp i pppp i   t    t    t

Source: the Ovis paper (arXiv 2405.20797), section 3, and the released weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import RequestError
from longview.models import sequence
from longview.models.ovis2.config import NUM_INDICATORS, VisualTokenizerConfig
from longview.models.sequence import Merged

PLACEHOLDER = -300
"""The placeholder of one crop in `input_ids`: the authors' IMAGE_ATOM_ID."""
MOST_WORDS = 5
"""Visual words of a patch that evidence names."""
BEGIN, THUMBNAIL, COLUMN, ROW, END = INDICATORS = (-301, -302, -303, -304, -305)
"""Stand in `input_ids` around crops; −301−i is row V−5+i of the visual embedding table."""


# ── pixels → visual tokens ───────────────────────────────────────────────────────────────────────────────────────────


def merge_patches(features: Tensor, stride: int) -> Tensor:
    """(n, p, d) → (n, P, stride² · d): each square of patches becomes one, by concatenating them row after row.

    A grid that does not divide evenly is padded with zeros at its bottom and right.
    """
    if stride == 1:
        return features
    side = math.isqrt(features.shape[1])
    if side**2 != features.shape[1]:
        raise RequestError(f"{features.shape[1]} patches are no square grid; hidden_stride {stride} cannot merge them")
    grid = features.unflatten(1, (side, side))
    missing = -side % stride
    grid = functional.pad(grid, (0, 0, 0, missing, 0, missing))  # (n, G·s, G·s, d)
    blocks = grid.unflatten(2, (-1, stride)).unflatten(1, (-1, stride))  # (n, G, s, G, s, d)
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


def tokenize(logits: Tensor, function: str, tau: float = 1.0, noise: Tensor | None = None) -> Tensor:
    """Head logits (n, P, V−5) → visual tokens (n, P, V−5): a distribution over visual words, or one of them.

    Args:
        function: "softmax"; "st_argmax", the top word with the gradient of the logits; "gumbel_argmax", a word drawn
            from softmax(logits), with the gradient of softmax((logits + noise) / tau). The last draws in evaluation,
            too, as the original does.
        noise: Drawn from the standard Gumbel distribution; default: now.
    """
    if function == "softmax":
        return logits.softmax(-1)
    if function == "st_argmax":
        return one_hot_argmax(logits) - logits.detach() + logits
    if noise is None:
        noise = -torch.empty_like(logits).exponential_().log()
    soft = ((logits + noise) / tau).softmax(-1)
    return one_hot_argmax(soft) - soft.detach() + soft


def one_hot_argmax(scores: Tensor) -> Tensor:
    """One-hot vectors of the largest scores; the first of equals."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def likeliest_words(visual_tokens: Tensor) -> Tensor:
    """Visual tokens (n, P, V) → numbers and probabilities of the `MOST_WORDS` likeliest words, (n, P, k, 2), fp32."""
    probabilities, words = visual_tokens.float().topk(MOST_WORDS)
    return torch.stack([words.float(), probabilities], dim=-1)


class VisualTokenizer(nn.Module):
    """Pixels (n, 3, R, R) → visual tokens (n, P, V)."""

    def __init__(self, config: VisualTokenizerConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        vocabulary = config.vocab_size - NUM_INDICATORS
        width = config.backbone_config.hidden_size * config.hidden_stride**2
        self.head = nn.Sequential(nn.Linear(width, vocabulary, bias=False), nn.LayerNorm(vocabulary))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.head.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels (n, 3, R, R) → merged features (n, P, s²·d)."""
        features = self.backbone(pixel_values)
        if self.config.drop_cls_token:
            features = features[:, 1:]
        return merge_patches(features, self.config.hidden_stride)

    def tokenize(self, logits: Tensor) -> Tensor:
        """Head logits → visual tokens; see the function of the same name."""
        return tokenize(logits, self.config.tokenize_function, self.config.tau)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.tokenize(self.head(self.encode(pixel_values)))  # (n, P, V−5)
        return functional.pad(tokens, (0, NUM_INDICATORS))


class VisualEmbeddingTable(nn.Embedding):
    """One row a visual word, as wide as the language model."""

    def forward(self, visual_tokens: Tensor) -> Tensor:
        """Visual tokens (…, V) → means of rows (…, D); or numbers of visual words (…) → rows."""
        if visual_tokens.is_floating_point():
            return visual_tokens @ self.weight
        return super().forward(visual_tokens)

    def indicators(self, device: torch.device) -> Tensor:
        """The rows of the five indicators, (5, D): those of −301, −302, … −305."""
        return self(torch.arange(self.num_embeddings - NUM_INDICATORS, self.num_embeddings, device=device))


# ── the merge of modalities ──────────────────────────────────────────────────────────────────────────────────────────


def merge(
    tokens: Tensor,
    input_ids: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    pictures: Sequence[Tensor],
    indicators: Tensor,
    limit: int,
    left_padding: bool = False,
) -> Merged:
    """Put indicators and crops where `input_ids` (B, T) has their ids; see `longview.models.sequence.merge`.

    Args:
        tokens: (B, T, D) embeddings; those of crops and indicators are replaced.
        indicators: (5, D).
        limit: Positions kept: the last ones with left padding, else the first ones.
    """
    kept = slice(-limit, None) if left_padding else slice(limit)
    is_indicator = (input_ids <= BEGIN) & (input_ids >= END)
    tokens = tokens.masked_scatter(is_indicator[..., None], indicators[BEGIN - input_ids[is_indicator]])
    return sequence.merge(tokens, input_ids == PLACEHOLDER, mask, labels, pictures, kept, left_padding)
