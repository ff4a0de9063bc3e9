"""The groups of options that verbs share, besides those of `longview.requests`: the model, and what plugins do."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from typer import Option

from longview import names
from longview.cli.config_file import read_config
from longview.cli.terminal import spinner
from longview.cli.verb import heading
from longview.errors import RequestError
from longview.messages import Message
from longview.plugins import hooks_of
from longview.plugins.draw import SDXL, DrawHook, Painter
from longview.requests import MediaOptions, Plugins
from longview.settings import setting

if TYPE_CHECKING:
    from longview.engine import Engine


def named(check: Callable[[str], str], help: str, *declarations: str) -> Any:
    """An option whose value is a name that can be checked before torch is imported, by a function of `longview.names`.

    Args:
        check: Returns the name in full.
    """

    def checked(name: str | None) -> str | None:
        return None if name is None else check(name)

    return Option(*declarations, help=help, callback=checked)


def dtype_option(default: str) -> Any:
    """`--dtype`, and what stands in its place."""
    return named(names.check_dtype, f"{names.dtypes()}; default: {default}.")


Device: TypeAlias = Annotated[
    str | None, named(names.check_device, "cpu, cuda, cuda:N or mps; default: the best there is.")
]
Quantize: TypeAlias = Annotated[
    str | None, named(names.check_quantize, "int8 or int4: bits of the language model's weights.")
]

KVDtype: TypeAlias = Annotated[
    str | None,
    named(names.check_kv_dtype, "int8: keep keys and values of pictures in 8 bits (mPLUG-Owl3)."),
]


@dataclass(frozen=True)
class ModelOptions:
    """The model"""

    model: Annotated[
        str | None,
        Option(
            "--model",
            "-m",
            "--model-path",
            help="demo (embedded, offline), a checkpoint folder, a hub id, modelscope:ID, or an alias; default: demo, "
            "or what longview config says.",
        ),
    ] = None
    adapter: Annotated[
        str | None, Option(metavar="FOLDER", help="LoRA adapter; without --model, the model is the one it names.")
    ] = None
    device: Device = None
    dtype: Annotated[str | None, dtype_option("what suits model and device")] = None
    attn: Annotated[str | None, named(names.check_attention, f"{names.listed(names.ATTENTION)}; default: sdpa.")] = None
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub id.")] = None
    quantize: Quantize = None
    kv_dtype: KVDtype = None
    load_8bit: Annotated[bool, Option("--load-8bit", help="Language model in 8 bits (bitsandbytes).")] = False
    load_4bit: Annotated[bool, Option("--load-4bit", help="Language model in 4 bits (bitsandbytes).")] = False
    compile: Annotated[
        bool, Option("--compile", help="Compile the decoding step: up to a minute at first, faster tokens after.")
    ] = False
    keep_features: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Keep the encoder's features of pictures here, for other runs to use."),
    ] = None
    model_base: Annotated[str | None, Option(help="Language model of an MGM folder of the first stage.")] = None
    vision_tower: Annotated[str | None, Option(help="Folder of MGM's low-resolution tower.")] = None
    vision_tower_aux: Annotated[
        str | None, Option(help="Folder of MGM's high-resolution tower; 'checkpoint': the checkpoint's copy.")
    ] = None

    def __post_init__(self) -> None:
        names.check_one_quantization(self.quantize, self.load_8bit, self.load_4bit)

    @property
    def _base(self) -> str | None:
        """The model that is named; None for the one that the adapter names."""
        return None if self.adapter is not None and self.model is None else read_config().model_named(self.model)

    def locate(self, show: bool) -> None:
        """Find the model, and download it, before torch is imported."""
        from longview.models.sources import adapter_folder, base_of, check_name, resolve

        if self.adapter is not None:
            adapter_folder(self.adapter)
        name = self._base or base_of(self.adapter or "")
        check_name(name)
        if not show:
            _quieten_downloads()
        resolve(name, revision=self.revision)

    def load(self, show: bool, **settings: Any) -> Engine:
        """Open the model, with further settings of `longview.load`; `show` a spinner meanwhile."""
        name, began = self.adapter or self._base, time.perf_counter()
        self.locate(show)
        with spinner(f"loading {name}", show):
            quieten(show)
            from longview.engine import Budget, load
        with spinner(f"loading {name}", show):
            engine = load(budget=Budget(feature_folder=self.keep_features), **self.arguments(), **settings)
        engine.load_seconds = time.perf_counter() - began  # with what was imported for it
        return engine

    @property
    def shown_name(self) -> str:
        """What the model is called: what was given, or what the adapter or longview config says."""
        return self.adapter or self._base or ""

    def load_arguments(self) -> dict[str, Any]:
        """The arguments of `longview.load` as JSON, for an engine in a process of its own."""
        folder = None if self.keep_features is None else str(self.keep_features)
        return {**self.arguments(), "budget": {"feature_folder": folder}}

    def arguments(self) -> dict[str, Any]:
        """The arguments of `longview.load`, but for the budget."""
        folders = ("model_base", "vision_tower", "vision_tower_aux")
        return {
            "name": self._base,
            "adapter": self.adapter,
            "device": self.device,
            "dtype": self.dtype,
            "attn_implementation": self.attn,
            "revision": self.revision,
            "quantize": self.quantize,
            "load_8bit": self.load_8bit,
            "load_4bit": self.load_4bit,
            "kv_dtype": self.kv_dtype,
            "compile": self.compile,
            **{name: value for name in folders if (value := getattr(self, name)) is not None},
        }


def quieten(show: bool) -> None:
    """Turn off the messages and progress bars of transformers and the hub; `show` keeps those of downloads."""
    import huggingface_hub.utils
    import transformers

    transformers.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not show:
        _quieten_downloads()


def import_libraries(show: bool = False, downloads: bool = False) -> None:
    """Import torch and transformers, which takes seconds, and quieten them.

    Args:
        show: Show a line on the terminal meanwhile.
        downloads: Keep the progress bars of downloads.
    """
    with spinner("loading torch", show):
        import torch  # noqa: F401 (what the verb imports next needs it)

        quieten(downloads)


def _quieten_downloads() -> None:
    import huggingface_hub.utils

    huggingface_hub.utils.disable_progress_bars()


Similarity: TypeAlias = Annotated[
    str | None,
    Option(
        "--similarity",
        metavar="FOLDER",
        rich_help_panel=heading(MediaOptions),
        help="SigLIP checkpoint that --select mdp3 goes by: a folder or hub id; default: embedded for the demo models, "
        "google/siglip-so400m-patch14-384 for others.",
    ),
]

System: TypeAlias = Annotated[str | None, Option("--system", help="The system message, before the conversation.")]


def check_similarity(similarity: str | None, media: MediaOptions) -> None:
    """
    Raises:
        RequestError: a checkpoint is named that nothing would use.
    """
    if similarity is not None and not media.by_content:
        raise RequestError(f"--similarity {similarity} is used by --select mdp3 only; add that, or leave it out")


@dataclass(frozen=True)
class PluginOptions(Plugins):
    """Reading and drawing."""

    gen_model: str = setting(SDXL, "SDXL pipeline that paints it: a folder or a hub id.")
    gen_steps: int | None = setting(None, "Steps of denoising; default: the pipeline's own.")
    output_file: str = setting("generate.png", "Where the picture goes; an existing file is kept.")

    def __post_init__(self) -> None:
        idle = [f.name for f in fields(self) if f.name not in ("ocr", "gen") and getattr(self, f.name) != f.default]
        if idle and not self.gen:
            raise RequestError(f"--{idle[0].replace('_', '-')} is for painting; add --gen, or leave it out")

    def hooks(self, engine: Engine, seed: int | None) -> list[Any]:
        """The hooks of a request; what paints is on the model's device."""
        hooks: list[Any] = hooks_of(Plugins(ocr=self.ocr))
        if self.gen:
            painter = Painter(self.gen_model, str(engine.device), self.gen_steps, seed)
            hooks.append(DrawHook(painter, Path(self.output_file).expanduser()))
        return hooks


