"""How the next token is chosen: the settings of a request, and the sampler. The same fields in CLI, Python and HTTP."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from longview.errors import CheckpointError, RequestError
from longview.messages import TokenLogprob


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
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one (Nguyen et al. 2024, section 3)."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely (Keskar et al. 2019, section 4.1)."""
    presence_penalty: float = 0.0
    """Taken from the scores of tokens that the answer holds already."""
    frequency_penalty: float = 0.0
    """Taken from the scores of tokens of the answer, once for each time they occur in it."""
    min_tokens: int = 0
    """Tokens of the answer at least; before, it does not end."""
    seed: int | None = None
    """Fixes the random choices of this request."""
    stop: tuple[str, ...] = ()
    """The answer ends before any of these strings."""
    logprobs: int | None = None
    """Tell the log-probability of each token of the answer, and of so many of the likeliest at its place."""
    regex: str | None = None
    """The answer matches this regular expression. Needs the extra `constrain`, as the next one does."""
    json_schema: str | None = None
    """The answer is JSON that fits this schema: a schema as JSON, or `{}` for any JSON."""

    def __post_init__(self) -> None:
        if self.stop is not None and not isinstance(self.stop, (str, list, tuple)):
            raise RequestError(f"stop is a list of non-empty strings, not {self.stop!r:.80}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        _check("max_tokens", self.max_tokens, int, 1, math.inf)
        _check("temperature", self.temperature, float, 0, 100)
        _check("top_p", self.top_p, float, 0, 1, open_below=True)
        _check("top_k", self.top_k, int, 0, math.inf)
        _check("min_p", self.min_p, float, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, float, 0.1, 10)
        _check("presence_penalty", self.presence_penalty, float, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, float, -2, 2)
        _check("min_tokens", self.min_tokens, int, 0, self.max_tokens)
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, int, 0, 20)
        if isinstance(self.json_schema, Mapping):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        for name in ("regex", "json_schema"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise RequestError(f"{name} is {value!r:.40}; give a non-empty string")
        if self.regex is not None and self.json_schema is not None:
            raise RequestError("an answer follows a regex or a json_schema, not both; leave one out")
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


class Matcher(Protocol):
    """Which tokens may follow, where an answer has a form to keep."""

    @property
    def complete(self) -> bool:
        """The answer has the form, and nothing may follow."""

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits (V,) with −∞ where a token may not follow."""

    def took(self, token: int) -> None:
        """This token follows."""


class Sampler:
    """Chooses the tokens of one request. Its random numbers are its own: neighbours in a batch change nothing.

    Args:
        matcher: Says which tokens may follow; see `longview.engine.grammar`.
        ends: Tokens that end an answer.
    """

    def __init__(
        self, params: SamplingParams, matcher: Matcher | None = None, ends: Sequence[int] = (), choice: int = 0
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.ends = list(ends)
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((params.seed + choice) % 2**63)

    @property
    def plain(self) -> bool:
        """It takes the likeliest token and asks for nothing else, so that many can choose at once."""
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

    def __call__(self, logits: Tensor, history: Sequence[int], answered: int = 0) -> int:
        """Logits (V,) and the ids so far, of which the last `answered` are the answer's → the next id.

        Raises:
            CheckpointError: the logits are no numbers.
        """
        params = self.params
        logits = logits.float()
        if not torch.isfinite(logits.max()):
            raise not_numbers()
        logits = self._penalised(logits, history, answered)
        if answered < params.min_tokens:
            logits = logits.index_fill(0, torch.tensor(self.ends, device=logits.device), -torch.inf)
        if self.matcher is not None:
            logits = self.matcher.allowed(logits)
        if params.temperature == 0:
            return self._took(int(logits.argmax()))
        # the likeliest token's score is 0 first, so that the smallest temperature divides nothing into infinity
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
        return self._took(int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator)))

    def _took(self, token: int) -> int:
        if self.matcher is not None:
            self.matcher.took(token)
        return token

    def _penalised(self, logits: Tensor, history: Sequence[int], answered: int) -> Tensor:
        params = self.params
        if params.repetition_penalty != 1.0 and history:
            seen = torch.tensor(sorted(set(history)), device=logits.device)
            scores, penalty = logits[seen], params.repetition_penalty
            logits = logits.index_copy(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))
        if answered and (params.presence_penalty or params.frequency_penalty):
            counts = torch.bincount(torch.tensor(history[-answered:]), minlength=len(logits)).to(logits)
            logits = logits - params.presence_penalty * (counts > 0) - params.frequency_penalty * counts
        return logits

    def logprob(self, logits: Tensor, token: int) -> TokenLogprob:
        """How likely the model itself found a token, before any setting changed that, and which it found likeliest."""
        assert self.params.logprobs is not None
        scores = logits.float().log_softmax(-1)
        best = scores.topk(self.params.logprobs)
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenLogprob(token, float(scores[token]), tuple(top))


def not_numbers() -> CheckpointError:
    """The error for logits that are NaN or infinite."""
    return CheckpointError("the model's scores are no numbers: its weights are damaged, or the dtype too narrow")
