"""Batches of coming steps, made in processes of their own while the model learns.

    process 0    step 0   step 3   step 6 …  ─┐
    process 1    step 1   step 4   step 7 …  ─┼─ step 0, 1, 2, 3 … as they would have been made here
    process 2    step 2   step 5   step 8 …  ─┘

The processes are forked, so that they hold what this one does; they never touch a GPU.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from longview.errors import LongviewError, RecipeError

WAITING = 8
"""Batches of each process that wait for their steps."""
KILLED = "a process that makes batches ahead was killed; there may be too little memory: give fewer --workers"
REMEMBERED = 200_000
"""Texts of which a process remembers the tokens."""


class Ahead:
    """Makes something for each step, in order, from a step on."""

    def __init__(self, make: Callable[[int], Any], begin: int, workers: int, prepare: Callable[[], None]) -> None:
        """Args:
        make: Step → what can be pickled.
        prepare: Called in each process before it makes anything.
        """
        self._begin, self._stopped = begin, threading.Event()
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe(duplex=False) for _ in range(workers)]

        def work(number: int) -> None:
            # a terminal's Ctrl-C is for the run, which ends its processes itself
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for other, (reader, writer) in enumerate(pipes):
                reader.close()
                if other != number:
                    writer.close()
            gc.freeze()  # nothing of the other process is freed in this one, least of all what a GPU holds
            torch.set_num_threads(1)  # of a forked process, those of the other one are gone
            _make_all(pipes[number][1], make, begin + number, workers, prepare)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which are not used there
            self._processes = [context.Process(target=work, args=(n,), daemon=True) for n in range(workers)]
            for process in self._processes:
                process.start()
        self._queues: list[queue.Queue[Any]] = [queue.Queue(WAITING) for _ in range(workers)]
        for (reader, writer), waiting in zip(pipes, self._queues, strict=True):
            writer.close()
            threading.Thread(target=self._receive, args=(reader, waiting), daemon=True).start()

    def _receive(self, reader: Connection, waiting: queue.Queue[Any]) -> None:
        while not self._stopped.is_set():
            try:
                received = pickle.loads(reader.recv_bytes())
            except (EOFError, OSError):
                received = RecipeError(KILLED)
            while not self._stopped.is_set():
                try:
                    waiting.put(received, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if isinstance(received, LongviewError):
                break
        reader.close()

    def next(self, step: int) -> Any:
        """What was made for a step; steps are asked for one after another.

        Raises:
            LongviewError: a process has failed, or was killed.
        """
        received = self._queues[(step - self._begin) % len(self._queues)].get()
        if isinstance(received, LongviewError):
            raise received
        made_for, made = received
        assert made_for == step, "steps are asked for in order"
        return made

    def stop(self) -> None:
        """End the processes."""
        self._stopped.set()
        for process in self._processes:
            process.kill()
            process.join()


def _make_all(
    writer: Connection, make: Callable[[int], Any], step: int, stride: int, prepare: Callable[[], None]
) -> None:
    try:
        prepare()
        while True:
            writer.send_bytes(pickle.dumps((step, make(step)), pickle.HIGHEST_PROTOCOL))
            step += stride
    except BrokenPipeError:  # the run has ended
        os._exit(0)
    except LongviewError as error:
        writer.send_bytes(pickle.dumps(error))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the run must tell it
        traceback.print_exc()
        told = f"a process that makes batches ahead has failed: {type(error).__name__}: {error}; try --workers 0"
        writer.send_bytes(pickle.dumps(RecipeError(told)))


class RememberingTokenizer:
    """A tokenizer that encodes each text once: questions repeat."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._encoded: dict[Any, Any] = {}

    def __call__(self, text: str, **options: Any) -> Any:
        key = (text, *sorted(options.items()))
        if key not in self._encoded:
            if len(self._encoded) >= REMEMBERED:
                self._encoded.clear()
            self._encoded[key] = self._tokenizer(text, **options)
        return self._encoded[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
