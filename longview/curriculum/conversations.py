"""`answers` and `words`: next-token loss in conversations about the synthetic world, shown or described in text.

a conversation ── forward ── the assistant's tokens; with probes, labels of hidden states, too: see probes.py
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from longview.curriculum.pool import paint_pool
from longview.curriculum.probes import (
    AskedQuestion,
    FactToken,
    fact_ends,
    fact_loss,
    picture_loss,
    placeholder_loss,
    pointer_loss,
    question_loss,
)
from longview.curriculum.samples import draw_kind, draw_sample
from longview.curriculum.siglip import SiglipModel
from longview.curriculum.world import WorldObjective, encode_pool, pool_settings
from longview.errors import RecipeError
from longview.messages import Part, Progress, ask
from longview.models.base import IGNORED, ModelInputs
from longview.train.data.samples import count_learned
from longview.train.objectives.base import Notes, PassShape, SampleQuestion, SampleSizes
from longview.train.recipe import Recipe, Stage
from longview.world.questions import ask_about
from longview.world.render import render
from longview.world.scenes import draw_picture

ASKED_WEIGHT = 5.0  # of what stands before an answer, against the 36 facts at a placeholder
FOUND_WEIGHT = 0.1  # of the 31 labels of the picture that is found, against the question itself
POINTED_WEIGHT = 0.5  # of the places and pictures that are pointed at, against the question itself
PAINTED, LOOKED_AT = 32, 16
"""Pictures that are painted, and samples drawn from them, to measure their sizes."""


class ConversationBatch(NamedTuple):
    """Conversations about pictures of the pool."""

    rows: list[ModelInputs]
    indices: list[int]
    """Of all their pictures, in order, in the pool."""
    asked: list[AskedQuestion]
    facts: list[FactToken]
    """Where descriptions in text have stated what."""
    number: int = 0


class Answers(WorldObjective):
    """Cross-entropy of the assistant's tokens, and that of the probes where the stage has any."""

    in_text = False
    """Whether scenes are described in text, and not shown."""
    titles = {  # noqa: RUF012
        "answers": "loss of answers", "probe": "probe: contents of pictures", "asked": "probe: what is asked",
        "found": "probe: the picture meant", "pointed": "probe: where to look",
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
        few = dataclasses.replace(few, pictures=PAINTED, clips=min(2, few.clips))
        pool = paint_pool(few, model.config.picture_size, self.recipe.seed)
        settings = self.settings if pool.simple else dataclasses.replace(self.settings, simple=0.0)
        rng, sizes = random.Random(f"{self.recipe.seed} sizes"), SampleSizes([], [], [])
        for _ in range(LOOKED_AT):
            sample = draw_sample(rng, pool, settings, draw_kind(rng, settings.mix))
            inputs = processor.prepare(sample.messages, sample.media, train=True)
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

    def draw(self, rng: random.Random) -> tuple[ConversationBatch, Notes]:
        kind = draw_kind(rng, self.settings.mix)
        batch, tokens = ConversationBatch([], [], [], []), 0
        while tokens < self.settings.tokens:
            sample = draw_sample(rng, self.pool, self.settings, kind, self.in_text)
            row = self.processor.prepare(sample.messages, sample.media, train=True)
            first = len(batch.indices)
            for question in sample.questions:
                about = question.about or int(kind == "1")
                batch.asked.append(AskedQuestion(question, first + about - 1 if about else None))
            if sample.description is not None:
                ids = row.text_inputs["input_ids"][0].tolist()
                ends = fact_ends(self.processor.tokenizer, ids, sample.description)
                for end, mention in zip(ends, sample.description.mentions, strict=True):
                    batch.facts.append(
                        FactToken(len(batch.rows), end, first + mention.picture, mention.picture, mention.cell)
                    )
            # features need no pixels
            batch.rows.append(row if self.world.features is None else dataclasses.replace(row, encoder_inputs=()))
            batch.indices.extend(sample.indices)
            tokens += row.length
        pictures = 0 if self.in_text else len(batch.indices)
        return batch, {"samples": len(batch.rows), "tokens": tokens, "pictures": pictures, "kind": kind}

    def loss(self, batch: ConversationBatch) -> tuple[Tensor, Notes]:
        collated = self.processor.collate(batch.rows)
        features = self.world.features
        arguments = self.model.embed_pictures(collated, features=None if features is None else features[batch.indices])
        labels = arguments.pop("labels")[:, 1:]
        output = self.model(**arguments, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        # Three tokens in four are not learned; logits of them would be for nothing.
        learned = labels != IGNORED
        logits = self.model.get_output_embeddings()(output.hidden_states[-1][:, :-1][learned])
        loss = functional.cross_entropy(logits, labels[learned])
        notes: Notes = {"answers": loss.item()}
        if not self.settings.probe_layer:
            return loss, notes
        at_placeholders, understanding, finding, pointing = output.hidden_states[self.settings.probe_layer :][:4]
        begins = learned & ~functional.pad(learned, (1, 0))[:, :-1]  # (B, T - 1): the last token before each answer
        of_pictures = self.pool.labels[batch.indices]
        probe = self.probe_loss(at_placeholders, batch, collated, of_pictures)
        asked = question_loss(self.probes, understanding[:, :-1][begins], batch.asked)
        found = picture_loss(self.probes, finding[:, :-1][begins], batch.asked, of_pictures)
        pointed = pointer_loss(self.probes, pointing[:, :-1][begins], batch.asked)
        losses = {"probe": probe, "asked": asked, "found": found, "pointed": pointed}
        notes |= {name: value.item() for name, value in losses.items()}
        probed = probe + ASKED_WEIGHT * (asked + FOUND_WEIGHT * found + POINTED_WEIGHT * pointed)
        return loss + self.settings.probe_weight * probed, notes

    def probe_loss(self, hidden: Tensor, batch: ConversationBatch, collated: Any, labels: Tensor) -> Tensor:
        """Of the first probed block (B, T, D): the labels (N, 31) of the batch's pictures at their placeholders."""
        return placeholder_loss(self.probes, hidden, self.processor.placeholder_positions(collated), labels)

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


class Words(Answers):
    """The same about scenes that are described in text: for a language model without pictures."""

    in_text = True

    def measure(self, model: Any, processor: Any) -> SampleSizes | None:
        return None

    def begin(self, progress: Progress) -> None:
        self.world.features = None

    def probe_loss(self, hidden: Tensor, batch: ConversationBatch, collated: Any, labels: Tensor) -> Tensor:
        return fact_loss(self.probes, hidden, batch.facts, labels)

    @classmethod
    def sample_questions(cls, recipe: Recipe, stage: Stage) -> tuple[str, Iterator[SampleQuestion]] | None:
        return None
