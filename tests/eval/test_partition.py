"""A protocol's number of crops, against what the processor's own settings say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from samples import noise

from longview.eval.ask import EngineAsker
from longview.eval.items import Protocol
from longview.media import Frame, Medium
from longview.messages import ask, image
from longview.models.ovis2 import Config, Processor


@pytest.mark.parametrize(("one", "several"), [(1, None), (1, 1), (9, 1), (None, None)])
def test_a_protocols_crops_are_those_of_one_and_of_several_pictures_while_it_asks(one, several, tokenizer):
    config = Config.tiny()
    processor = Processor(tokenizer, config, max_partition=one, max_partition_of_several=several)
    pictures = [noise(number, 3 * config.picture_size, 3 * config.picture_size) for number in range(2)]
    media = [Medium("image", "p", [Frame(p, 0, None)], *p.size, 1, None, None, "digest") for p in pictures]

    def crops() -> list[int]:
        return [
            processor.prepare([ask("?", *map(image, pictures[:count]))], media[:count]).num_pictures for count in (1, 2)
        ]

    asker = EngineAsker(SimpleNamespace(name="test", processor=processor))
    before = crops()
    with asker._partition(Protocol(lambda item: ["?"], max_partition=9)):
        assert crops() == [10, 20]
    with asker._partition(Protocol(lambda item: ["?"], max_partition=1)):
        assert crops() == [1, 2]
    with asker._partition(Protocol(lambda item: ["?"])):
        assert crops() == before
    assert crops() == before
