"""Learning from a user's conversations: samples of a step → gradients.

    position ── Mixture ── Example ── media ── processor ── Inputs ─┐ a step's samples
                              └ broken: Quarantine                  │
    rows, padded or packed ── model.look ── forward ── learned words' loss ── gradients, added up

The loss of a step is the mean over all words that are learned in it, whatever rows they came in: neither the size of
the rows nor packing changes it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longview.errors import MediaError, RequestError
from longview.media import MediaOptions, open_media
from longview.models import adapters
from longview.models.base import Inputs
from longview.models.sequence import IGNORED
from longview.train.datasets import Mixture, Quarantine
from longview.train.recipe import Recipe, Stage
from longview.train.rows import Example

Notes = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """An example as the model takes it."""

    inputs: Inputs
    rejected: Inputs | None = None

    @property
    def length(self) -> int:
        return self.inputs.length


def prepare(processor: Any, example: Example, stage: Stage, longest: int) -> Sample:
    """Open an example's media, and make inputs of it.

    Raises:
        MediaError: a picture or video cannot be read.
        RequestError: it does not fit the model.
    """
    options = MediaOptions(frames=stage.frames) if stage.frames and _shows_video(example) else None
    media = open_media(example.media, options, default=processor.default_media)
    told = [processor.prepare(example.messages, media, train=True)]
    if example.rejected is not None:
        told.append(processor.prepare([*example.messages[:-1], example.rejected], media, train=True))
    for each in told:
        if each.length > longest:
            raise RequestError(f"it takes {each.length} positions, more than the {longest} there are")
        assert "labels" in each.tensors  # which makes the pixels, here, where a broken frame can still be told
        hide(each, example)
    return Sample(*told)


def _shows_video(example: Example) -> bool:
    return any(part.type == "video" for part in example.media)


def hide(inputs: Inputs, example: Example) -> None:
    """Take the answers that are not learned out of the labels (1, T). Each answer is one run of labels.

    Of a pair only the last answers are compared: those before them are the same.
    """
    answers = sum(message.role == "assistant" for message in example.messages)
    hidden = example.unlearned if example.rejected is None else range(answers - 1)
    if not hidden:
        return
    labels = inputs.tensors["labels"][0]
    learned = labels != IGNORED
    begins = learned & ~functional.pad(learned, (1, 0))[:-1]
    run = begins.cumsum(0) - 1
    assert int(begins.sum()) == answers, "two answers stand side by side"
    labels[learned & torch.isin(run, torch.tensor(list(hidden)))] = IGNORED


def rows_of(samples: Sequence[Sample], stage: Stage) -> Iterator[list[Sample]]:
    """A step's samples as those that pass the model together: so many, or as many as fit into a packed row."""
    if not stage.pack:
        for begin in range(0, len(samples), stage.micro_batch):
            yield list(samples[begin : begin + stage.micro_batch])
        return
    rows: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: -sample.length):  # the longest first leave the fewest gaps
        row = next((row for row in rows if sum(s.length for s in row) + sample.length <= stage.pack), None)
        if row is None:
            rows.append(row := [])
        row.append(sample)
    yield from rows


