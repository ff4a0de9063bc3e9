"""The sampler: logits and the settings of a request → the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from longview.errors import CheckpointError
from longview.requests import SamplingParams


class RankedToken(NamedTuple):
    """A token's log-probability, and the likeliest tokens at its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Matcher(Protocol):
    """Which tokens may come next in an answer that a grammar constrains."""

    @property
    def complete(self) -> bool:
        """The answer is complete, and no token may come next."""

    def mask_logits(self, logits: Tensor) -> Tensor:
        """Logits (V,) with −∞ for each token that may not come next."""

    def accept(self, token: int) -> None:
        """Append a token to the answer."""


class Sampler:
    """Chooses the tokens of one request. It has a random generator of its own, so that a batch changes no answer.

    Args:
        matcher: Of the grammar that constrains the answer; see `longview.engine.grammar`.
        end_tokens: Tokens that end an answer.
        choice: Which of several answers to the same question; added to the seed.
    """

    def __init__(
        self, params: SamplingParams, matcher: Matcher | None = None, end_tokens: Sequence[int] = (), choice: int = 0
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.end_tokens = list(end_tokens)
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((params.seed + choice) % 2**63)

    @property
    def only_argmax(self) -> bool:
        """The next token is the argmax of the logits and nothing else is asked for, so that a batch needs one call."""
        params = self.params
        return (
            params.temperature == 0
            and params.repetition_penalty == 1
            and not params.presence_penalty
            and not params.frequency_penalty
            and not params.min_tokens
            and params.logprobs is None
            and self.matcher is None
        )

    def __call__(self, logits: Tensor, token_ids: Sequence[int], num_generated: int = 0) -> int:
        """Logits (V,) and the token ids so far, of which the last `num_generated` are the answer's → the next one.

        Raises:
            CheckpointError: the logits are not finite.
        """
        params = self.params
        logits = logits.float()
        if not torch.isfinite(logits.max()):
            raise non_finite_logits()
        logits = self._penalised(logits, token_ids, num_generated)
        if num_generated < params.min_tokens:
            logits = logits.index_fill(
                0, torch.tensor(self.end_tokens, dtype=torch.long, device=logits.device), -torch.inf
            )
        if self.matcher is not None:
            logits = self.matcher.mask_logits(logits)
        if params.temperature == 0:
            return self._accepted(int(logits.argmax()))
        # the largest logit becomes 0 first, so that the smallest temperature divides nothing into infinity
        logits = (logits - logits.max()).cpu() / params.temperature
        if 0 < params.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
        if params.min_p > 0:
            logits = logits.masked_fill(logits < math.log(params.min_p), -torch.inf)
        if params.top_p < 1:
            ranked, order = logits.sort(descending=True)
            probabilities = ranked.softmax(-1)
            # a token stays while those before it have not reached top_p, so the first always does
            dropped = probabilities.cumsum(-1) - probabilities >= params.top_p
            logits = logits.index_fill(0, order[dropped], -torch.inf)
        return self._accepted(int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator)))

    def _accepted(self, token: int) -> int:
        if self.matcher is not None:
            self.matcher.accept(token)
        return token

    def _penalised(self, logits: Tensor, token_ids: Sequence[int], num_generated: int) -> Tensor:
        params = self.params
        if params.repetition_penalty != 1.0 and token_ids:
            seen = torch.tensor(sorted(set(token_ids)), device=logits.device)
            scores, penalty = logits[seen], params.repetition_penalty
            logits = logits.index_copy(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))
        if num_generated and (params.presence_penalty or params.frequency_penalty):
            counts = torch.bincount(torch.tensor(token_ids[-num_generated:]), minlength=len(logits)).to(logits)
            logits = logits - params.presence_penalty * (counts > 0) - params.frequency_penalty * counts
        return logits

    def logprob(self, logits: Tensor, token: int) -> RankedToken | None:
        """Log-probabilities of a token and of the likeliest, before penalties and temperature; None where unwanted."""
        if self.params.logprobs is None:
            return None
        logprobs = logits.float().log_softmax(-1)
        best = logprobs.topk(self.params.logprobs)
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return RankedToken(token, float(logprobs[token]), tuple(top))


def non_finite_logits() -> CheckpointError:
    """The error for logits that are NaN or infinite."""
    return CheckpointError(
        "the model's logits are NaN or infinite: its weights are damaged, or the dtype is too narrow"
    )
