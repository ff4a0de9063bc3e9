"""What objectives over a user's data share: the samples of a step, as batches, in any number of processes.

    position ── Mixture ── Example ── media ── processor ── ModelInputs ─┐ a step's samples
                              └ broken: Quarantine                       │
                        batches, padded or packed ── loss ── gradients, added up

The loss of a step is a mean over the whole step (of learned tokens, of pairs), whatever batches they came in: neither
the size of the batches nor packing changes it, nor the number of processes that the step's samples are dealt out to.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from longview.errors import MediaError, RecipeError, RequestError
from longview.media import open_media
from longview.messages import Message, Part, ask
from longview.models.base import IGNORED
from longview.train.data.batches import batched, deal, has_picture
from longview.train.data.datasets import Mixture
from longview.train.data.quarantine import Quarantine
from longview.train.data.sample_format import check_cutting
from longview.train.data.samples import TrainingSample, count_learned, max_length_of, prepare
from longview.train.data.settings import DataSettings
from longview.train.distributed import processes, zero
from longview.train.objectives.base import Notes, Objective, PassShape, SampleQuestion, SampleSizes
from longview.train.recipe import Recipe, Stage, data_of

LOOKED_AT = 16
"""Samples that are opened to measure their sizes."""


class DataBatch(NamedTuple):
    """Samples that pass the model together."""

    samples: list[TrainingSample]
    divisor: int
    """What the sum over the whole step is divided by: learned tokens, or pairs."""

    @property
    def number(self) -> int:
        return self.samples[0].number


class DataObjective(Objective):
    """One stage over a user's rows."""

    def __init__(self, recipe: Recipe, number: int, earlier: Sequence[Objective] = ()) -> None:
        super().__init__(recipe, number, earlier)
        self.settings = data_of(self.stage)
        self.mixture = Mixture(self.stage, recipe.seed)
        self._seed = f"{recipe.seed} {self.stage.name}"

    # ── before the run ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def epoch(self) -> int:
        return self.mixture.epoch

    def digests(self) -> dict[str, str]:
        return self.mixture.digests()

    def describe(self) -> tuple[str, str | None]:
        drawn = self.stage.steps * self.settings.batch
        epochs = f"{self.epoch:,} samples an epoch, {drawn / self.epoch:.2f} epochs"
        data = f"a stream, {drawn:,} samples of it" if self.mixture.streams else epochs
        if self.validates:
            data += f"; {len(self.mixture.validation):,} more to judge by"
        return f"{self.settings.batch:,} samples", data

    def check_model(self, model: Any, processor: Any) -> None:
        if not hasattr(processor, "prepare"):
            raise RecipeError(
                f"stages.{self.stage.name}.objective {self.stage.objective!r} does not fit this model, which reads no "
                "conversations; start from a model of a family"
            )
        check_cutting(self.stage, processor, self.mixture)

    def measure(self, model: Any, processor: Any) -> SampleSizes:
        sizes = SampleSizes([], [], [])
        max_length = max_length_of(model.config, self.settings)
        for position in range(min(LOOKED_AT, self.epoch)):
            try:
                sample = self._open(position, processor, max_length)
            except (MediaError, RequestError):
                sizes = sizes._replace(broken=sizes.broken + 1)
                continue
            sizes.tokens.append(max(inputs.length for inputs in sample.conversations))
            sizes.pictures.append(sample.inputs.num_pictures)
            sizes.learned.append(max(map(count_learned, sample.conversations)))
        return sizes

    def pass_shape(self, tokens: float, pictures: float, learned: float) -> PassShape:
        return pass_shape(self.settings, tokens, pictures, learned)

    # ── during the run ───────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, model: Any, processor: Any, output: Path, reference: Any = None) -> None:
        super().attach(model, processor, output, reference)
        path = output / "quarantine.jsonl"
        self.quarantine = Quarantine(path, self.settings.quarantine, self.stage.name, self.number)
        self.max_length = max_length_of(model.config, self.settings)

    def batches(self, step: int) -> tuple[list[DataBatch], Notes]:
        samples = self.samples(step)
        batches = list(batched(samples, self.settings))
        mine = {
            "samples": len(samples),
            "tokens": sum(inputs.length for sample in samples for inputs in sample.conversations),
            "pictures": sum(sample.inputs.num_pictures for sample in samples),
            "learned": sum(count_learned(sample.inputs) for sample in samples),
        }
        shares = processes.gather((mine, [has_picture(batch) for batch in batches]))
        counts: Notes = {name: sum(share[name] for share, _ in shares) for name in mine}
        learned = counts.pop("learned")
        if processes.count() > 1 and self.recipe.parallel != "ddp":
            batches = self._levelled(batches, [pictures for _, pictures in shares])
        divisor = max(1, self.divisor(counts["samples"], learned))
        return [DataBatch(batch, divisor) for batch in batches], counts

    def divisor(self, samples: int, learned: int) -> int:
        """What the loss of a step is a mean over, of its samples and learned tokens."""
        raise NotImplementedError

    def samples(self, step: int) -> list[TrainingSample]:
        """What this process learns from in a step. A sample that cannot be shown is reported, and left out.

        Raises:
            RecipeError: too many of them cannot.
        """
        samples, broken = [], []
        for number in deal(self.settings)[0]:
            position = step * self.settings.batch + number
            try:
                samples.append(replace(self.sample(position), number=number))
            except (MediaError, RequestError) as error:
                data, row = self.mixture.at(position)
                broken.append((position + 1, data.place(row), str(error)))
        reported = sorted(itertools.chain(*processes.gather(broken)))
        if reported:
            with processes.fail_together():
                for entry in reported if processes.is_first() else ():
                    self.quarantine.add(step, *entry)
        return samples

    def sample(self, position: int) -> TrainingSample:
        """The sample at a position of the stage's data, the same whichever process asks.

        Raises:
            MediaError, RequestError: it cannot be shown.
        """
        return self._open(position, self.processor, self.max_length)

    def _open(self, position: int, processor: Any, max_length: int) -> TrainingSample:
        data, row = self.mixture.at(position)
        draw = random.Random(f"{self._seed} crop {position}").random()
        return prepare(processor, data[row], self.settings, max_length, draw)

    @property
    def validates(self) -> bool:
        return bool(self.mixture.validation)

    def validation_batches(self) -> Iterator[tuple[DataBatch, int]]:
        """Samples that cannot be shown are left out."""
        rows = self.mixture.validation[processes.rank() :: processes.count()]
        size = deal(self.settings)[1] if not self.settings.pack else self.settings.batch
        for begin in range(0, len(rows), size):
            samples = []
            for number, (data, row) in enumerate(rows[begin : begin + size]):
                draw = random.Random(f"{self._seed} crop validation {data.path} {row}").random()
                try:
                    sample = prepare(self.processor, data[row], self.settings, self.max_length, draw)
                except (MediaError, RequestError):
                    continue
                samples.append(replace(sample, number=number))
            for batch in batched(samples, self.settings):
                learned = sum(count_learned(sample.inputs) for sample in batch)
                yield DataBatch(batch, 1), self.divisor(len(batch), learned)

    def _levelled(self, batches: list[list[TrainingSample]], pictures: list[list[bool]]) -> list[list[TrainingSample]]:
        """As many batches as any process has, each with a picture where any process's has one there.

        Weights that are held in shares are gathered by all processes, or none; what they lack is made up by blanks.
        With DeepSpeed all batches get a picture: ZeRO-3 adds up old gradients with those of a step whose first batch
        gave none.
        """
        levelled = []
        for number in range(max(map(len, pictures))):
            batch = batches[number] if number < len(batches) else []
            picture = self.recipe.parallel in zero.STAGES or any(p[number] for p in pictures if number < len(p))
            levelled.append(batch if batch and has_picture(batch) >= picture else [*batch, self._blank(picture)])
        return levelled

    def _blank(self, picture: bool) -> TrainingSample:
        """A sample from which nothing is learned, with a picture or without."""
        parts = [Part("image", source=Image.new("RGB", (32, 32)))] if picture else []
        media = open_media(parts, None, default=self.processor.default_media)
        inputs = self.processor.prepare([ask("?", *parts), Message.of("assistant", "!")], media, train=True)
        inputs.text_inputs["labels"].fill_(IGNORED)
        return TrainingSample(inputs, inputs if self.conversations > 1 else None, blank=True)

    # ── after the run ────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def sample_questions(cls, recipe: Recipe, stage: Stage) -> tuple[str, Iterator[SampleQuestion]] | None:
        """The first samples of the first dataset; of those held out, where there are any."""
        settings = data_of(stage)
        if settings.validation:
            held = Mixture(stage, recipe.seed).validation
            asked = (data[row].messages for data, row in held)
            about = "samples that were held out for validation"
            return about, (SampleQuestion(list(m[:-1]), m[-1].text, settings.frames, settings.fps) for m in asked)
        first = replace(settings, datasets=settings.datasets[:1])
        mixture = Mixture(replace(stage, data=first), recipe.seed)

        def questions() -> Iterator[SampleQuestion]:
            for position in range(mixture.epoch):
                data, row = mixture.at(position)
                messages = data[row].messages
                yield SampleQuestion(list(messages[:-1]), messages[-1].text, settings.frames, settings.fps)

        return f"samples of {first.datasets[0].path.rpartition('/')[2]}, from which it learned", questions()


def pass_shape(settings: DataSettings, tokens: float, pictures: float, learned: float) -> PassShape:
    """How samples of so many tokens, pictures and learned tokens each pass the model, padded or packed."""
    together = max(1.0, settings.pack / tokens) if settings.pack else min(settings.micro_batch, settings.batch)
    rows, positions = (1, settings.pack) if settings.pack else (int(together), math.ceil(tokens))
    return PassShape(rows, positions, together * pictures, together * learned, settings.batch / together)