class Tuning:
    """One stage over a user's data: from the number of a step to gradients."""

    def __init__(
        self,
        recipe: Recipe,
        number: int,
        model: Any,
        processor: Any,
        mixture: Mixture,
        ward: Quarantine,
        reference: Any = None,
    ) -> None:
        """Args:
        reference: What preferences are measured against; None: the model without its adapter.
        """
        self.stage = recipe.stages[number]
        self.model, self.processor = model, processor
        self.mixture, self.ward = mixture, ward
        self.longest = longest(model.config, self.stage)
        self._stream = f"{recipe.seed} {self.stage.name}"
        self._autocast = recipe.model.dtype == "bfloat16"
        self.reference = reference
        self._sees_anew = set(self.stage.train) != {"language"}  # every other part takes part in seeing
        if self.stage.gradient_checkpointing:
            model.activation_checkpointing_enable()
        else:
            model.activation_checkpointing_disable()

    def learn(self, step: int) -> tuple[float, Notes]:
        """The gradients of one step; returns its loss, and what to note about it. Without samples there are none."""
        # Dropout draws from the step's own stream, so that a resumed run is the unbroken one.
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self._stream} {step}".encode()).digest()[:7], "big"))
        samples = self.samples(step)
        told = [each for sample in samples for each in (sample.inputs, sample.rejected) if each is not None]
        notes: Notes = {
            "samples": len(samples),
            "tokens": sum(each.length for each in told),
            "pictures": sum(sample.inputs.num_pictures for sample in samples),
        }
        loss_of: Callable[..., Tensor] = self._supervised if self.stage.objective == "supervised" else self._preference
        share = max(1, self._learned(samples)) if self.stage.objective == "supervised" else max(1, len(samples))
        total = 0.0
        for row in rows_of(samples, self.stage):
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._autocast):
                loss = loss_of(row, notes) / share
            loss.backward()
            total += loss.item()
        return total, {name: round(value, 4) for name, value in notes.items()}

    def samples(self, step: int) -> list[Sample]:
        """What a step learns from. A sample that cannot be shown is told in the report, and left out."""
        samples = []
        for position in range(step * self.stage.batch, (step + 1) * self.stage.batch):
            data, number = self.mixture.at(position)
            try:
                samples.append(prepare(self.processor, data[number], self.stage, self.longest))
            except (MediaError, RequestError) as error:
                self.ward.add(step, position + 1, data.place(number), str(error))
        return samples

    @staticmethod
    def _learned(samples: Sequence[Sample]) -> int:
        return sum(int((sample.inputs.tensors["labels"][:, 1:] != IGNORED).sum()) for sample in samples)

    def _supervised(self, row: Sequence[Sample], _: Notes) -> Tensor:
        """Cross-entropy of the learned words, summed."""
        arguments = self.model.look(self.processor.collate([sample.inputs for sample in row]))
        if self.stage.pack:
            arguments = self.model.pack(arguments)
        return -word_log_probs(self.model, arguments)[0].sum()

    def _preference(self, row: Sequence[Sample], notes: Notes) -> Tensor:
        """DPO's loss, summed; `margin` is β times how much more than its reference the model prefers the chosen.

        Both answers are about the same pictures, which are encoded once for both, and for the reference only where what
        sees them has learned.
        """
        chosen = self.processor.collate([sample.inputs for sample in row])
        rejected = self.processor.collate([sample.rejected for sample in row])
        seen = see(self.model, chosen)
        ours = [answer_log_probs(self.model, look(self.model, batch, seen)) for batch in (chosen, rejected)]
        with torch.no_grad(), self._referring() as reference:
            if self._sees_anew:
                seen = see(reference, chosen)
            theirs = [answer_log_probs(reference, look(reference, batch, seen)) for batch in (chosen, rejected)]
        margin = self.stage.beta * ((ours[0] - theirs[0]) - (ours[1] - theirs[1]))
        notes["margin"] = notes.get("margin", 0.0) + margin.sum().item() / notes["samples"]
        notes["preferred"] = notes.get("preferred", 0.0) + (margin > 0).sum().item() / notes["samples"]
        return dpo_loss(margin)

    @contextlib.contextmanager
    def _referring(self) -> Iterator[Any]:
        """What preferences are measured against: a model of its own, or this one without its adapter."""
        if self.reference is not None:
            yield self.reference
            return
        with adapters.disabled(self.model):
            yield self.model


def see(model: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """The features of a batch's pictures, (N, P, D); None where it has none."""
    return model.encode(batch["pixel_values"]) if "pixel_values" in batch else None


def look(model: Any, batch: Mapping[str, Any], seen: Tensor | None) -> dict[str, Any]:
    """A batch as arguments of `forward`, with features of its pictures in place of their pixels."""
    words = {name: value for name, value in batch.items() if name != "pixel_values"}
    return model.look(words, features=seen)


def dpo_loss(margin: Tensor) -> Tensor:
    """−log σ(margin), summed, of margins (B,). Source: DPO (arXiv 2305.18290), equation 7."""
    return -functional.logsigmoid(margin).sum()


def word_log_probs(model: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the learned words of a batch, and the row of each: (words,) both.

    The head reads those hidden states alone from which something is learned: the logits of a large vocabulary weigh
    more than all else.
    """
    labels = functional.pad(arguments.pop("labels")[:, 1:], (0, 1), value=IGNORED)  # (B, T), of the next word
    columns = (labels != IGNORED).any(0).nonzero().flatten()
    logits = model(**arguments, use_cache=False, logits_to_keep=columns).logits  # (B, columns, V)
    kept = labels[:, columns]
    learned = kept != IGNORED
    log_probs = -functional.cross_entropy(logits[learned].float(), kept[learned], reduction="none")
    return log_probs, learned.nonzero()[:, 0]


def answer_log_probs(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Log-probability of each row's answer, (B,)."""
    rows = len(arguments["labels"])
    log_probs, row = word_log_probs(model, arguments)
    return log_probs.new_zeros(rows).index_add(0, row, log_probs)


def longest(config: Any, stage: Stage) -> int:
    """Positions that a sample may take: the stage's limit, or the model's."""
    own = min(config.max_position_embeddings, getattr(config, "multimodal_max_length", None) or 10**9)
    return min(stage.max_length or own, stage.pack or own, own)
