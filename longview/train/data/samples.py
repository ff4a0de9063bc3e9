"""An example of a user's data → a sample as the model takes it: media opened, tokens and labels made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from longview.errors import RequestError
from longview.models.base import IGNORED, ModelInputs
from longview.train.data.rows import Example
from longview.train.data.sample_format import open_shown, sample_format_of
from longview.train.data.settings import DataSettings


@dataclass(frozen=True)
class TrainingSample:
    """An example as the model takes it."""

    inputs: ModelInputs
    rejected: ModelInputs | None = None
    """The same conversation with the rejected answer, for preferences."""
    number: int = 0
    """Which of its step's samples it is."""
    blank: bool = False
    """Nothing is learned from it: it keeps processes with fewer samples in step with the others."""

    @property
    def length(self) -> int:
        """Positions of the language sequence."""
        return self.inputs.length

    @property
    def conversations(self) -> list[ModelInputs]:
        """What of it passes the model."""
        return [self.inputs] if self.rejected is None else [self.inputs, self.rejected]


def prepare(
    processor: Any, example: Example, settings: DataSettings, max_length: int, draw: float = 0.0
) -> TrainingSample:
    """Open an example's media, decode the frames that are shown, and make inputs of all of it.

    Args:
        max_length: Positions that a sample may take, see `max_length_of`.
        draw: From 0 to 1: whether the example is among the share whose pictures are cut.

    Raises:
        MediaError: a picture or video cannot be read.
        RequestError: it does not fit the model.
    """
    media = open_shown(example.media, settings.frames, settings.fps, processor.default_media)
    sample_format = sample_format_of(example, settings, draw)
    if sample_format.max_partition is not None and "max_partition" not in processor.crop_settings:
        raise RequestError("it says max_partition, and this model cuts no picture into so many crops")
    conversations = [example.messages]
    if example.rejected is not None:
        conversations.append((*example.messages[:-1], example.rejected))
    prepared = [
        processor.prepare(list(messages), media, train=True, sample_format=sample_format) for messages in conversations
    ]
    for inputs in prepared:
        if inputs.length > max_length:
            raise RequestError(f"it takes {inputs.length} positions, more than the {max_length} there are")
        inputs.load_pixels()  # here, where a sample with a broken frame can still be left out
        mask_context_answers(inputs, example)
    return TrainingSample(*prepared)


def mask_context_answers(inputs: ModelInputs, example: Example) -> None:
    """Take the answers that are not learned out of the labels (1, T). Each answer is one run of labels.

    Of a pair only the last answers are compared: those before them are the same.

    Raises:
        RequestError: two answers follow each other without anything between them.
    """
    answers = sum(message.role == "assistant" for message in example.messages)
    masked = example.unlearned if example.rejected is None else range(answers - 1)
    if not masked:
        return
    labels = inputs.text_inputs["labels"][0]
    learned = labels != IGNORED
    begins = learned & ~functional.pad(learned, (1, 0))[:-1]
    run = begins.cumsum(0) - 1
    if int(begins.sum()) != answers:
        raise RequestError(
            f"its {answers} answers are {int(begins.sum())} runs of learned tokens, so that those that are not learned "
            "cannot be told apart; put a message of the user's between two answers"
        )
    labels[learned & torch.isin(run, torch.tensor(list(masked)))] = IGNORED


def max_length_of(config: Any, settings: DataSettings) -> int:
    """Positions that a sample may take: the stage's limit, or the model's."""
    own = min(config.max_position_embeddings, getattr(config, "multimodal_max_length", None) or 10**9)
    return min(settings.max_length or own, settings.pack or own, own)


def count_learned(inputs: ModelInputs) -> int:
    """Tokens that are learned: labels of the first position have nothing before them."""
    return int((inputs.text_inputs["labels"][:, 1:] != IGNORED).sum())
