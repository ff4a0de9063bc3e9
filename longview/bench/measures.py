"""The measures of `longview bench`. Each runs requests on the real engine and returns a `Result`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.bench import alternatives
from longview.bench.attention import attention_rates
from longview.bench.films import VIDEO_FPS, decode_through, read_film, spread, write_numbered_video
from longview.bench.limits import limits_of, tower_of
from longview.bench.report import Result, command, machine
from longview.bench.subject import GiB, Subject
from longview.errors import RequestError
from longview.messages import Answer, ask
from longview.messages import video as video_part
from longview.wording import counted


@dataclass(frozen=True)
class BenchOptions:
    """The options of the command line."""

    pictures: Sequence[int]
    repeats: int = 3
    layers: int = 0
    """Layers of the interleaved alternative that are run; see `alternatives.Interleaved`."""
    max_interleaved: int = 16
    """Pictures up to which the interleaved alternative is run."""
    tokens: int = 16
    requests: int = 16
    minutes: int = 10
    gigabytes: int = 8


def first_token(subject: Subject, options: BenchOptions) -> Result:
    """Time to the first token by number of pictures, and its parts."""
    rows: list[dict[str, Any]] = []
    interleaved = None if subject.pictures_in_sequence else alternatives.Interleaved(subject, options.layers)
    for count in options.pictures:
        answers = []
        for turn in range(options.repeats):
            subject.clear_caches(features=True)
            messages = subject.question(count, first=1000 * turn)
            answers.append(subject.engine.answer(messages, max_tokens=1))
        middle = _median_answer(answers, lambda answer: answer.receipt.timings.first_token)
        timings, usage = middle.receipt.timings, middle.receipt.usage
        row: dict[str, Any] = {
            "pictures": count,
            "media s": timings.media + timings.preprocess,
            "encode s": timings.encode,
            "prefill s": timings.prefill,
            "first token s": timings.first_token,
        }
        if interleaved is not None:
            alone = None
            if count <= options.max_interleaved:
                alone = interleaved.first_token(count, usage.prompt_tokens)
            row |= {
                "interleaved prefill s": alone,
                "faster without tower ×": alone and alone / timings.prefill,
                "faster whole ×": alone and (alone + timings.first_token - timings.prefill) / timings.first_token,
            }
        if not subject.random_features:  # generate has no feature cache
            some = count <= options.max_interleaved
            row["generate s"] = alternatives.generate(subject, messages, 1) if some else None
        rows.append(row)
    result = _result(subject, options, "first-token", rows, limits_of(subject.model))
    result.about = (
        "Seconds from a question to its first token, medians. Interleaved is the same language model with the pictures "
        "in its sequence, from features that are there; whole adds the same media and encoding to both."
    )
    if not subject.random_features:
        result.about += " Generate is transformers' own loop over the same model, tower included."
    drawn = ("first token s", "prefill s", "interleaved prefill s", "generate s")
    result.x, result.y = "pictures", [column for column in drawn if column in rows[0]]
    if interleaved is not None and interleaved.scale > 1:
        result.findings.append(
            f"Interleaved ran {interleaved.layers} of its {interleaved.num_layers} layers, and their time is "
            f"multiplied by {interleaved.scale:g}: all cost the same."
        )
    for row in rows:
        if row.get("faster without tower ×"):
            result.findings.append(
                f"{counted(row['pictures'], 'picture')}: {row['faster without tower ×']:.1f}× faster than interleaved "
                f"without the tower, {row['faster whole ×']:.1f}× as measured here."
            )
    if not subject.random_features:
        result.findings += _tower_share(subject, rows, result.limits)
    return result


def _tower_share(subject: Subject, rows: Sequence[dict[str, Any]], limits: dict[str, float]) -> list[str]:
    """The share of the matrix rate that the tower reaches, counted from its linear layers and its attention."""
    tower = tower_of(subject.model.config)
    if tower is None or "tower flop/s" not in limits or not hasattr(tower, "intermediate_size"):
        return []
    patches = (tower.image_size // tower.patch_size) ** 2
    linear = 8 * tower.hidden_size**2 + 4 * tower.hidden_size * tower.intermediate_size
    each = patches * (linear + 4 * patches * tower.hidden_size)
    blocks = tower.num_hidden_layers - (subject.model.config.model_type == "mplugowl3")
    findings = []
    for row in rows:
        if row["pictures"]:
            share = row["pictures"] * blocks * each / row["encode s"] / limits["tower flop/s"]
            pictures = counted(row["pictures"], "picture")
            findings.append(f"{pictures}: the tower reaches {share:.0%} of the matrix rate of its shapes.")
    return findings


def decode(subject: Subject, options: BenchOptions) -> Result:
    """Tokens a second by number of pictures in context."""
    rows: list[dict[str, Any]] = []
    interleaved = None if subject.pictures_in_sequence else alternatives.Interleaved(subject, options.layers)
    for count in options.pictures:
        messages = subject.question(count)
        answers = [subject.engine.answer(messages, **_exactly(options.tokens)) for _ in range(options.repeats + 1)]
        middle = _median_answer(answers[1:], _token_seconds)  # the first may compile
        each = _token_seconds(middle)
        row: dict[str, Any] = {"pictures": count, "ms a token": 1000 * each, "tokens/s": 1 / each}
        if interleaved is not None:
            tokens = middle.receipt.usage.prompt_tokens
            alone = interleaved.token(count, tokens, options.repeats) if count <= options.max_interleaved else None
            again = alternatives.recomputation(subject, count) if count else 0.0
            row |= {
                "interleaved tokens/s": alone and 1 / alone,
                "recomputing tokens/s": 1 / (each + again),
                "faster than recomputing ×": (each + again) / each,
            }
        rows.append(row)
    result = _result(subject, options, "decode", rows, limits_of(subject.model))
    result.about = "Tokens a second of one request, by pictures in its context, medians."
    if interleaved is not None:
        result.about += (
            " Recomputing makes the keys and values of the pictures anew for each token, as the authors' code does."
        )
    result.x, result.y = (
        "pictures",
        ["tokens/s", *(["interleaved tokens/s", "recomputing tokens/s"] if interleaved else [])],
    )
    weights = sum(p.numel() * p.element_size() for p in subject.model.language_model.parameters())
    footprint = type(subject.model).footprint(subject.model.config, subject.model.dtype)
    for row in rows:
        moved = weights + row["pictures"] * footprint.picture_bytes
        share = moved * row["tokens/s"] / result.limits["decode bytes/s"]
        result.findings.append(
            f"{counted(row['pictures'], 'picture')}: {row['tokens/s'] / rows[0]['tokens/s']:.2f}× the speed with "
            f"{rows[0]['pictures']}, {share:.0%} of the rate at which such matrices can be read."
        )
    return result


def batch(subject: Subject, options: BenchOptions) -> Result:
    """Many requests with one picture each: batched, sequentially, and by transformers' generate."""
    engine, count = subject.engine, options.requests
    settings = _exactly(options.tokens)

    def questions(first: int) -> list[Any]:
        subject.clear_caches(features=True)
        return [subject.question(1, first=first + number) for number in range(count)]

    def timed(run: Callable[[list[Any]], Any], first: int) -> float:
        conversations = questions(first)
        start = time.perf_counter()
        run(conversations)
        return time.perf_counter() - start

    ways: dict[str, Callable[[list[Any]], Any]] = {
        "together": lambda conversations: list(engine.batch(conversations, **settings)),
        "one after the other": lambda conversations: [engine.answer(each, **settings) for each in conversations],
        "transformers generate": lambda conversations: [
            alternatives.generate(subject, each, options.tokens) for each in conversations
        ],
    }
    if subject.random_features:  # generate has no feature cache
        del ways["transformers generate"]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.repeats + 1):  # the first does not count
        for number, (name, run) in enumerate(ways.items()):
            seconds[name].append(timed(run, 100_000 * turn + 10_000 * number))
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    rows = [
        {"way": name, "seconds": found, "requests/s": count / found, "tokens/s": count * options.tokens / found}
        for name, found in medians.items()
    ]
    result = _result(subject, options, "batch", rows, {})
    result.about = (
        f"{count} requests with a picture and {options.tokens} tokens each, medians of {options.repeats} runs in turn."
    )
    ratio = medians["one after the other"] / medians["together"]
    result.findings.append(f"Together: {ratio:.1f}× the throughput of one after the other.")
    if "transformers generate" in medians:
        share = medians["one after the other"] / medians["transformers generate"]
        result.findings.append(f"One at a time, the engine takes {share:.2f}× the time of transformers' generate.")
    return result


