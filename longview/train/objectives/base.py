"""The contract of an objective: what one stage minimises, what it needs for that, and what it reports.

    recipe ── Objective ── batches(step) ── loss(batch) ── gradients, added up by `accumulate_gradients`

An objective is made from the recipe alone, so that a plan can be made before any weight is read; `attach` gives it the
model. `longview.train.recipe.objective_class` finds it by the stage's `objective`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from longview.messages import Message, Part, Progress
from longview.train.recipe import Recipe, Stage, objective_class

Notes = dict[str, Any]
"""Numbers and texts of a step for the log."""


class Batch(Protocol):
    """Samples that pass the model together."""

    @property
    def number(self) -> int:
        """Which of its step's samples it begins with: dropout draws from a stream of that name."""


class SampleSizes(NamedTuple):
    """What the samples that were opened hold, one number a sample."""

    tokens: list[int]
    """Positions of the language sequence."""
    pictures: list[int]
    learned: list[int]
    """Tokens that are learned."""
    broken: int = 0


class PassShape(NamedTuple):
    """Samples that pass the model together, for an estimate."""

    rows: int
    positions: int
    """Of each row; 0: pictures pass alone."""
    pictures: float
    learned: float
    """Tokens."""
    passes: float
    """Such passes a step."""


class SampleQuestion(NamedTuple):
    """A conversation that ends with a question, and the answer that is right."""

    messages: list[Message]
    expected: str
    frames: int = 0
    """Of a video at most; 0: as many as the model's family takes."""
    fps: float = 0.0
    """Frames a second of a video; 0: as the family chooses them."""

    @property
    def media(self) -> list[Part]:
        return [part for message in self.messages for part in message.media]


class Objective:
    """What one stage minimises."""

    runs_anywhere: ClassVar[bool] = True
    """In any number of processes; else in one."""
    cosine_after_warmup: ClassVar[bool] = True
    """Whether the cosine of the learning rate begins where the warm-up ends; else both begin at the first step."""
    compares: ClassVar[bool] = False
    """Whether it needs the model as the run started from it: a frozen copy, or, with an adapter, the model without."""
    conversations: ClassVar[int] = 1
    """How many conversations of a sample pass the model."""
    titles: ClassVar[Mapping[str, str]] = {}
    """Titles of its notes in the report, where the names alone are unclear."""

    def __init__(self, recipe: Recipe, number: int, earlier: Sequence[Objective] = ()) -> None:
        """Args:
        number: Of the stage in the recipe.
        earlier: Objectives of the stages before, which may share what they have made.

        Raises:
            RecipeError: the data cannot be read.
        """
        self.number = number
        self.use_recipe(recipe)

    def use_recipe(self, recipe: Recipe) -> None:
        """Take the recipe again, with steps in place of epochs."""
        self.recipe, self.stage = recipe, recipe.stages[self.number]

    # ── before the run ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def epoch(self) -> int | None:
        """Samples of an epoch; None where there are no epochs."""
        return None

    @property
    def encodes(self) -> bool:
        """Whether pictures pass the encoder in each step."""
        return True

    def digests(self) -> dict[str, str]:
        """Digests of the files that it learns from, by name: a resumed run must find the same."""
        return {}

    def describe(self) -> tuple[str, str | None]:
        """What a step holds, and what there is to learn from, for the dry run."""
        return "", None

    def check_model(self, model: Any, processor: Any) -> None:
        """
        Raises:
            RecipeError: the stage asks for what the model does not have.
        """

    def measure(self, model: Any, processor: Any) -> SampleSizes | None:
        """Sizes of the first samples; None where they are unknown before the run."""
        return None

    def pass_shape(self, tokens: float, pictures: float, learned: float) -> PassShape:
        """How samples of so many tokens, pictures and learned tokens each pass the model."""
        raise NotImplementedError

    # ── during the run ───────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, model: Any, processor: Any, output: Path, reference: Any = None) -> None:
        """Take the model that will be trained.

        Args:
            output: The folder of the run.
            reference: Where `compares`: the frozen copy; None: it is the model without its adapter.
        """
        self.model, self.processor, self.reference = model, processor, reference

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What learns beside the model and is saved with the run's state, by name; objectives may share it."""
        return {}

    def prepare(self, progress: Progress) -> None:
        """Make what its steps draw from, once, before the first stage that is still to come."""

    def begin(self, progress: Progress) -> None:
        """Its stage begins, or goes on."""

    workers: int = 0
    """Processes in which what can be made ahead of the steps is made; 0: in this one."""

    def end(self) -> None:
        """Its stage is over, or interrupted."""

    def batches(self, step: int) -> tuple[Sequence[Batch], Notes]:
        """This process's batches of a step, and what all processes' batches hold: samples, tokens, pictures.

        Without samples there are no batches, and no gradients.
        """
        raise NotImplementedError

    def loss(self, batch: Any) -> tuple[Tensor, Notes]:
        """A batch's part of the loss of its step, and numbers to note; both are summed over the step's batches."""
        raise NotImplementedError

    def validation_batches(self) -> Iterator[tuple[Batch, int]]:
        """This process's batches of samples that are never learned from, each with what its loss is a sum over."""
        yield from ()

    @property
    def validates(self) -> bool:
        """Whether there are such samples."""
        return False

    # ── after the run ────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def sample_questions(cls, recipe: Recipe, stage: Stage) -> tuple[str, Iterator[SampleQuestion]] | None:
        """Questions for the report, and what they are about; None where the objective teaches nothing to answer."""
        return None


def make_objectives(recipe: Recipe) -> list[Objective]:
    """The objective of each stage.

    Raises:
        RecipeError: data of one cannot be read.
    """
    made: list[Objective] = []
    for number, stage in enumerate(recipe.stages):
        made.append(objective_class(stage)(recipe, number, made))
    return made
