"""The groups of options that verbs share. Each has the fields, names and defaults of a setting in Python and over HTTP.

The defaults are written out here again because their owners import torch or numpy; a test compares them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from typer import Option

from longview.cli.terminal import spinner
from longview.errors import RequestError
from longview.messages import Message, Part

if TYPE_CHECKING:
    from longview.engine import Engine, SamplingParams
    from longview.media import Limits, MediaOptions
    from longview.plugins.draw import Painter

MiB = 1024 * 1024


@dataclass(frozen=True)
class ModelOptions:
    """The model"""

    model: Annotated[
        str,
        Option(
            "--model",
            "-m",
            "--model-path",
            help="demo (embedded, offline), a checkpoint folder, a hub id, or modelscope:ID.",
        ),
    ] = "demo"
    adapter: Annotated[
        str | None, Option(metavar="FOLDER", help="LoRA adapter; without --model, the model is the one it names.")
    ] = None
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:N or mps; default: the best there is.")] = None
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16; default: what suits model and device.")] = (
        None
    )
    attn: Annotated[str | None, Option(help="sdpa, eager or flash_attention_2; default: sdpa.")] = None
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None
    quantize: Annotated[str | None, Option(help="int8 or int4: the language model's weights in so many bits.")] = None
    load_8bit: Annotated[bool, Option("--load-8bit", help="Language model in 8 bits (bitsandbytes).")] = False
    load_4bit: Annotated[bool, Option("--load-4bit", help="Language model in 4 bits (bitsandbytes).")] = False
    compile: Annotated[
        bool, Option("--compile", help="Compile what makes tokens: up to a minute at first, faster tokens after.")
    ] = False
    keep_features: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Keep what pictures look like to the model here, for other runs to find."),
    ] = None
    model_base: Annotated[str | None, Option(help="Language model of an MGM folder of the first stage.")] = None
    vision_tower: Annotated[str | None, Option(help="Folder of MGM's low-resolution tower.")] = None
    vision_tower_aux: Annotated[
        str | None, Option(help="Folder of MGM's high-resolution tower; 'checkpoint': the checkpoint's copy.")
    ] = None

    def load(self, show: bool, **settings: Any) -> Engine:
        """Open the model, with further settings of `longview.load`; `show` a spinner meanwhile."""
        with spinner(f"opening {self.model}", show and not _may_download(self.model)):
            quieten(show)
            from longview.engine import Budget, load

            parts = ("model_base", "vision_tower", "vision_tower_aux")
            return load(
                None if self.adapter is not None and self.model == "demo" else self.model,
                adapter=self.adapter,
                device=self.device,
                dtype=self.dtype,
                attn_implementation=self.attn,
                revision=self.revision,
                quantize=self.quantize,
                load_8bit=self.load_8bit,
                load_4bit=self.load_4bit,
                compile=self.compile,
                budget=Budget(feature_folder=self.keep_features),
                **{name: value for name in parts if (value := getattr(self, name)) is not None},
                **settings,
            )


def _may_download(model: str) -> bool:
    """Whether the hub's own progress bars may appear, which a spinner would tear."""
    return ("/" in model or ":" in model) and not Path(model).expanduser().exists()


def quieten(show: bool) -> None:
    """Keep transformers' own messages and bars off the terminal; ours say what a user needs."""
    import huggingface_hub.utils
    import transformers

    transformers.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not show:
        huggingface_hub.utils.disable_progress_bars()


@dataclass(frozen=True)
class FrameOptions:
    """Which frames of videos are looked at (default: as the model's authors do)"""

    frames: Annotated[int | None, Option(help="Frames of a video, at most.")] = None
    fps: Annotated[float | None, Option(help="Frames a second of video.")] = None
    select: Annotated[
        str | None,
        Option(
            help="Sampler: uniform, fps, owl3, owl3-middle, ovis2, ovis2-server, or mdp3, which goes by the question."
        ),
    ] = None
    start: Annotated[float | None, Option(help="Seconds at which to begin.")] = None
    end: Annotated[float | None, Option(help="Seconds at which to end.")] = None
    candidates: Annotated[
        int | None, Option(help="Frames that mdp3 chooses among, at most, --fps of them (1) a second; default: 1024.")
    ] = None

    def options(self) -> MediaOptions:
        from longview.media import MediaOptions

        return MediaOptions(**asdict(self))


Similarity: TypeAlias = Annotated[
    str | None,
    Option(
        "--similarity",
        metavar="FOLDER",
        rich_help_panel=inspect.cleandoc(FrameOptions.__doc__ or ""),
        help="SigLIP checkpoint that --select mdp3 goes by: a folder or hub id; default: embedded for the demo models, "
        "google/siglip-so400m-patch14-384 for others.",
    ),
]


def check_similarity(similarity: str | None, frames: FrameOptions) -> None:
    """
    Raises:
        RequestError: a checkpoint is named that nothing would look at.
    """
    if similarity is not None and not frames.options().by_content:
        raise RequestError(f"--similarity {similarity} is looked at by --select mdp3 only; add that, or leave it out")


