"""A step's samples → batches: dealt out to the processes, then padded together or packed into rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from longview.train.data.samples import TrainingSample
from longview.train.data.settings import DataSettings
from longview.train.distributed import processes


def deal(settings: DataSettings) -> tuple[list[int], int]:
    """Which of a step's samples this process takes, by number, and how many of them pass the model together.

    They are dealt out in the batches of one process, so that more of these stay the same.
    """
    size = 1 if settings.pack else min(settings.micro_batch, -(-settings.batch // processes.count()))
    batches = [range(begin, min(begin + size, settings.batch)) for begin in range(0, settings.batch, size)]
    return list(itertools.chain(*batches[processes.rank() :: processes.count()])), size


def batched(samples: Sequence[TrainingSample], settings: DataSettings) -> Iterator[list[TrainingSample]]:
    """A process's samples as those that pass the model together: so many, or as many as fit into a packed row."""
    if not settings.pack:
        size = deal(settings)[1]
        for _, batch in itertools.groupby(samples, lambda sample: sample.number // size):
            yield list(batch)
        return
    rows: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda sample: -sample.length):  # the longest first leave the fewest gaps
        row = next((row for row in rows if sum(s.length for s in row) + sample.length <= settings.pack), None)
        if row is None:
            rows.append(row := [])
        row.append(sample)
    yield from rows


def has_picture(batch: Sequence[TrainingSample]) -> bool:
    return any(sample.inputs.num_pictures for sample in batch)