def whole_numbers(text: str, name: str) -> tuple[int, ...]:
    """Numbers with commas between them.

    Raises:
        RequestError: no list of whole numbers.
    """
    found: list[int] = []
    with contextlib.suppress(ValueError):
        found = [int(part) for part in text.split(",")]
    if not found or min(found) < 0:
        raise RequestError(f"{name} is {text!r:.40}; give whole numbers with commas between them, as 1,10,50")
    return tuple(found)


def read_stdin() -> str:
    """All of standard input.

    Raises:
        RequestError: it is empty, or not text.
    """
    text = "\n".join(stdin_lines()).strip()
    if not text:
        raise RequestError("standard input is empty; pipe the question into it")
    return text


def stdin_lines() -> Iterator[str]:
    """Standard input line by line.

    Raises:
        RequestError: it is not text.
    """
    try:
        for line in sys.stdin:
            yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise RequestError("standard input is not UTF-8 text; pipe a question into it") from None


def check_question(question: str) -> str:
    """Return a question that can be asked.

    Raises:
        RequestError: the question is empty, or not text.
    """
    if not question.strip():
        raise RequestError("the question is empty; ask something")
    if any("\ud800" <= letter <= "\udfff" for letter in question):  # Python's form of bytes that are not UTF-8
        raise RequestError("the question is not UTF-8 text; check how the terminal or the script encodes it")
    return question


def initial_messages(system: str | None) -> list[Message]:
    """The messages before the first question: a system message, or none."""
    return [] if system is None else [Message.of("system", system)]
