"""`answers` and `words`: next-token loss in conversations about the synthetic world, shown or described in text.

a conversation ── forward ── the assistant's tokens; with probes, labels of hidden states, too: see probes.py
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.curriculum.pool import paint_pool
from longview.curriculum.probes import (
    AskedQuestion,
    AskedTargets,
    FactToken,
    asked_targets,
    fact_ends,
    fact_loss,
    picture_loss,
    placeholder_loss,
    pointer_loss,
    question_loss,
)
from longview.curriculum.samples import draw_count, draw_kind, draw_sample
from longview.curriculum.settings import MAX_PICTURES
from longview.curriculum.siglip import SiglipModel
from longview.curriculum.world import WorldObjective, encode_pool, encoding_together, family_views, pool_settings
from longview.errors import RecipeError
from longview.messages import Part, Progress, ask
from longview.models.base import DEFAULT_FORMAT, IGNORED, ModelInputs, SampleFormat
from longview.train.data.samples import count_learned
from longview.train.objectives.base import Notes, PassShape, SampleQuestion, SampleSizes
from longview.train.recipe import Recipe, Stage
from longview.world.questions import ask_about
from longview.world.render import render
from longview.world.scenes import draw_picture

ASKED_WEIGHT = 5.0  # of what stands before an answer, against the 36 facts at a placeholder
FOUND_WEIGHT = 0.1  # of the 31 labels of the picture that is found, against the question itself
POINTED_WEIGHT = 0.5  # of the places and pictures that are pointed at, against the question itself
SCORES = 64 << 20
"""Pairs of positions in the rows of a batch, at most, padding included: they bound what attention takes in memory."""
PAINTED, LOOKED_AT = 32, 16
"""Pictures that are painted, and samples drawn from them, to measure their sizes."""


class ConversationBatch(NamedTuple):
    """Conversations about pictures of the pool, in tensors alone, so that another process can make it."""

    inputs: dict[str, Any]
    """What `collate` made of them, without pixels."""
    indices: Tensor
    """Of all their pictures, in order, in the pool."""
    numbers: Tensor
    """Of the pictures in their conversations, from 1; 0: the picture has none."""
    places: Tensor
    """Of the pictures' placeholders; see `Processor.placeholder_positions`."""
    asked: AskedTargets
    facts: list[FactToken]
    """Where descriptions in text have stated what."""
    looked_at: Tensor
    """Of pictures whose text is read by a probe, in the pool."""
    probes_alone: bool = False
    """Whether the probes learn to read hidden states, and what they read learns nothing of them."""
    number: int = 0


