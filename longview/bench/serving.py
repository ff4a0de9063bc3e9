"""`longview bench serve`: a server under the load of many clients, beside one client and beside the engine alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.bench.load import Judge, Seen, ask_one, run_clients
from longview.bench.report import Result, command, machine
from longview.bench.workload import CYCLE, FRAMES, Kind, make_requests
from longview.errors import LongviewError, RequestError
from longview.http_client import Client, ConnectionFailedError
from longview.wording import counted

START_SECONDS = 600.0
EACH, LEAST = 3, 64
"""Requests of each client; of a run, at least."""
IDLE_STREAMS = 256
IDLE_TOKENS = 64
BEHIND = 8
"""Clients that ask about videos while one asks about nothing."""
ENGINE = 64
"""Clients of the run that the engine alone is compared with: as many requests as it runs concurrently."""
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class LoadOptions:
    """The options of the command line."""

    clients: Sequence[int] = (1, 8, 64, 256)
    tokens: int = 16
    repeats: int = 3
    url: str | None = None
    """A server that runs; None: one of its own."""
    key: str | None = None
    kinds: Sequence[Kind] = CYCLE
    frames: int = FRAMES
    requests: int = 0
    """Of each run; 0: three a client, and 64 at least."""


def serve(dims: str | None, load: Mapping[str, Any], options: LoadOptions) -> Result:
    """
    Args:
        dims: The model: what an own server opens, or the name that another gives it; None: demo, or its first.
        load: Further arguments of `longview.load` for an own server and for the engine alone.

    Raises:
        RequestError: the server cannot be started, or reached.
    """
    if options.url is not None:
        return asyncio.run(_Bench(Client(options.url, options.key), dims, None, {}, options).run())
    with own_server(dims or "demo", load) as (address, pid):
        return asyncio.run(_Bench(Client(address), dims or "demo", pid, load, options).run())


@contextlib.contextmanager
def own_server(dims: str, load: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address, and its pid.

    Raises:
        RequestError: it does not start; with what it said.
    """
    options = [word for name, value in load.items() if value for word in _option(name, value)]
    line = [sys.executable, "-m", "longview", "serve", "--port", "0", "--model", f"bench={dims}", *options]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            _, why = process.communicate()
            raise RequestError(f"the server does not start: {why.strip()[-400:]}; see longview serve --model {dims}")
        yield said.split()[-1], process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)
        process.kill()


