"""transformers' own Trainer takes our models and batches as they are."""

from __future__ import annotations

import pytest
import torch
from samples import noise, tiny_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import longview
from longview.media import open_media
from longview.messages import Message
from longview.models.families import families

STEPS, RATE = 3, 1e-3


class Losses(TrainerCallback):
    def __init__(self):
        self.told = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told += [logs["loss"]] if "loss" in logs else []


def samples(processor):
    """Four conversations: words alone, and about one picture or two; the answers have different lengths."""
    made = []
    for number, (pictures, answer) in enumerate([(0, "no"), (1, "a red circle"), (2, "two"), (1, "yes, it is so")]):
        images = [longview.image(noise(number * 4 + k)) for k in range(pictures)]
        messages = [longview.ask("What is this?", *images), Message.of("assistant", answer)]
        made.append(processor.prepare(messages, open_media(images), train=True))
    return made


@pytest.mark.parametrize("name", families())
def test_trainer_takes_the_steps_that_a_plain_loop_takes(name, tokenizer, tmp_path):
    family = families()[name]
    variant = next(iter(family.Config.variants))
    model, processor = tiny_model(family, variant, tokenizer)
    data = samples(processor)
    losses = Losses()
    settings = TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1.0, logging_steps=1, use_cpu=True, seed=1,
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
        report_to="none",
    )  # fmt: skip
    trainer = Trainer(model, settings, processor.collate, data, callbacks=[losses])
    trainer.train()

    plain, _ = tiny_model(family, variant, tokenizer)
    plain.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.0)
    batches = [processor.collate(data[:2]), processor.collate(data[2:])]
    words = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    expected = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        # Every learned word counts the same, in whichever of the step's batches it stands.
        parts = [plain(**batch).loss * count / sum(words) for batch, count in zip(batches, words, strict=True)]
        torch.stack(parts).sum().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        expected.append(sum(float(part.detach()) for part in parts))
    assert words[0] != words[1]
    assert losses.told == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