def second_question(subject: Subject, options: BenchOptions) -> Result:
    """Time to the first token of a second question about the same video, beside the first."""
    count = max(options.pictures)
    answers_of: dict[str, list[Answer]] = {"first question": [], "second question": [], "the first again": []}
    with tempfile.TemporaryDirectory(prefix="longview-bench-") as folder:
        for turn in range(options.repeats):
            subject.clear_caches(features=True)
            path = write_numbered_video(Path(folder) / f"{turn}.mp4", max(count, 30), turn)
            for name, text in (
                ("first question", "What happens in it?"),
                ("second question", "Who is there, and where?"),
                ("the first again", "What happens in it?"),
            ):
                settings = {"max_tokens": 1, "media": {"frames": count, "select": "uniform"}}
                answers_of[name].append(subject.engine.answer([ask(text, video_part(path))], **settings))
    rows: list[dict[str, Any]] = []
    for name, answers in answers_of.items():
        middle = _median_answer(answers, lambda answer: answer.receipt.timings.first_token)
        timings, usage = middle.receipt.timings, middle.receipt.usage
        rows.append(
            {
                "question": name,
                "media s": timings.media + timings.preprocess,
                "encode s": timings.encode,
                "prefill s": timings.prefill,
                "first token s": timings.first_token,
                "cached tokens": usage.cached_tokens,
            }
        )
    result = _result(subject, options, "again", rows, {})
    result.about = f"Seconds to the first token of questions about the same video of {count} frames, medians."
    share = rows[1]["first token s"] / rows[0]["first token s"]
    result.findings.append(f"The second question takes {share:.1%} of the first one's time to its first token.")
    return result


