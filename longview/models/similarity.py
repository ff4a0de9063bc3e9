"""Similarity of frames to each other and to a question, by SigLIP's two towers, for `longview.media` to choose frames.

    frames ── resized ── vision tower ──┐
                                        ├── unit vectors (n, D), (1, D)
    question ── cleaned ── text tower ──┘
                          a long one in pieces, whose vectors are averaged

Vectors of frames are cached by content (medium, frame), so a second question about a video encodes only its own text.

Source: arXiv 2303.15343 for the towers, arXiv 2501.02885 and its authors' plug-in for Ovis2 for what is done with them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

from longview.errors import CheckpointError
from longview.media import Candidates
from longview.models import checkpoint
from longview.models.sources import DEMOS
from longview.models.tiling import resize

DEFAULT = "google/siglip-so400m-patch14-384"
"""The checkpoint that MDP3's authors use."""
DEMO = "demo-siglip"
"""The embedded one, trained on the demo models' world and on nothing else."""

CHUNK = 16  # frames a forward pass of the vision tower
CACHE_BYTES = 64 << 20  # of frames' vectors: 14,000 frames of the default's

HEADS = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.",
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.",
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.",
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.",
)
TAILS = (
    "Answer with the option's letter from the given choices directly.",
    "The best answer is:",
    "Answer the question using a single word or phrase.",
    "Only give the best option.",
    "Best option: (",
    "Please directly give the best option:",
)
"""What benchmarks write around a question, and what has nothing to do with any frame."""

Array = NDArray[np.float64]
Item = TypeVar("Item")


def default_for(model: str) -> str:
    """The checkpoint that goes with a model, unless another one is named."""
    return DEMO if model in DEMOS else DEFAULT


def cleaned(question: str) -> str:
    """A question without what benchmarks write around it."""
    for head in HEADS:
        question = question.split(head)[-1]
    for tail in TAILS:
        question = question.split(tail)[0]
    return question.strip()