def _option(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


class _Bench:
    """The runs against one server."""

    def __init__(
        self, client: Client, dims: str | None, pid: int | None, load: Mapping[str, Any], options: LoadOptions
    ) -> None:
        self._client, self._dims, self._pid, self._load, self._options = client, dims, pid, load, options
        self._judge = Judge(client)
        self._seed = 0
        self._spent_judging = 0.0
        self._model = ""

    async def run(self) -> Result:
        try:
            return await self._run_all()
        except ConnectionFailedError as error:
            raise RequestError(f"{self._client.address} has gone ({error}); see why, and measure again") from None
        finally:
            self._client.close()

    async def _run_all(self) -> Result:
        options = self._options
        self._model = await self._name()
        await run_clients(self._client, self._requests(8), 4)  # what is slow once
        idle = [] if self._pid is None else [await self._idle_streams(self._pid)]  # before others have taken memory
        runs: dict[int, list[dict[str, Any]]] = {count: [] for count in options.clients}
        engine_rates: list[float] = []
        spent: list[tuple[float, float]] = []
        engine = self._open_engine()
        for _ in range(options.repeats):
            for count in options.clients:
                before = processor_seconds(self._pid)
                runs[count].append(await self._run(count))
                if engine is not None and count == ENGINE:
                    of_server, began = processor_seconds(self._pid) - before, time.process_time()
                    engine_rates.append(self._run_engine(engine))
                    spent.append((of_server - self._spent_judging, time.process_time() - began))
        rows = [_middle(found) for found in runs.values()]
        result = Result("serve", _about(options), self._settings(), rows, machine=machine(), command=command())
        result.x, result.y = "clients", ["requests/s"]
        result.findings = _ratios(runs, engine_rates)
        if spent:
            ours, alone = (1000 * statistics.median(side) / self._count(ENGINE) for side in zip(*spent, strict=True))
            result.findings.append(
                f"A request takes {ours:.0f} ms of a processor in all processes of the server, and {alone:.0f} in "
                "Engine.batch, however busy the machine is."
            )
        if "text" in options.kinds and "video" in options.kinds:
            result.findings.append(await self._behind_videos())
        result.findings += idle
        return result

    async def _name(self) -> str:
        if self._pid is not None:
            return "bench"
        try:
            reply = await self._client.get("/v1/models")
        except ConnectionFailedError as error:
            raise RequestError(f"{self._client.address} does not answer ({error}); see that it runs") from None
        found = reply.json()
        names = [card.get("id") for card in found.get("data", [])] if isinstance(found, dict) else []
        if not names or (self._dims is not None and self._dims not in names):
            served = f"it serves {', '.join(map(str, names))}" if names else f"it answers {reply.status}"
            raise RequestError(f"{self._client.address} has no model {self._dims or 'to ask'}; {served}")
        return self._dims or names[0]

    def _settings(self) -> dict[str, Any]:
        options = self._options
        kinds = {kind: options.kinds.count(kind) for kind in dict.fromkeys(options.kinds)}
        mix = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        where = {} if self._options.url is None else {"server": "another"}
        return {
            "dims": self._dims or self._model,
            **where,
            **{name: value for name, value in self._load.items() if value},
            "requests in turn": mix,
            "frames": options.frames,
            "tokens": options.tokens,
            "repeats": options.repeats,
            **({"requests of a run": options.requests} if options.requests else {}),
        }

    def _requests(self, count: int, kinds: Sequence[Kind] | None = None) -> list[Any]:
        self._seed += 1
        options = self._options
        return make_requests(count, self._seed, self._model, options.tokens, kinds or options.kinds, options.frames)

    def _count(self, clients: int) -> int:
        return self._options.requests or max(LEAST, EACH * clients)

    async def _run(self, clients: int) -> dict[str, Any]:
        seen, seconds = await run_clients(self._client, self._requests(self._count(clients)), clients)
        before = processor_seconds(self._pid)
        verdicts = await self._judge.judge(seen)
        self._spent_judging = processor_seconds(self._pid) - before
        if verdicts.errors == len(seen):
            raise RequestError(f"the server answers nothing: {verdicts.reasons[0]}")
        ended = [each for each in seen if each.error is None]
        row: dict[str, Any] = {"clients": clients, "requests/s": len(ended) / seconds}
        row |= _percentiles("first token s", [each.first for each in ended])
        row |= _percentiles("ms between", [1000 * gap for each in ended for gap in each.gaps])
        row["text first s, most"] = _most([each for each in ended if each.asked.kind == "text"])
        row |= {"errors": verdicts.errors, "lost": verdicts.lost, "crossed": verdicts.crossed}
        row |= {"right": verdicts.right, "misread": verdicts.misread, "unchecked": verdicts.unchecked}
        if verdicts.reasons:
            print(*verdicts.reasons[:5], sep="\n", file=sys.stderr)
        return row

    # ── beside the engine alone ──

    def _open_engine(self) -> Any:
        if self._pid is None or ENGINE not in self._options.clients:
            return None
        from longview.engine import load

        engine = load(self._dims or "demo", **self._load)
        self._run_engine(engine, 8)
        return engine

    def _run_engine(self, engine: Any, count: int | None = None) -> float:
        """Requests a second of `Engine.batch` in this process."""
        requests = self._requests(count or self._count(ENGINE))
        tokens = self._options.tokens
        media = {"frames": self._options.frames}
        began = time.perf_counter()
        answers = engine.batch([each.messages for each in requests], max_tokens=tokens, min_tokens=tokens, media=media)
        for answer in answers:
            if isinstance(answer, LongviewError):
                raise answer
        return len(requests) / (time.perf_counter() - began)

    # ── fairness and memory ──

    async def _behind_videos(self) -> str:
        """How long a text waits while others ask about videos that nobody has asked about."""
        films = iter(self._requests(BEHIND * 3, ["video"]))
        texts = self._requests(200, ["text"])
        waits: list[Seen] = []
        busy = True

        async def watch() -> None:
            for asked in films:
                await ask_one(self._client, asked)

        async def ask() -> None:
            for asked in texts:
                if not busy:
                    return
                waits.append(await ask_one(self._client, asked))

        asking = asyncio.create_task(ask())
        await asyncio.gather(*(watch() for _ in range(BEHIND)))
        busy = False
        await asking
        middle = statistics.median(each.first for each in waits)
        return (
            f"Behind {BEHIND} clients that ask about videos, {counted(len(waits), 'text request')} had a first token "
            f"after {middle:.2f} s in the median and {_most(waits):.2f} s at the most."
        )

    async def _idle_streams(self, pid: int) -> str:
        """What streams cost in memory that are open and of which nobody reads, beside what runs for as many."""
        texts = self._requests(min(2 * ENGINE, self._options.requests or 2 * ENGINE), ["text"])
        await run_clients(self._client, texts, ENGINE)
        before = resident(pid)
        self._seed += 1
        (asked,) = make_requests(1, self._seed, self._model, IDLE_TOKENS, ["text"], 1)
        headers = {"Content-Type": "application/json"}
        most = 0
        async with contextlib.AsyncExitStack() as streams:
            for _ in range(IDLE_STREAMS):
                opened = self._client.open("POST", "/v1/chat/completions", [asked.body], headers, len(asked.body))
                await streams.enter_async_context(opened)
                most = max(most, resident(pid))
            for _ in range(20):
                await asyncio.sleep(0.1)
                most = max(most, resident(pid))
        return f"{IDLE_STREAMS} open streams cost {(most - before) / 2**20:.0f} MiB of the server's memory."


def _about(options: LoadOptions) -> str:
    return (
        "Clients that ask their next question when they have their answer; medians of runs. First token and between "
        "tokens as clients see them. Each picture carries a word that must come back: crossed is an answer "
        "that differs from that to the same request alone, misread one that does not."
    )


def _middle(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of runs; counts are added up."""
    return {
        name: runs[0][name]
        if name == "clients"
        else statistics.median(each[name] for each in runs)
        if isinstance(runs[0][name], float)
        else sum(each[name] for each in runs)
        for name in runs[0]
    }


def _ratios(runs: Mapping[int, Sequence[Mapping[str, Any]]], engine_rates: Sequence[float]) -> list[str]:
    """Ratios of neighbours in the same turn, medians: other work on the machine is in both."""
    found = []
    rates = {count: [run["requests/s"] for run in of_count] for count, of_count in runs.items()}
    for count in rates:
        if count > 1 and 1 in rates:
            ratio = statistics.median(many / one for many, one in zip(rates[count], rates[1], strict=True))
            found.append(f"{count} clients: {ratio:.2f}× the requests/s of one.")
    if engine_rates:
        ratio = statistics.median(many / alone for many, alone in zip(rates[ENGINE], engine_rates, strict=True))
        alone = statistics.median(engine_rates)
        found.append(
            f"{ENGINE} clients: {ratio:.2f}× the requests/s of Engine.batch in one process ({alone:.1f}), which has no "
            "HTTP, no process boundary and no children that decode."
        )
    return found


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        f"{name} {share}": ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None
        for share, part in SHARES.items()
    }


def _most(seen: Sequence[Seen]) -> float | None:
    return max((each.first for each in seen), default=None)


def resident(pid: int) -> int:
    """Bytes in memory of a process and its children, on Linux."""
    found = 0
    for process in _tree(pid):
        with contextlib.suppress(OSError):  # it has ended
            status = (process / "status").read_text(encoding="utf-8").splitlines()
            found += sum(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))
    return found


def processor_seconds(pid: int | None) -> float:
    """That a process and its children have taken, and those of them that have ended; 0 where that is not known."""
    found = 0
    for process in () if pid is None else _tree(pid):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            found += sum(map(int, fields[11:15]))
    return found / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> Iterator[Path]:
    """A process and its children, whichever thread started them."""
    process = Path(f"/proc/{pid}")
    yield process
    try:
        threads = [task / "children" for task in (process / "task").iterdir()]
        children = [int(child) for each in threads for child in each.read_text(encoding="utf-8").split()]
    except OSError:
        return
    for child in children:
        yield from _tree(child)
