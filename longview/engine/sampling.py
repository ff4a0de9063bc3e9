"""How the next token is chosen: the settings of a request, and the sampler. The same fields in CLI, Python and HTTP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from longview.errors import CheckpointError, RequestError


@dataclass(frozen=True)
class SamplingParams:
    """The defaults decode greedily, as the published benchmarks do.

    Raises:
        RequestError: a value outside its range; names the value and the range.
    """

    max_tokens: int = 512
    """Tokens of the answer at most."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more varied."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely (Keskar et al. 2019, section 4.1)."""
    seed: int | None = None
    """Fixes the random choices of this request."""
    stop: tuple[str, ...] = ()
    """The answer ends before any of these strings."""

    def __post_init__(self) -> None:
        if self.stop is not None and not isinstance(self.stop, (str, list, tuple)):
            raise RequestError(f"stop is a list of non-empty strings, not {self.stop!r:.80}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        _check("max_tokens", self.max_tokens, int, 1, math.inf)
        _check("temperature", self.temperature, float, 0, 100)
        _check("top_p", self.top_p, float, 0, 1, open_below=True)
        _check("top_k", self.top_k, int, 0, math.inf)
        _check("repetition_penalty", self.repetition_penalty, float, 0.1, 10)
        if self.seed is not None:
            _check("seed", self.seed, int, 0, 2**63 - 1)
        if any(not isinstance(text, str) or not text for text in stop):
            raise RequestError(f"stop is a list of non-empty strings, not {list(stop)!r:.80}")

    @classmethod
    def of(cls, **settings: Any) -> SamplingParams:
        """From named settings; unknown names are errors.

        Raises:
            RequestError: names the unknown setting and those that exist.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise RequestError(f"unknown setting {unknown[0]!r}; there are {', '.join(known)}")
        return cls(**settings)


def _check(name: str, value: Any, kind: type, low: float, high: float, open_below: bool = False) -> None:
    numeric = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not numeric or not (low < value if open_below else low <= value) or not value <= high:
        above = f"above {low:g}" if open_below else f"at least {low:g}"
        below = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(
            f"{name} is {value!r:.40}; give {'a whole number' if kind is int else 'a number'} {above}{below}"
        )


class Sampler:
    """Chooses the tokens of one request. Its random numbers are its own: neighbours in a batch change nothing."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)

    def __call__(self, logits: Tensor, history: Sequence[int]) -> int:
        """Logits (V,) and the ids so far (prompt and answer) → the next id."""
        params = self.params
        logits = logits.float()
        if not torch.isfinite(logits.max()):
            raise CheckpointError("the model's scores are no numbers: its weights are damaged, or the dtype too narrow")
        if params.repetition_penalty != 1.0 and history:
            seen = torch.tensor(sorted(set(history)), device=logits.device)
            scores = logits[seen]
            logits = logits.clone()
            logits[seen] = torch.where(
                scores < 0, scores * params.repetition_penalty, scores / params.repetition_penalty
            )
        if params.temperature == 0:
            return int(logits.argmax())
        # the likeliest token's score is 0 first, so that the smallest temperature divides nothing into infinity
        logits = (logits - logits.max()).cpu() / params.temperature
        if 0 < params.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
        if params.top_p < 1:
            ranked, order = logits.sort(descending=True)
            probabilities = ranked.softmax(-1)
            # a token stays while those before it have not reached top_p, so the first always does
            dropped = probabilities.cumsum(-1) - probabilities >= params.top_p
            logits = logits.index_fill(0, order[dropped], -torch.inf)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator))