def pieces(ids: Sequence[int], limit: int) -> list[list[int]]:
    """A long text in pieces of one length, no longer than `limit` tokens, which cover it from both ends.

    They are as few as can be; where the length does not divide, those in the middle overlap.
    """
    if not ids:
        return []
    width = -(-len(ids) // -(-len(ids) // limit))
    heads, tails = [], []
    left, right = 0, len(ids)
    while left < right:
        heads.append(list(ids[left : left + width]))
        left += width
        if left < right:
            tails.append(list(ids[right - width : right]))
            right -= width
    return heads + tails[::-1]


class Similarity:
    """A SigLIP checkpoint as `longview.media.candidates.Embed`. May be called from several threads, one at a time.

    Args:
        model: transformers' SiglipModel.
        tokenizer: With a padding token.
        images: How pictures are resized and normalised.
    """

    def __init__(self, model: Any, tokenizer: Any, images: SiglipImageProcessorPil, cache_bytes: int = CACHE_BYTES):
        self.model = model
        self._tokenizer = tokenizer
        self._images = images
        self._side = model.config.vision_config.image_size
        self._positions = model.config.text_config.max_position_embeddings
        self._cache: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()

    @classmethod
    def open(cls, name: str, device: str | torch.device = "cpu") -> Similarity:
        """Open a SigLIP folder or hub id; in fp32 on a CPU, else in half precision.

        Raises:
            CheckpointError: there is no such checkpoint, or it is no SigLIP; names the option that chooses one.
        """
        try:
            folder = checkpoint.resolve(name)
            kind = checkpoint.read_config(folder).get("model_type")
            if kind != "siglip":
                raise CheckpointError(f"{folder} is a checkpoint of kind {kind!r}, not 'siglip'")
            with _unused_tokens_unchecked():
                config = checkpoint.open_config(SiglipConfig, folder)
            shapes = checkpoint.tensor_shapes(folder)
            checkpoint.check_shapes(checkpoint.shapes_of(SiglipModel, config, folder), shapes, folder)
            tokenizer = checkpoint.open_tokenizer(folder)
        except CheckpointError as error:
            raise CheckpointError(
                f"frames are chosen by a SigLIP checkpoint, and {error}; name one with --similarity FOLDER or "
                "load(…, similarity=FOLDER)"
            ) from error
        images = (
            SiglipImageProcessorPil.from_pretrained(folder)
            if (folder / "preprocessor_config.json").exists()
            else SiglipImageProcessorPil()
        )
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
        arguments = checkpoint.safe_arguments({"dtype": dtype})
        with _unused_tokens_unchecked():
            model = SiglipModel.from_pretrained(folder, config=config, **arguments)
        return cls(model.eval().to(device), tokenizer, images)

    def __call__(self, candidates: Candidates, question: str) -> tuple[Array, Array]:
        with self._lock:
            return self.frames(candidates), self.text(question)

    @torch.inference_mode()
    def frames(self, candidates: Candidates) -> Array:
        """Unit vectors of the frames (n, D); those not cached are decoded and encoded, chunk by chunk."""
        keys = [(candidates.digest, index) for index in candidates.indices]
        found = {key: self._cache[key] for key in keys if key in self._cache}
        missing = [index for digest, index in keys if (digest, index) not in found]
        decoded = candidates.read(missing, self.resized) if missing else iter(())
        for chunk in chunks(decoded, CHUNK):
            vectors = self._encode([frame.image for frame in chunk], candidates.name)
            for frame, vector in zip(chunk, vectors, strict=True):
                found[candidates.digest, frame.index] = vector
        self._store(found)
        return np.stack([found[key] for key in keys]).astype(np.float64)

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit vectors of pictures (n, D), which `resized` has resized; none is cached."""
        with self._lock:
            encoded = [self._encode(chunk, "a picture") for chunk in chunks(images, CHUNK)]
        return np.concatenate(encoded) if encoded else np.zeros((0, self.width), np.float32)

    def passage(self, text: str) -> NDArray[np.float32]:
        """The unit vector of a text (D,), as a question's."""
        with self._lock:
            vector = self.text(text)[0]
        return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.model.config.text_config.projection_size)

    @torch.inference_mode()
    def _encode(self, images: Sequence[Image.Image], name: str) -> NDArray[np.float32]:
        pixels = self._images(list(images), do_resize=False, return_tensors="pt")["pixel_values"]
        return self._unit(self.model.get_image_features(pixels.to(self._reference)), name)

    @torch.inference_mode()
    def text(self, question: str) -> Array:
        """The question's vector (1, D): a unit vector, or the mean of several, which is shorter."""
        ids = self._tokenizer(
            cleaned(question) or question, padding="max_length", max_length=self._positions, truncation=False
        )["input_ids"]
        rows = torch.tensor(pieces(ids, self._positions), device=self._reference.device)
        vectors = self._unit(self.model.get_text_features(rows), "the question")
        return vectors.mean(0, keepdims=True).astype(np.float64)

    def resized(self, image: Image.Image) -> Image.Image:
        """A picture as its tower takes it; not square ones are stretched, as SigLIP was trained."""
        return resize(image, (self._side, self._side), self._images.resample)

    @property
    def _reference(self) -> Tensor:
        """A tensor with the device and the dtype of the towers."""
        return self.model.logit_scale

    def _unit(self, output: Any, what: str) -> NDArray[np.float32]:
        """The pooled output of a tower as unit vectors.

        Raises:
            CheckpointError: its numbers are not finite.
        """
        vectors = functional.normalize(output.pooler_output.float(), dim=-1)
        if not vectors.isfinite().all():
            raise CheckpointError(f"the SigLIP checkpoint makes no finite numbers of {what}; fetch its weights again")
        return vectors.cpu().numpy()

    def _store(self, found: dict[tuple[str, int], NDArray[np.float32]]) -> None:
        """Cache the vectors used last, as many as fit into `cache_bytes`."""
        for key, vector in found.items():
            self._cache[key] = vector
            self._cache.move_to_end(key)
        size = sum(vector.nbytes for vector in self._cache.values())
        while size > self._cache_bytes:
            size -= self._cache.popitem(last=False)[1].nbytes


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive runs of at most `size` items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@contextlib.contextmanager
def _unused_tokens_unchecked() -> Iterator[None]:
    """Without transformers' warnings of `bos_token_id` and `eos_token_id` outside the vocabulary.

    SigLIP uses neither. It warns of its own defaults, which it compares a config with, and of those in Google's files.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "os_token_id must be" not in record.getMessage()

    logger = logging.getLogger("transformers.configuration_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
