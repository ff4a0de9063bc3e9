"""The settings of a request: the one place where their names, types, defaults, bounds and help are written.

    RequestSettings          all that a request says beside its messages
      params: SamplingParams   how tokens are chosen
      media: MediaOptions      which frames of videos are used
      limits: Limits           what media may cost and reach
      n, evidence, max_partition, ocr, gen

The options of the command line (`longview.cli.verb`) and the keywords of `Engine.stream` are derived from these
classes, and `longview.settings.json_schema` describes them for HTTP. No torch and no numpy here, so that
`longview --help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.settings import parse, setting, validate

MiB = 1024 * 1024
CANDIDATES = 1024
"""Candidate frames of a video, at most, of a sampler that selects by content; by default."""
MAX_CANDIDATES = 8192
RELEVANCE_QUERIES = ("question", "published")
MAX_ANSWERS = 64
MAX_PARTITION = 64
"""Crops of a picture that may be asked for."""


@dataclass(frozen=True)
class SamplingParams:
    """How the answer is chosen.

    The defaults decode greedily, as the published benchmarks do. `min_p`: Nguyen et al. 2024, section 3;
    `repetition_penalty`: Keskar et al. 2019, section 4.1. `regex` and `json_schema` need the extra `constrain`.

    Raises:
        RequestError: a value outside its range; names the value and the range.
    """

    max_tokens: int = setting(512, "Tokens of the answer, at most.", low=1)
    temperature: float = setting(0.0, "0 takes the likeliest token; higher is more varied.", low=0, high=100)
    top_p: float = setting(
        1.0, "Keep the likeliest tokens that together reach this probability.", low=0, above=True, high=1
    )
    top_k: int = setting(0, "Keep this many of the likeliest tokens; 0 keeps all.", low=0)
    min_p: float = setting(0.0, "Drop tokens less likely than this share of the likeliest.", low=0, high=1)
    repetition_penalty: float = setting(
        1.0, "Above 1, tokens of the prompt and the answer become less likely.", low=0.1, high=10
    )
    presence_penalty: float = setting(0.0, "Taken from the scores of tokens in the answer.", low=-2, high=2)
    frequency_penalty: float = setting(
        0.0, "Taken from the scores of tokens in the answer, once for each time they occur.", low=-2, high=2
    )
    min_tokens: int = setting(0, "Tokens of the answer, at least.", low=0, high="max_tokens")
    seed: int | None = setting(None, "Fixes the random choices.", low=0, high=2**63 - 1)
    stop: tuple[str, ...] = setting((), "End the answer before this text; may be repeated.")
    logprobs: int | None = setting(
        None, "Report the log-probability of each token, and of N others at its place.", low=0, high=20
    )
    regex: str | None = setting(None, "The answer matches this regular expression.")
    json_schema: str | None = setting(None, "The answer is JSON that fits this schema; {} for any.")

    def __post_init__(self) -> None:
        if isinstance(self.json_schema, Mapping):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        validate(self)
        if self.regex is not None and self.json_schema is not None:
            raise RequestError("an answer follows a regex or a json_schema, not both; leave one out")
        if self.json_schema is not None:
            _check_json(self.json_schema)


def _check_json(schema: str) -> None:
    """
    Raises:
        RequestError: a schema is no JSON; what it says is for the grammar's compiler to check.
    """
    try:
        json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"json_schema {schema!r:.60} is no JSON ({error}); give a schema, or {{}} for any") from None


@dataclass(frozen=True)
class FrameSampler:
    """A frame sampler: its defaults, and which media options it takes; `longview.media.select` has its function."""

    frames: int | None
    """How many it keeps unless told; None: as many as the rate gives."""
    by_time: bool = False
    """Whether a number of frames a second means something to it."""
    by_content: bool = False
    """Whether it only proposes candidates, among which the relevance query decides."""


FRAME_SAMPLERS: dict[str, FrameSampler] = {
    "uniform": FrameSampler(16),
    "fps": FrameSampler(None, by_time=True),
    "owl3": FrameSampler(16, by_time=True),
    "owl3-middle": FrameSampler(16),
    "ovis2": FrameSampler(12),
    "ovis2-server": FrameSampler(16),
    "mdp3": FrameSampler(16, by_time=True, by_content=True),
}
"""The samplers by name. mgm has none of its own: it was not trained on videos."""


def _samplers(trait: str) -> list[str]:
    return [name for name, sampler in FRAME_SAMPLERS.items() if getattr(sampler, trait)]


@dataclass(frozen=True)
class MediaOptions:
    """Which frames of videos are used (default: as the model's authors do).

    None leaves the choice to the model's family. `start` and `end` cut a clip out of the video first; a frame belongs
    to the clip when it is on the screen at some moment of it. A sampler that goes by what frames show ("mdp3") chooses
    among `candidates` frames at most; `fps` is their rate, and `relevance_query` what they are held against.

    Raises:
        RequestError: a value out of range, an unknown sampler, or options that contradict each other.
    """

    frames: int | None = setting(None, "Frames of a video, at most.", low=1, expected="a whole number from 1 up")
    fps: float | None = setting(
        None,
        "Frames a second of video.",
        low=0,
        above=True,
        expected="a number of frames per second above 0, such as 1 or 0.5",
    )
    select: str | None = setting(
        None,
        f"Sampler: {', '.join(FRAME_SAMPLERS)}; {' or '.join(_samplers('by_content'))} goes by the question.",
        choices=tuple(FRAME_SAMPLERS),
    )
    start: float | None = setting(
        None, "Seconds at which to begin.", low=0, expected="seconds from the beginning of the video, from {low} up"
    )
    end: float | None = setting(
        None, "Seconds at which to end.", low="start", above=True, expected="seconds after the start, {low}"
    )
    candidates: int | None = setting(
        None,
        f"Frames that mdp3 chooses among, at most, --fps of them (1) a second; default: {CANDIDATES}.",
        low=1,
        high=MAX_CANDIDATES,
        expected=f"a whole number from 1 to {MAX_CANDIDATES:,}, as all pairs are compared",
    )
    relevance_query: str | None = setting(
        None,
        "What mdp3 holds frames against: question (default); or published, with an <image> for each candidate before "
        "it, as in its authors' runs.",
        choices=RELEVANCE_QUERIES,
    )
    indices: tuple[int, ...] | None = setting(
        None, "Exactly these frames, by their numbers from 0; may be repeated, and no sampler chooses."
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.indices is not None:
            self._check_indices()
        by_content = " or ".join(_samplers("by_content"))
        if not self.by_content and self.relevance_query is not None:
            raise RequestError(f"relevance_query means nothing without select {by_content}; add that, or leave it out")
        if self.select is None:
            if self.candidates is not None:
                raise RequestError(f"candidates means nothing without select; add select {by_content}")
            return
        if self.fps is not None and not FRAME_SAMPLERS[self.select].by_time:
            names = " or ".join(_samplers("by_time"))
            raise RequestError(f"fps means nothing to select {self.select!r}, which counts frames; use select {names}")
        if self.candidates is None:
            return
        if not self.by_content:
            raise RequestError(f"candidates means nothing to select {self.select!r}; use select {by_content}")
        if self.frames is not None and self.frames > self.candidates:
            raise RequestError(
                f"frames is {self.frames}, to be chosen among candidates {self.candidates}; ask for fewer frames, or "
                "choose among more"
            )

    def _check_indices(self) -> None:
        if not self.indices:
            raise RequestError("indices is empty; name a frame, or leave it out")
        others = [each.name for each in fields(self) if each.name != "indices" and getattr(self, each.name) is not None]
        if others:
            raise RequestError(
                f"indices says which frames are used, so {others[0]} means nothing; leave one of them out"
            )

    def as_candidates(self) -> MediaOptions:
        """Options that select all candidates of the same clip."""
        return MediaOptions(select="mdp3", start=self.start, end=self.end)

    @property
    def by_content(self) -> bool:
        """Whether frames are chosen by what they show, so that a question is needed."""
        return self.select is not None and FRAME_SAMPLERS[self.select].by_content


def _limit(default: float, help: str, low: float = 1) -> Any:
    return setting(default, help, low=low, whole=False)


@dataclass(frozen=True)
class Limits:
    """What media may cost and reach.

    Of one medium, or of one call of `longview.media.open_media`. What has no option on the command line is for a server
    to narrow.
    """

    max_pixels: int = _limit(50_000_000, "Pixels of one picture or frame.")
    min_side: int = _limit(2, "Pixels of a picture's shorter side, at least.")  # thinner ones break patch grids
    max_aspect: float = _limit(200.0, "Longer side of a picture over its shorter side.", 0.001)
    max_pictures: int = _limit(512, "Pictures of one request.")
    max_frames: int = _limit(512, "Frames kept of one video.")
    max_image_bytes: int = _limit(64 * MiB, "Encoded bytes of one picture.")
    # a video file on this machine is read in place, and may be larger
    max_video_bytes: int = _limit(512 * MiB, "Encoded bytes of a video that is fetched into memory.")
    # pictures, and frames of videos that are decoded at once; frames that are decoded as they are used are not held
    max_decoded_bytes: int = _limit(1024 * MiB, "Bytes of all pictures together, decoded.")
    max_decoder_bytes: int = _limit(2048 * MiB, "Memory of the child process that decodes, with --isolate.")
    connect_seconds: float = _limit(5.0, "Seconds to reach a server.", 0.001)
    # from the first name lookup to the last byte, redirects included
    fetch_seconds: float = _limit(30.0, "Seconds to fetch a URL.", 0.001)
    decode_seconds: float = _limit(120.0, "Seconds to decode one file.", 0.001)
    isolate: bool = setting(False, "Decode in a child process, which can be killed and has little memory.")
    max_redirects: int = _limit(3, "Redirects to follow.", 0)
    allow_urls: bool = setting(True, "Fetch URLs at all.", option=False)
    url_hosts: tuple[str, ...] | None = setting(
        None, "The only hosts to fetch from; default: any public one.", option=False
    )
    allow_private_addresses: bool = setting(False, "Fetch from this machine and private networks too.")
    file_roots: tuple[Path, ...] | None = setting(
        None, "The only folders that local files are read from; default: any.", option=False
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Plugins:
    """Reading and drawing.

    Each switches on a hook of `longview.plugins`.
    """

    ocr: bool = setting(False, "Read the text in pictures into the question.", plugin="ocr")
    gen: bool = setting(False, "Have MGM describe a picture to be painted.", plugin="draw")


@dataclass(frozen=True)
class RequestSettings(Plugins):
    """All that a request says beside its messages.

    Raises:
        RequestError: a value outside its range; names the value and the range.
    """

    n: int = setting(
        1,
        "Answers to the same question, each with random choices of its own (seed, seed + 1, …).",
        low=1,
        high=MAX_ANSWERS,
        expected=f"a whole number from 1 to {MAX_ANSWERS}",
    )
    evidence: bool = setting(False, "Say what each token of the answer gave its attention to.")
    max_partition: int | None = setting(
        None,
        "Crops of a picture, at most, of a model that cuts pictures into as many as they need (Ovis2).",
        low=1,
        high=MAX_PARTITION,
    )
    params: SamplingParams = field(default_factory=SamplingParams)
    media: MediaOptions = field(default_factory=MediaOptions)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def of(cls, **given: Any) -> RequestSettings:
        """From keywords: its own fields, and those of `SamplingParams` by name in the place of `params`.

        `params`, `media` and `limits` may also be mappings of their fields.

        Raises:
            RequestError: an unknown name, or a value outside its range.
        """
        own = {each.name: given.pop(each.name) for each in fields(cls) if each.name in given}
        if own.get("params") is not None and given:
            raise RequestError("give either params=SamplingParams(…) or its fields by name, not both")
        params = own.pop("params", None)
        return cls(
            params=parse(SamplingParams, "params", given if params is None else params, "setting"),
            media=parse(MediaOptions, "media", own.pop("media", None)),
            limits=parse(Limits, "limits", own.pop("limits", None)),
            **own,
        )
