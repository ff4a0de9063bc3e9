"""SigLIP's towers as a measure of frames: against transformers' own path, by content, and with bad checkpoints."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from samples import POSITIONS, noise
from tolerances import SAME_MATHS
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from longview.errors import CheckpointError
from longview.media import Candidates
from longview.media.medium import Frame
from longview.models import similarity
from longview.models.similarity import Similarity, cleaned, pieces

CASES = json.loads((Path(__file__).parents[1] / "golden" / "ovis2" / "mdp3.json").read_text())


@pytest.fixture
def near(towers) -> Similarity:
    return Similarity.open(str(towers))


@pytest.fixture
def broken(towers, tmp_path) -> Path:
    return Path(shutil.copytree(towers, tmp_path / "broken"))


class Film:
    """Pictures of noise that count how often they are decoded."""

    def __init__(self, count: int, digest: str = "film"):
        self.images = [noise(n) for n in range(count)]
        self.digest = digest
        self.decoded: list[int] = []

    def candidates(self, indices=None) -> Candidates:
        return Candidates("film.mp4", self.digest, list(indices or range(len(self.images))), self.read)

    def read(self, indices, transform):
        for index in indices:
            self.decoded.append(index)
            yield Frame(transform(self.images[index]), index, None)


def test_frames_are_embedded_as_transformers_does(near, towers):
    film = Film(3)
    pixels = SiglipImageProcessorPil.from_pretrained(towers)(film.images, return_tensors="pt")
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(near.model.get_image_features(**pixels).pooler_output, dim=-1)
    np.testing.assert_allclose(near.frames(film.candidates()), expected.numpy(), atol=SAME_MATHS)


def test_a_short_question_is_embedded_as_transformers_does(near):
    ids = near._tokenizer("What is it?", padding="max_length", max_length=POSITIONS, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(near.model.get_text_features(ids).pooler_output, dim=-1)
    np.testing.assert_allclose(near.text("What is it?"), expected.numpy(), atol=SAME_MATHS)
    assert ids.shape == (1, POSITIONS)


def test_a_long_question_is_the_mean_of_its_pieces(near):
    question = "Which of the two comes first, and why?"
    ids = near._tokenizer(question)["input_ids"]
    assert len(ids) == 38
    windows = [ids[0:13], ids[13:26], ids[25:38]]
    with torch.inference_mode():
        rows = near.model.get_text_features(torch.tensor(windows)).pooler_output
    expected = torch.nn.functional.normalize(rows, dim=-1).mean(0).numpy()
    np.testing.assert_allclose(near.text(question)[0], expected, atol=SAME_MATHS)
    assert np.linalg.norm(near.text(question)) < 1


@given(st.integers(1, 500), st.integers(1, 64))
def test_pieces_are_few_equal_and_cover_the_text(length, limit):
    cut = pieces(range(length), limit)
    assert len(cut) == -(-length // limit)
    assert len({len(piece) for piece in cut}) == 1
    assert len(cut[0]) <= limit
    assert {token for piece in cut for token in piece} == set(range(length))
    assert cut[0][0] == 0
    assert cut[-1][-1] == length - 1


@pytest.mark.parametrize("case", CASES["clear_prompt"], ids=lambda case: case["output"][:20])
def test_what_benchmarks_write_around_a_question_is_cut(case):
    assert cleaned(case["input"]) == case["output"]


def test_a_second_question_encodes_no_frame(near):
    film, calls = Film(20), []
    near.model.vision_model.register_forward_pre_hook(lambda *_: calls.append("frames"))
    first, _ = near(film.candidates(), "What is this?")
    assert film.decoded == list(range(20))
    assert calls == ["frames"] * 2  # chunks of 16
    again, _ = near(film.candidates(), "And this?")
    assert film.decoded == list(range(20))
    assert calls == ["frames"] * 2
    assert np.array_equal(first, again)
    near.frames(film.candidates([3, 7]))
    assert film.decoded == list(range(20))
    near.frames(Film(2, "another").candidates())
    assert calls == ["frames"] * 3


def test_only_frames_that_are_new_are_decoded(near):
    film = Film(8)
    some = near.frames(film.candidates([1, 5]))
    everything = near.frames(film.candidates())
    assert film.decoded == [1, 5, 0, 2, 3, 4, 6, 7]
    np.testing.assert_allclose(everything[[1, 5]], some)


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(towers):
    opened = Similarity.open(str(towers))
    near = Similarity(opened.model, opened._tokenizer, opened._images, cache_bytes=10 * 32 * 4)
    film = Film(12)
    assert near.frames(film.candidates()).shape == (12, 32)
    near.frames(film.candidates(range(2, 12)))
    assert len(film.decoded) == 12
    near.frames(film.candidates([0]))
    assert film.decoded[12:] == [0]


def test_a_pass_holds_no_more_than_a_chunk(near, monkeypatch):
    monkeypatch.setattr(similarity, "CHUNK", 4)
    sizes = []
    near.model.vision_model.register_forward_pre_hook(
        lambda *call: sizes.append(len(call[-1]["pixel_values"])), with_kwargs=True
    )
    whole = near.frames(Film(10).candidates())
    assert sizes == [4, 4, 2]
    assert whole.shape == (10, 32)


def refusal(name: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        Similarity.open(str(name))
    message = str(caught.value)
    assert "--similarity FOLDER" in message
    assert "\n" not in message
    return message


def test_no_checkpoint_at_hand_names_the_option():
    assert "google/siglip-so400m-patch14-384" in refusal(similarity.DEFAULT)
    assert "no folder './nowhere'" in refusal("./nowhere")


def test_a_checkpoint_of_another_kind_is_named(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    assert "'clip', not 'siglip'" in refusal(broken)
    assert "owl3" in refusal("demo")


def test_a_folder_without_tokenizer_or_weights_is_named(broken):
    (broken / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("logit_bias")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert "lacks 1 of" in refusal(broken)


def test_weights_that_are_no_numbers_are_named(broken):
    tensors = load_file(broken / "model.safetensors")
    name = "vision_model.post_layernorm.weight"
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="finite"):
        Similarity.open(str(broken)).frames(Film(1).candidates())


def test_an_official_folder_brings_its_own_tokenizer(towers, tmp_path):
    """Released checkpoints have a SentencePiece model, which ignores capitals and punctuation."""
    import io

    from sentencepiece import SentencePieceTrainer
    from transformers import SiglipTokenizer

    model, sentences = io.BytesIO(), ["what is it", "where is the red star", "the cat sat on the mat and looked"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    folder = Path(shutil.copytree(towers, tmp_path / "official"))
    for file in folder.glob("*token*"):
        file.unlink()
    SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=POSITIONS).save_pretrained(folder)
    assert (folder / "spiece.model").exists()
    near = Similarity.open(str(folder))
    assert type(near._tokenizer).__name__ == "SiglipTokenizer"
    assert np.array_equal(near.text("What IS it?!"), near.text("what is it"))
    assert not np.array_equal(near.text("where is it"), near.text("what is it"))


def test_opening_the_towers_prints_no_warning_of_transformers():
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = transformers.logging.get_logger("transformers")
    logger.addHandler(handler)
    transformers.utils.logging.warning_once.cache_clear()
    try:
        Similarity.open("demo-siglip")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []
