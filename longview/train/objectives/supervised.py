"""`supervised`: next-token loss on the assistant's tokens in a user's conversations."""

from __future__ import annotations

from torch import Tensor

from longview.train.objectives.base import Notes
from longview.train.objectives.log_probs import token_log_probs
from longview.train.objectives.of_data import DataBatch, DataObjective


class Supervised(DataObjective):
    """Cross-entropy, its mean over all tokens that are learned in a step."""

    def divisor(self, samples: int, learned: int) -> int:
        return learned

    def loss(self, batch: DataBatch) -> tuple[Tensor, Notes]:
        collated = self.processor.collate([sample.inputs for sample in batch.samples])
        arguments = self.model.embed_pictures(collated)
        if self.settings.pack:
            arguments = self.model.pack(arguments)
        return -token_log_probs(self.model, arguments)[0].sum() / batch.divisor, {}