def video(subject: Subject | None, options: BenchOptions) -> Result:
    """Reading frames of a long H.264 file, beside decoding all of it."""
    count = max(options.pictures)
    num_frames = options.minutes * 60 * VIDEO_FPS
    with tempfile.TemporaryDirectory(prefix="longview-bench-") as folder:
        path = write_numbered_video(Path(folder) / "film.mp4", num_frames, 0)
        read = [read_film(path, count, num_frames) for _ in range(options.repeats)]
        through = decode_through(path, set(spread(num_frames, count)))
    ours, right = statistics.median(opening + reading for opening, reading, _ in read), min(each[2] for each in read)
    rows = [
        {"way": "longview", "seconds": ours, "exact frames": f"{right} of {count}"},
        {"way": "decoding through", "seconds": through, "exact frames": f"{count} of {count}"},
    ]
    settings = {"dims": f"{options.minutes} minutes of H.264", "frames": count, "repeats": options.repeats}
    result = Result("video", "", settings, rows, machine=machine(), command=command())
    result.about = f"Seconds from a file to {count} frames spread over it; the file is indexed anew each time."
    result.findings.append(f"{through / ours:.1f}× faster than decoding the file through; {right} of {count} exact.")
    return result


def memory(subject: Subject, options: BenchOptions) -> Result:
    """How many pictures fit into memory, measured on caches that hold some."""
    if subject.pictures_in_sequence:
        raise RequestError(
            f"in {subject.name} pictures take positions of the sequence already; give --dims owl3-1b, -2b or -7b"
        )
    ours = alternatives.visual_kv_bytes(subject, 6) // 6
    theirs = alternatives.Interleaved(subject, options.layers or 1).bytes_per_picture()
    room = options.gigabytes * GiB
    rows = [
        {"way": "hyper attention", "MiB a picture": ours / 2**20, f"pictures in {options.gigabytes} GiB": room // ours},
        {"way": "interleaved", "MiB a picture": theirs / 2**20, f"pictures in {options.gigabytes} GiB": room // theirs},
    ]
    result = _result(subject, options, "memory", rows, {})
    result.about = "Keys and values of pictures, in bytes of the tensors that hold them; without weights and text."
    result.findings.append(
        f"Where 16 interleaved pictures fit, {16 * theirs // ours} fit with hyper attention: {theirs / ours:.1f}×."
    )
    return result


def limits(subject: Subject, options: BenchOptions) -> Result:
    """The limits of the machine for the shapes of one model."""
    machine_limits = limits_of(subject.model)
    rows = [{"limit": name, "a second": value} for name, value in machine_limits.items()]
    result = _result(subject, options, "limits", rows, machine_limits)
    result.about = "Matrix rates for the shapes of the tower and of prefill; bandwidth of reading and of decoding."
    return result


def attention(subject: Subject, options: BenchOptions) -> Result:
    """The rate of one hyper layer's attention at prefill, by number of pictures."""
    rows = [{"pictures": count, **attention_rates(subject.model, count, options.repeats)} for count in options.pictures]
    result = _result(subject, options, "attention", rows, limits_of(subject.model))
    result.about = (
        "One hyper layer's attention of a prompt to its pictures, each of whose tokens sees those before it; and "
        "the fused kernel alone, all of whose queries see all of sixteen pictures. Medians."
    )
    result.x, result.y = "pictures", [column for column in ("flop/s", "kernel alone flop/s") if column in rows[0]]
    result.findings = [
        f"{counted(row['pictures'], 'picture')}: {row['share']:.0%} of the rate of the kernel alone."
        for row in rows
        if "share" in row
    ]
    return result


MEASURES: dict[str, Callable[[Any, BenchOptions], Result]] = {
    "first-token": first_token,
    "decode": decode,
    "batch": batch,
    "again": second_question,
    "video": video,
    "memory": memory,
    "limits": limits,
    "attention": attention,
}


# ── shared ──────────────────────────────────────────────────────────────────────────────────────────────────


def _exactly(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "min_tokens": tokens}


def _token_seconds(answer: Answer) -> float:
    """Seconds a token, of those after the first."""
    return answer.receipt.timings.decode / (answer.receipt.usage.completion_tokens - 1)


def _median_answer(answers: Sequence[Answer], by: Callable[[Answer], float]) -> Answer:
    """The median answer."""
    return sorted(answers, key=by)[len(answers) // 2]


def _result(
    subject: Subject, options: BenchOptions, measure: str, rows: list[dict[str, Any]], found: dict[str, float]
) -> Result:
    dtype = str(subject.model.dtype).removeprefix("torch.")
    settings = {
        "dims": subject.name,
        "dtype": dtype,
        "device": str(subject.model.device),
        "features": "random" if subject.random_features else "tower",
        "repeats": options.repeats,
        **subject.options,
    }
    return Result(measure, "", settings, rows, limits=found, machine=machine(), command=command())
