"""Pictures of what an answer describes, painted by diffusers' SDXL: `--gen`.

MGM itself generates text only. It was trained to answer a question that ends in ` <GEN>` with a description between
`<h>` and `</h>`, written for SDXL (the Mini-Gemini paper, arXiv 2403.18814, section 3.3). Its smallest releases often
write none. `Engine.stream(gen=True)` asks for the description alone; to have it painted, give `DrawHook(Painter(…))`.
"""

from __future__ import annotations

import base64
import functools
import io
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import CheckpointError, MissingExtraError, RequestError
from longview.hubs import fetch, is_hub_id
from longview.messages import Answer, Message, Part, Progress

TRIGGER = " <GEN>"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
NEGATIVE_PROMPT = ", ".join(
    (
        "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate",
        "morbid, mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face",
        "mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured",
        "gross proportions, malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers",
        "too many fingers, long neck, username, watermark, signature",
    )
)
"""The negative prompt of MGM's published program."""


def description(answer: str) -> str | None:
    """What stands between the last `<h>` and `</h>` of an answer; None where there is nothing."""
    before, closed, _ = answer.rpartition("</h>")
    _, opened, text = before.rpartition("<h>")
    return text.strip() or None if closed and opened else None


class Painter:
    """SDXL, loaded when it first paints.

    Args:
        model: A hub id, or the folder of a pipeline.
        device: "cpu", "cuda" or "mps"; in half precision but on a CPU.
        steps: Steps of denoising; default: the pipeline's own.
        seed: Fixes the picture.
    """

    def __init__(
        self, model: str = SDXL, device: str = "cpu", steps: int | None = None, seed: int | None = None
    ) -> None:
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise RequestError(f"gen_steps is {steps!r}; give a whole number of at least 1")
        self.model, self.device, self.steps, self.seed = model, device, steps, seed
        self._pipeline: Any = None
        self._painting = threading.Lock()  # a pipeline paints one picture at a time

    def open(self) -> None:
        """Load the pipeline before it is needed.

        Raises:
            MissingExtraError, CheckpointError: as `paint`.
        """
        self._loaded()

    def paint(self, text: str, progress: Progress | None = None, seed: int | None = None) -> Image.Image:
        """The picture of a description; `progress` is told of the steps of denoising.

        Args:
            seed: In the place of the painter's own.

        Raises:
            MissingExtraError: diffusers is not installed.
            CheckpointError: there is no such pipeline, or it cannot be fetched.
        """
        import torch

        report = progress or (lambda done, total, label: None)
        seed = self.seed if seed is None else seed
        report(0, 1, "opening SDXL")
        pipeline = self._loaded()
        report(1, 1, "opening SDXL")

        def denoised(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            report(step + 1, pipeline.num_timesteps, "painting")
            return tensors

        given: dict[str, Any] = {} if self.steps is None else {"num_inference_steps": self.steps}
        if seed is not None:
            given["generator"] = torch.Generator("cpu").manual_seed(seed)
        given |= {"negative_prompt": NEGATIVE_PROMPT, "callback_on_step_end": denoised}
        with self._painting:
            return pipeline(prompt=text, **given).images[0]

    def _loaded(self) -> Any:
        if self._pipeline is not None:
            return self._pipeline
        try:
            import diffusers
        except ImportError as error:
            raise MissingExtraError("--gen", "diffusers") from error
        import torch

        diffusers.utils.logging.set_verbosity_error()
        half = self.device.partition(":")[0] != "cpu"
        settings: dict[str, Any] = {"dtype": torch.float16 if half else torch.float32, "use_safetensors": True}
        if half and self.model == SDXL:
            settings["variant"] = "fp16"
        opened = functools.partial(diffusers.StableDiffusionXLPipeline.from_pretrained, self.model, **settings)
        try:
            pipeline = fetch(self.model, opened) if is_hub_id(self.model) else opened()
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.model!r} is no SDXL pipeline that can be opened ({reason}); name a folder or a hub id of one: "
                "--gen-model"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(self.device)
        return self._pipeline


def save(picture: Image.Image, path: Path) -> Path:
    """Write a picture under a name, or the next one that is free: generate.png, generate-2.png, …

    Raises:
        RequestError: it cannot be written.
    """
    number, place = 1, path
    while place.exists():
        number += 1
        place = path.with_stem(f"{path.stem}-{number}")
    try:
        picture.save(place)
    except (OSError, ValueError) as error:
        raise RequestError(f"{place} cannot be written ({error}); choose another --output-file") from None
    return place


class DrawHook:
    """Asks for a description of a picture, and has it painted where there is a painter.

    Args:
        painter: What paints; None: the description stays in the answer.
        output_file: Where the picture goes; an existing file is kept.
    """

    reads_frames = False

    def __init__(self, painter: Painter | None = None, output_file: Path = Path("generate.png")) -> None:
        self.painter, self.output_file = painter, output_file

    def check(self, engine: Any) -> None:
        """
        Raises:
            RequestError: the model was not trained to describe pictures.
        """
        if not engine.processor.draws:
            raise RequestError(
                f"{engine.name} was not taught to describe pictures to be painted; gen is for MGM models"
            )

    def before_model(
        self, messages: Sequence[Message], media: Any, progress: Progress | None
    ) -> tuple[list[Message], dict[str, Any]]:
        """The messages, each of the user's with the trigger at its end."""
        trigger = Part("text", text=TRIGGER)
        return [replace(m, parts=(*m.parts, trigger)) if m.role == "user" else m for m in messages], {}

    def after_answer(self, answer: Answer, progress: Progress | None) -> dict[str, Any]:
        """`drawing`: the description and the file that was painted of it, or None where the answer describes nothing.

        Raises:
            MissingExtraError, CheckpointError: the pipeline cannot be opened.
            RequestError: the file cannot be written.
        """
        if self.painter is None:
            return {}
        text = description(answer.text)
        if text is None:
            return {"drawing": None}
        picture = self.painter.paint(text, progress)
        return {"drawing": {"description": text, "file": str(save(picture, self.output_file))}}


class PaintingHook(DrawHook):
    """Paints for whoever asked over a network: the picture is no file here, but part of what is made of the answer.

    Args:
        seed: Fixes the picture.
    """

    def __init__(self, painter: Painter, seed: int | None = None) -> None:
        super().__init__(painter)
        self.seed = seed

    def after_answer(self, answer: Answer, progress: Progress | None) -> dict[str, Any]:
        """`drawing`: the description, and a PNG in base64; or None where the answer describes nothing.

        Raises:
            MissingExtraError, CheckpointError: the pipeline cannot be opened.
        """
        text = description(answer.text)
        if text is None or self.painter is None:
            return {"drawing": None}
        png = io.BytesIO()
        self.painter.paint(text, progress, self.seed).save(png, "PNG")
        return {"drawing": {"description": text, "png": base64.b64encode(png.getvalue()).decode()}}


hook = DrawHook