@dataclass(frozen=True)
class SamplingOptions:
    """How the answer is chosen"""

    max_tokens: Annotated[int, Option(help="Tokens of the answer, at most.")] = 512
    temperature: Annotated[float, Option(help="0 takes the likeliest token; higher is more varied.")] = 0.0
    top_p: Annotated[float, Option(help="Keep the likeliest tokens that together reach this probability.")] = 1.0
    top_k: Annotated[int, Option(help="Keep this many of the likeliest tokens; 0 keeps all.")] = 0
    min_p: Annotated[float, Option(help="Drop tokens less likely than this share of the likeliest.")] = 0.0
    repetition_penalty: Annotated[float, Option(help="Above 1, tokens seen before become less likely.")] = 1.0
    presence_penalty: Annotated[float, Option(help="Taken from the scores of tokens in the answer.")] = 0.0
    frequency_penalty: Annotated[float, Option(help="The same, once for each time a token occurs.")] = 0.0
    min_tokens: Annotated[int, Option(help="Tokens of the answer, at least.")] = 0
    seed: Annotated[int | None, Option(help="Fixes the random choices.")] = None
    stop: Annotated[list[str], Option(help="End the answer before this text; may be repeated.")] = ()  # type: ignore[assignment]
    logprobs: Annotated[int | None, Option(help="With --json: each token's probability, and of N others.")] = None
    regex: Annotated[str | None, Option(help="The answer matches this regular expression.")] = None
    json_schema: Annotated[str | None, Option(help="The answer is JSON that fits this schema; {} for any.")] = None

    def params(self) -> SamplingParams:
        from longview.engine import SamplingParams

        return SamplingParams(**{**asdict(self), "stop": tuple(self.stop)})


@dataclass(frozen=True)
class PluginOptions:
    """Reading and drawing"""

    ocr: Annotated[bool, Option("--ocr", help="Read the text in pictures into the question.")] = False
    gen: Annotated[bool, Option("--gen", help="Have MGM describe a picture, and paint it with SDXL.")] = False
    gen_model: Annotated[str, Option(help="SDXL pipeline: a folder or a hub id.")] = (
        "stabilityai/stable-diffusion-xl-base-1.0"
    )
    gen_steps: Annotated[int | None, Option(help="Steps of denoising; default: the pipeline's own.")] = None
    output_file: Annotated[str, Option(help="Where the picture goes; an existing file is kept.")] = "generate.png"

    def __post_init__(self) -> None:
        idle = [f.name for f in fields(self) if f.name not in ("ocr", "gen") and getattr(self, f.name) != f.default]
        if idle and not self.gen:
            raise RequestError(f"--{idle[0].replace('_', '-')} is for painting; add --gen, or leave it out")

    def settings(self) -> dict[str, bool]:
        """The arguments of `Engine.stream`."""
        return {"ocr": self.ocr, "gen": self.gen}

    def painter(self, engine: Engine, seed: int | None) -> Painter | None:
        """What paints, on the model's device; None where nothing is to be painted."""
        from longview.plugins.draw import Painter

        return Painter(self.gen_model, str(engine.device), self.gen_steps, seed) if self.gen else None


@dataclass(frozen=True)
class LimitOptions:
    """What media may cost and reach"""

    max_pixels: Annotated[int, Option(help="Pixels of one picture or frame.")] = 50_000_000
    min_side: Annotated[int, Option(help="Pixels of a picture's shorter side, at least.")] = 2
    max_aspect: Annotated[float, Option(help="Longer side of a picture over its shorter side.")] = 200.0
    max_frames: Annotated[int, Option(help="Frames kept of one video.")] = 512
    max_image_bytes: Annotated[int, Option(help="Encoded bytes of one picture.")] = 64 * MiB
    max_video_bytes: Annotated[int, Option(help="Encoded bytes of a video that is fetched into memory.")] = 512 * MiB
    max_decoded_bytes: Annotated[int, Option(help="Bytes of all frames together, decoded.")] = 4096 * MiB
    connect_seconds: Annotated[float, Option(help="Seconds to reach a server.")] = 5.0
    fetch_seconds: Annotated[float, Option(help="Seconds to fetch a URL.")] = 30.0
    decode_seconds: Annotated[float, Option(help="Seconds to decode one file.")] = 120.0
    max_redirects: Annotated[int, Option(help="Redirects to follow.")] = 3
    allow_private_addresses: Annotated[
        bool, Option("--allow-private-addresses", help="Fetch from this machine and private networks too.")
    ] = False

    def limits(self) -> Limits:
        from longview.media import Limits

        return Limits(**asdict(self))


def open_parts(sources: Sequence[str], limits: Limits) -> list[Part]:
    """Files and URLs as parts of a message: pictures or videos, by their content.

    Raises:
        MediaError: one of them is neither.
    """
    from longview.media import sniff

    return [Part(sniff(source, limits), source=source) for source in sources]


def piped() -> str:
    """All of standard input.

    Raises:
        RequestError: it is empty, or not text.
    """
    text = "\n".join(piped_lines()).strip()
    if not text:
        raise RequestError("standard input is empty; pipe the question into it")
    return text


def piped_lines() -> Iterator[str]:
    """Standard input line by line.

    Raises:
        RequestError: it is not text.
    """
    try:
        for line in sys.stdin:
            yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise RequestError("standard input is not UTF-8 text; pipe a question into it") from None


def checked(question: str) -> str:
    """
    Raises:
        RequestError: the question is empty, or not text.
    """
    if not question.strip():
        raise RequestError("the question is empty; ask something")
    if any("\ud800" <= letter <= "\udfff" for letter in question):  # how Python holds bytes that are not UTF-8
        raise RequestError("the question is not UTF-8 text; check how the terminal or the script encodes it")
    return question


def opening(system: str | None) -> list[Message]:
    """How a conversation begins: with a system message, or with nothing."""
    return [] if system is None else [Message.of("system", system)]
