"""Learning from a user's conversations: samples of a step → gradients.

    position ── Mixture ── Example ── media ── processor ── ModelInputs ─┐ a step's samples
                              └ broken: Quarantine                  │
    rows, padded or packed ── model.look ── forward ── learned words' loss ── gradients, added up

The loss of a step is the mean over all words that are learned in it, whatever rows they came in: neither the size of
the rows nor packing changes it, nor the number of processes that the step's samples are dealt out to.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from longview.errors import MediaError, RequestError
from longview.media import open_media
from longview.messages import Message, Part, ask
from longview.models import adapters
from longview.models.base import IGNORED, ModelInputs, checkpoint_activations
from longview.models.liger import apply_liger_kernel
from longview.train.data.datasets import Mixture, Quarantine
from longview.train.data.rows import Example
from longview.train.data.sample_format import open_shown, sample_format_of
from longview.train.distributed import processes
from longview.train.distributed.sharding import is_sharded, let_go
from longview.train.distributed.zero import Zero
from longview.train.recipe import Recipe, Stage

Notes = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """An example as the model takes it."""

    inputs: ModelInputs
    rejected: ModelInputs | None = None
    number: int = 0
    """Which of its step's samples it is."""
    blank: bool = False
    """Nothing is learned from it: it keeps other processes company."""

    @property
    def length(self) -> int:
        return self.inputs.length


def prepare(processor: Any, example: Example, stage: Stage, longest: int, draw: float = 0.0) -> Sample:
    """Open an example's media, and make inputs of it.

    Args:
        draw: From 0 to 1: whether the example is among the share whose pictures are cut.

    Raises:
        MediaError: a picture or video cannot be read.
        RequestError: it does not fit the model.
    """
    media = open_shown(example.media, stage, processor.default_media)
    sample_format = sample_format_of(example, stage, draw)
    if sample_format.max_partition is not None and "max_partition" not in processor.crop_settings:
        raise RequestError("it says max_partition, and this model cuts no picture into so many crops")
    told = [processor.prepare(example.messages, media, train=True, sample_format=sample_format)]
    if example.rejected is not None:
        told.append(
            processor.prepare(
                [*example.messages[:-1], example.rejected], media, train=True, sample_format=sample_format
            )
        )
    for each in told:
        if each.length > longest:
            raise RequestError(f"it takes {each.length} positions, more than the {longest} there are")
        each.load_pixels()  # here, where a sample with a broken frame can still be left out
        hide(each, example)
    return Sample(*told)


def hide(inputs: ModelInputs, example: Example) -> None:
    """Take the answers that are not learned out of the labels (1, T). Each answer is one run of labels.

    Of a pair only the last answers are compared: those before them are the same.
    """
    answers = sum(message.role == "assistant" for message in example.messages)
    hidden = example.unlearned if example.rejected is None else range(answers - 1)
    if not hidden:
        return
    labels = inputs.text_inputs["labels"][0]
    learned = labels != IGNORED
    begins = learned & ~functional.pad(learned, (1, 0))[:-1]
    run = begins.cumsum(0) - 1
    assert int(begins.sum()) == answers, "two answers stand side by side"
    labels[learned & torch.isin(run, torch.tensor(list(hidden)))] = IGNORED