class Answers(WorldObjective):
    """Cross-entropy of the assistant's tokens, and that of the probes where the stage has any."""

    in_text = False
    """Whether scenes are described in text, and not shown."""
    titles = {  # noqa: RUF012
        "answers": "loss of answers", "probe": "probe: contents of pictures", "asked": "probe: what is asked",
        "found": "probe: the picture meant", "pointed": "probe: where to look", "read": "probe: text of pictures",
    }  # fmt: skip

    def describe(self) -> tuple[str, str | None]:
        return f"about {self.settings.tokens:,} tokens", None

    def check_model(self, model: Any, processor: Any) -> None:
        where, layer = f"stages.{self.stage.name}", self.settings.probe_layer
        if isinstance(model, SiglipModel):
            raise RecipeError(
                f"{where}.objective {self.stage.objective!r} does not fit this model: towers answer no questions"
            )
        blocks = model.config.get_text_config().num_hidden_layers
        if layer and layer + 3 > blocks:
            raise RecipeError(
                f"{where}.world.probe_layer is {layer}, and three blocks must follow it; the model has {blocks}"
            )

    def measure(self, model: Any, processor: Any) -> SampleSizes | None:
        few = pool_settings(self.recipe)
        few = dataclasses.replace(few, pictures=PAINTED, clips=min(2, few.clips), close=min(2, few.close))
        pool = paint_pool(few, model.config.picture_size, self.recipe.seed, views=family_views(processor))
        settings = self.settings if pool.simple else dataclasses.replace(self.settings, simple=0.0)
        rng, sizes = random.Random(f"{self.recipe.seed} sizes"), SampleSizes([], [], [])
        for _ in range(LOOKED_AT):
            kind = draw_kind(rng, settings.mix)
            sample = draw_sample(rng, pool, settings, kind, count=draw_count(rng, settings, kind, settings.grow))
            inputs = processor.prepare(sample.messages, sample.media, True, format_of(kind))
            sizes.tokens.append(inputs.length)
            sizes.pictures.append(inputs.num_pictures)
            sizes.learned.append(count_learned(inputs))
        return sizes

    def pass_shape(self, tokens: float, pictures: float, learned: float) -> PassShape:
        together = self.settings.tokens / tokens
        return PassShape(math.ceil(together), math.ceil(tokens), together * pictures, together * learned, 1)

    def begin(self, progress: Progress) -> None:
        """Encode the pool once where the encoder does not learn."""
        if self.encodes:
            self.world.features = None
        elif self.world.features is None:
            self.world.features = encode_pool(self.model, self.processor, self.pool, progress)

    def draw(self, rng: random.Random, step: int = 0) -> tuple[ConversationBatch, Notes]:
        kind = draw_kind(rng, self.settings.mix)
        count = draw_count(rng, self.settings, kind, step)
        rows: list[ModelInputs] = []
        indices, numbers, asked, facts = list[int](), list[int](), list[AskedQuestion](), list[FactToken]()
        tokens = longest = 0
        patches = self.model.config.patches_per_picture
        while tokens < self.settings.tokens and (len(rows) + 1) * longest**2 <= SCORES:
            sample = draw_sample(rng, self.pool, self.settings, kind, self.in_text, count)
            row = self.processor.prepare(sample.messages, sample.media, True, format_of(kind))
            first = len(indices)
            for question in sample.questions:
                about = question.about or int(len(sample.indices) == 1)
                asked.append(AskedQuestion(question, first + about - 1 if about else None))
            if sample.description is not None:
                ids = row.text_inputs["input_ids"][0].tolist()
                ends = fact_ends(self.processor.tokenizer, ids, sample.description)
                for end, mention in zip(ends, sample.description.mentions, strict=True):
                    facts.append(FactToken(len(rows), end, first + mention.picture, mention.picture, mention.cell))
            rows.append(dataclasses.replace(row, encoder_inputs=(), media=()))  # pixels are the pool's
            indices += sample.indices
            numbers += sample.numbers or [_number(kind, n) for n in range(1, len(sample.indices) + 1)]
            tokens += row.length
            longest = max(longest, row.text_inputs["input_ids"].shape[1] + row.num_pictures * patches)
        collated = dict(self.processor.collate(rows))
        batch = ConversationBatch(
            collated,
            torch.tensor(indices, dtype=torch.long),
            torch.tensor(numbers, dtype=torch.long),
            self.processor.placeholder_positions(collated),
            asked_targets(asked),
            facts,
            torch.tensor(self.draw_read(rng), dtype=torch.long),
            step < self.settings.probe_from,
        )
        pictures = 0 if self.in_text else len(indices)
        return batch, {"samples": len(rows), "tokens": tokens, "pictures": pictures, "kind": kind}

    def loss(self, batch: ConversationBatch) -> tuple[Tensor, Notes]:
        device = self.model.device
        features = self.world.features
        inputs = dict(batch.inputs)
        shift = self.settings.shift if len(batch.places) > len(batch.indices) else 0  # of close pictures
        shown = not self.in_text and len(batch.indices) > 0
        if shown and features is not None:
            arguments = self.model.embed_pictures(inputs, features=features[batch.indices.to(device)])
        else:
            pixels = self.pixels(batch.indices, shift) if shown else {}
            with encoding_together(self.model):
                arguments = self.model.embed_pictures(inputs | pixels)
        labels = arguments.pop("labels")[:, 1:]
        output = self.model(**arguments, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        # Three tokens in four are not learned; logits of them would be for nothing.
        learned = labels != IGNORED
        logits = self.model.get_output_embeddings()(output.hidden_states[-1][:, :-1][learned])
        loss = functional.cross_entropy(logits, labels[learned])
        losses = {"answers": loss}
        if len(batch.looked_at):
            losses["read"] = self.text_loss(batch.looked_at, batch.probes_alone)
            loss = loss + self.settings.text_probe_weight * losses["read"]
        if self.settings.probe_layer:
            read = output.hidden_states[self.settings.probe_layer :][:4]
            read = [hidden.detach() if batch.probes_alone else hidden for hidden in read]
            at_placeholders, understanding, finding, pointing = read
            begins = learned & ~functional.pad(learned, (1, 0))[:, :-1]  # (B, T - 1): the last token before each answer
            of_pictures = self.labels(batch.indices)
            asked = AskedTargets(*(target.to(device) for target in batch.asked))
            probed = {
                "probe": self.probe_loss(at_placeholders, batch, of_pictures),
                "asked": question_loss(self.probes, understanding[:, :-1][begins], asked),
                "found": picture_loss(self.probes, finding[:, :-1][begins], asked, of_pictures),
                "pointed": pointer_loss(self.probes, pointing[:, :-1][begins], asked),
            }
            before = probed["asked"] + FOUND_WEIGHT * probed["found"] + POINTED_WEIGHT * probed["pointed"]
            loss = loss + self.settings.probe_weight * (probed["probe"] + ASKED_WEIGHT * before)
            losses |= probed
        values = torch.stack([value.detach().float() for value in losses.values()]).tolist()
        return loss, dict(zip(losses, values, strict=True))

    def probe_loss(self, hidden: Tensor, batch: ConversationBatch, labels: Tensor) -> Tensor:
        """Of the first probed block (B, T, D): the labels (N, 31) of the batch's pictures at their placeholders."""
        if not len(labels) or len(batch.places) != len(labels):  # text alone; crops, each of which shows a part
            return hidden.new_zeros(())
        device = hidden.device
        return placeholder_loss(self.probes, hidden, batch.places.to(device), labels, batch.numbers.to(device))

    @classmethod
    def sample_questions(cls, recipe: Recipe, stage: Stage) -> tuple[str, Iterator[SampleQuestion]] | None:
        """Questions about pictures of the held-out side, of which no run paints any."""

        def questions() -> Iterator[SampleQuestion]:
            rng = random.Random(f"{recipe.seed} sample answers")
            while True:
                scenes = [draw_picture(rng, held_out=True) for _ in range(rng.choice((1, 1, 2)))]
                question = ask_about(rng, *scenes)
                pictures = [Part("image", source=render(scene, rng.randrange(1 << 30))) for scene in scenes]
                yield SampleQuestion([ask(question.text, *pictures)], question.answer)

        return "held-out pictures of the synthetic world", questions()


def _number(kind: str, number: int) -> int:
    """What a picture is called; 0: in a long film or before a question about knowledge, no text numbers it."""
    return 0 if kind == "knowledge" or (kind == "film" and number > MAX_PICTURES) else number


def format_of(kind: str) -> SampleFormat:
    """How samples of a kind are laid out: only what is shown close is cut, as the family cuts it."""
    return DEFAULT_FORMAT if kind == "close" else SampleFormat(cut=False)


class Words(Answers):
    """The same about scenes that are described in text: for a language model without pictures."""

    in_text = True

    def measure(self, model: Any, processor: Any) -> SampleSizes | None:
        return None

    def begin(self, progress: Progress) -> None:
        self.world.features = None

    def probe_loss(self, hidden: Tensor, batch: ConversationBatch, labels: Tensor) -> Tensor:
        return fact_loss(self.probes, hidden, batch.facts, labels)

    @classmethod
    def sample_questions(cls, recipe: Recipe, stage: Stage) -> tuple[str, Iterator[SampleQuestion]] | None:
        return None