def deal(stage: Stage) -> tuple[list[int], int]:
    """Which of a step's samples this process takes, by number, and how many of them pass the model together.

    They are dealt out as they would pass the model in one process, so that more of them see the same rows.
    """
    size = 1 if stage.pack else min(stage.micro_batch, -(-stage.batch // processes.count()))
    rows = [range(begin, min(begin + size, stage.batch)) for begin in range(0, stage.batch, size)]
    return list(itertools.chain(*rows[processes.rank() :: processes.count()])), size


def rows_of(samples: Sequence[Sample], stage: Stage) -> Iterator[list[Sample]]:
    """A process's samples as those that pass the model together: so many, or as many as fit into a packed row."""
    if not stage.pack:
        size = deal(stage)[1]
        for _, row in itertools.groupby(samples, lambda sample: sample.number // size):
            yield list(row)
        return
    packed: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda sample: -sample.length):  # the longest first leave the fewest gaps
        found = next((row for row in packed if sum(s.length for s in row) + sample.length <= stage.pack), None)
        if found is None:
            packed.append(found := [])
        found.append(sample)
    yield from packed


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
        zero: Zero | None = None,
    ) -> None:
        """Args:
        reference: What preferences are measured against; None: the model without its adapter.
        zero: What passes on losses, where DeepSpeed does.
        """
        self.stage = recipe.stages[number]
        self.model, self.processor = model, processor
        self.mixture, self.ward = mixture, ward
        self.longest = longest(model.config, self.stage)
        self._stream = f"{recipe.seed} {self.stage.name}"
        self._autocast = recipe.model.dtype == "bfloat16"
        self.reference, self.zero = reference, zero
        self._sees_anew = set(self.stage.train) != {"language"}  # every other part takes part in seeing
        for each in (model, reference):  # after the copy was made, which would go on with the kernels of its original
            if recipe.model.liger and each is not None:
                apply_liger_kernel(each)
        checkpoint_activations(model, self.stage.gradient_checkpointing)

    def learn(self, step: int) -> tuple[float, Notes]:
        """This process's share of the gradients of one step; returns the loss of the whole step, and what to note.

        Without samples there are no gradients.
        """
        samples = self.samples(step)
        rows = list(rows_of(samples, self.stage))
        told = [each for sample in samples for each in (sample.inputs, sample.rejected) if each is not None]
        mine = {
            "samples": len(samples),
            "tokens": sum(each.length for each in told),
            "pictures": sum(sample.inputs.num_pictures for sample in samples),
            "learned": self._learned(samples),
        }
        shares = processes.gather((mine, [shows(row) for row in rows]))
        notes: Notes = {name: sum(share[name] for share, _ in shares) for name in mine}
        words = notes.pop("learned")
        if is_sharded(self.model) or self.zero is not None:
            rows = self._levelled(rows, [shown for _, shown in shares])
        loss_of: Callable[..., Tensor] = self._supervised if self.stage.objective == "supervised" else self._preference
        share = max(1, words if self.stage.objective == "supervised" else notes["samples"])
        total, found = 0.0, dict[str, float]()
        for row in rows:
            self._seed(step, row[0].number)
            work = partial(self._loss, loss_of, row, share, found)
            loss = work() if self.zero is None else self.zero.forward(work)
            if loss.requires_grad and self.zero is not None:
                self.zero.backward(loss, last=row is rows[-1])
            elif loss.requires_grad:
                loss.backward()
            else:  # nothing that learns has a part in it
                let_go(self.model)
            total += loss.item()
        parts = processes.gather((total, found))
        for name in sorted({name for _, part in parts for name in part}):
            notes[name] = sum(part.get(name, 0.0) for _, part in parts)
        return sum(loss for loss, _ in parts), {name: round(value, 4) for name, value in notes.items()}

    def _loss(self, loss_of: Callable[..., Tensor], row: list[Sample], share: int, found: dict[str, float]) -> Tensor:
        """A row's part of the loss of a step."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._autocast):
            return loss_of(row, share, found) / share

    def _seed(self, step: int, number: int) -> None:
        """Let dropout draw from a stream of the row's own: the resumed run is the unbroken one, in how many processes
        whatever."""
        stream = f"{self._stream} {step} {number}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7], "big"))

    def samples(self, step: int) -> list[Sample]:
        """What this process learns from in a step. A sample that cannot be shown is told in the report, and left out.

        Raises:
            RecipeError: too many of them cannot.
        """
        samples, broken = [], []
        for turn in deal(self.stage)[0]:
            position = step * self.stage.batch + turn
            try:
                samples.append(replace(self.sample(position), number=turn))
            except (MediaError, RequestError) as error:
                data, number = self.mixture.at(position)
                broken.append((position + 1, data.place(number), str(error)))
        reported = sorted(itertools.chain(*processes.gather(broken)))
        if reported:
            with processes.together():
                for entry in reported if processes.is_first() else ():
                    self.ward.add(step, *entry)
        return samples

    def sample(self, position: int) -> Sample:
        """What stands at a position of the stage's data, whoever asks.

        Raises:
            MediaError, RequestError: it cannot be shown.
        """
        data, number = self.mixture.at(position)
        draw = random.Random(f"{self._stream} crop {position}").random()
        return prepare(self.processor, data[number], self.stage, self.longest, draw)

    def _levelled(self, rows: list[list[Sample]], shown: list[list[bool]]) -> list[list[Sample]]:
        """As many rows as any process has, each with a picture where any of them shows one there.

        Weights that are held in shares are gathered by all processes, or none; what they lack is made up by blanks.
        With DeepSpeed all rows get a picture: ZeRO-3 adds up old gradients with those of a step whose first row gave
        none.
        """
        levelled = []
        for number in range(max(map(len, shown))):
            row = rows[number] if number < len(rows) else []
            picture = self.zero is not None or any(shows[number] for shows in shown if number < len(shows))
            levelled.append(row if row and shows(row) >= picture else [*row, self._blank(picture)])
        return levelled

    def _blank(self, picture: bool) -> Sample:
        """A sample from which nothing is learned, with a picture or without."""
        parts = [Part("image", source=Image.new("RGB", (32, 32)))] if picture else []
        media = open_media(parts, None, default=self.processor.default_media)
        inputs = self.processor.prepare([ask("?", *parts), Message.of("assistant", "!")], media, train=True)
        inputs.text_inputs["labels"].fill_(IGNORED)
        return Sample(inputs, inputs if self.stage.objective == "preference" else None, blank=True)

    @staticmethod
    def _learned(samples: Sequence[Sample]) -> int:
        return sum(int((sample.inputs.text_inputs["labels"][:, 1:] != IGNORED).sum()) for sample in samples)

    def _supervised(self, row: Sequence[Sample], *_: Any) -> Tensor:
        """Cross-entropy of the learned words, summed."""
        arguments = self.model.embed_pictures(self.processor.collate([sample.inputs for sample in row]))
        if self.stage.pack:
            arguments = self.model.pack(arguments)
        return -word_log_probs(self.model, arguments)[0].sum()

    def _preference(self, row: Sequence[Sample], share: int, found: dict[str, float]) -> Tensor:
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
        real = torch.tensor([not sample.blank for sample in row], device=ours[0].device)
        margin = self.stage.beta * ((ours[0] - theirs[0]) - (ours[1] - theirs[1]))[real]
        found["margin"] = found.get("margin", 0.0) + margin.sum().item() / share
        found["preferred"] = found.get("preferred", 0.0) + (margin > 0).sum().item() / share
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
    return model.embed_pictures(words, features=seen)


def shows(row: Sequence[Sample]) -> bool:
    """Whether there is a picture in a row."""
    return any(sample.inputs.num_pictures for sample in row)


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
