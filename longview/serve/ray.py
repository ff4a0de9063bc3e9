"""Replicas on Ray Serve (`--replicas`, `--ray`): each model is an application, and each of its replicas has an engine.

    client ── app.py ── models.py ── Replicas ── handle ── Ray's ConsistentHashRouter ── Replica ── Engine
                                     by model    session_id = digest of the first medium    a process on some machine

The routes, their guard and their limits are the server's own: Ray's proxies, dashboard and reports are off. A film's
questions go to the replica that has its features. A replica that dies is replaced by Ray; what it had said nothing of
is asked again of another, and what it was saying ends in an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError, LongviewError, MissingExtraError, RequestError
from longview.serve.backend import Backend, Job, StatsTaker
from longview.serve.errors import APIError
from longview.serve.settings import ServerOptions
from longview.versions import missing

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
MAX_RUNNING = 1024
"""Requests of a replica; its engine has them wait, and the server bounds how many."""
RETRY_SECONDS = 10.0
"""For so long a request of which nothing was said is asked again when its replica ends."""
DEFAULT_REQUESTS = 8.0
UPSCALE_SECONDS = 10.0
"""So long there have to be too many requests before there are more replicas; fewer after ten minutes, as Ray has it."""
WATCH_SECONDS = 1.0
CONNECT_SECONDS = 5.0
STATS_SECONDS = 0.25
ON_ONE_MACHINE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # of all systems: Ray's processes listen on 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
}
logger = logging.getLogger("longview.serve")


class Cluster:
    """A connection to Ray: to a cluster that runs (`--ray`), or to one of this machine that ends with the server.

    Args:
        num_models: That will have replicas.

    Raises:
        MissingExtraError: Ray is not installed.
        RequestError: no cluster is there.
    """

    def __init__(self, options: ServerOptions, num_models: int) -> None:
        if missing(["ray"]):
            raise MissingExtraError("--replicas and --ray", "ray")
        self._is_own = options.ray is None
        self._replicas = options.replicas or 1
        self._most = max(options.max_replicas or 0, self._replicas)
        self._requests, self._drain_seconds = options.replica_requests or DEFAULT_REQUESTS, options.drain_seconds
        if options.ray is None:
            threads = max(1, (os.cpu_count() or 1) // (self._most * num_models))
            os.environ.update({**ON_ONE_MACHINE, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        else:
            _check_there(options.ray)
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # what outlives `stop` starts no other cluster
        import ray
        from ray import serve

        own: dict[str, Any] = {"include_dashboard": False} if self._is_own else {}
        umask = os.umask(0o077)  # its token and its logs are this user's
        try:  # before any other handler of signals: this installs one
            with contextlib.redirect_stdout(sys.stderr):
                ray.init(address=options.ray or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise RequestError(
                f"the Ray cluster at {options.ray or 'this machine'} cannot be used ({reason:.300}); RAY_AUTH_TOKEN is "
                "its token, where it has one"
            ) from None
        finally:
            os.umask(umask)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled")
        gpus = ray.cluster_resources().get("GPU", 0.0)
        shares = self._most * num_models if self._is_own else 1
        self._gpus = min(1.0, gpus / shares)
        self._share = self._gpus or 1 / shares

    def make(self, name: str, config: Mapping[str, Any], on_stats: StatsTaker = lambda _: None) -> Replicas:
        """As `models.MakeBackend`."""
        budget = {**config["load"]["budget"], "share": self._share}
        return Replicas(name, {**config, "load": {**config["load"], "budget": budget}}, on_stats, self)

    def deployment(self, load: Mapping[str, Any]) -> Any:
        """The replicas of a model, as Ray Serve deploys them."""
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig

        gpus = 0.0 if str(load.get("device") or "").startswith("cpu") else self._gpus
        if self._most > self._replicas:
            scaling = AutoscalingConfig(
                min_replicas=self._replicas,
                max_replicas=self._most,
                target_ongoing_requests=self._requests,
                upscale_delay_s=UPSCALE_SECONDS,
                metrics_interval_s=2,
                look_back_period_s=UPSCALE_SECONDS,
            )
            number: dict[str, Any] = {"autoscaling_config": scaling}
        else:
            number = {"num_replicas": self._replicas}
        return serve.deployment(Replica).options(
            name="engine",
            max_ongoing_requests=MAX_RUNNING,
            ray_actor_options={"num_cpus": 0 if self._is_own else 1, "num_gpus": gpus},
            request_router_config=RequestRouterConfig(request_router_class=ROUTER),
            health_check_period_s=1,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=self._drain_seconds,
            **number,
        )

    @property
    def is_own(self) -> bool:
        """Whether it ends with the server."""
        return self._is_own

    def stop(self) -> None:
        import ray

        ray.shutdown()


def _check_there(address: str) -> None:
    """Before Ray tries for minutes.

    Raises:
        RequestError: nobody listens there.
    """
    started = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # by `ray start`
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or (started.read_text().strip() if started.is_file() else "")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"no Ray cluster answers at {address or 'auto'!r:.80} ({error}); give HOST:PORT as ray start says, or auto "
            "where it was started"
        ) from None
    tokens = (os.environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or any(path and Path(path).is_file() for path in tokens):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # by itself, Ray uses a token for clusters that it starts
    if host in ("127.0.0.1", "localhost"):
        os.environ.update(ON_ONE_MACHINE)  # without, Ray would look for it at another address


class Replicas(Backend):
    """A model as an application of Ray Serve.

    Another server that has the same model under the same settings, and the same cluster, shares it.
    """

    def __init__(self, name: str, config: Mapping[str, Any], on_stats: StatsTaker, cluster: Cluster) -> None:
        super().__init__(name, on_stats)
        self._config, self._cluster = config, cluster
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        self._application = f"longview-{digest[:16]}"
        self._handle: Any = None
        self._deployed = False
        self._numbers = itertools.count()
        self._stats: dict[str, Mapping[str, Mapping[str, float]]] = {}
        self._running = self._num_replicas = 0
        self._watcher: asyncio.Task[None] | None = None

    @property
    def is_started(self) -> bool:
        return self._handle is not None

    async def start(self) -> None:
        handle = await asyncio.to_thread(self._run)
        facts = await handle.facts.remote()
        if "failed" in facts:
            await self.stop()
            raise CheckpointError(facts["failed"])
        self.facts.update(facts)
        self._handle, self.ready = handle, True
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    def _run(self) -> Any:
        """Deploy the application, unless it is; returns when it has a replica."""
        from ray import serve

        there = serve.status().applications.get(self._application)
        if there is not None and there.status == "RUNNING":
            return serve.get_app_handle(self._application)
        self._deployed = True
        deployment = self._cluster.deployment(self._config["load"])
        try:
            return serve.run(deployment.bind(dict(self._config)), name=self._application, route_prefix=None)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"the replicas of {self.name} cannot be started: {reason:.300}") from None

    async def _watch(self) -> None:
        """Count the replicas."""
        from ray.exceptions import RayError

        while True:
            try:
                self._num_replicas = await asyncio.to_thread(self._count)
            except (RayError, TimeoutError) as error:  # the cluster's head is being started again
                logger.warning("Ray does not say how %s is: %.200s", self.name, error)
            self.ready = self._num_replicas > 0
            self._take_stats()
            await asyncio.sleep(WATCH_SECONDS)

    def _count(self) -> int:
        from ray import serve

        application = serve.status().applications.get(self._application)
        deployments = application.deployments.values() if application is not None else ()
        return sum(each.replica_states.get("RUNNING", 0) for each in deployments)

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        self.ready, self._handle = False, None
        self._on_stats({})
        if self._deployed and not self._cluster.is_own:  # what is the server's own ends with its cluster
            from ray import serve

            await asyncio.to_thread(serve.delete, self._application)

    async def events(self, job: Job, adapter: str = "") -> AsyncGenerator[dict[str, Any]]:
        from ray.exceptions import RayActorError, RayError

        if self._handle is None:
            raise APIError(503, f"{self.name} is being started; try again", code="model_down", retry_after=5)
        header, began = job.header(adapter, next(self._numbers)), time.monotonic()
        self.last_used = began
        handle = self._handle.options(stream=True, session_id=session_of(job))
        self._running += 1
        said = False
        try:
            while True:
                try:
                    async with contextlib.aclosing(self._answers(handle, header, job.blobs)) as events:
                        async for event in events:
                            said = said or event["event"] != "accepted"
                            yield event
                            if event["event"] == "ended":
                                return
                except RayActorError:
                    logger.warning("a replica of %s has ended", self.name)
                    self._stats.clear()
                    if said or time.monotonic() - began > RETRY_SECONDS:
                        yield {"event": "ended", "error": {"kind": "process", "text": ""}}
                        return
                    await asyncio.sleep(0.2)  # until Ray's router knows
                except RayError as error:
                    logger.error("a request to %s failed: %.1000s", self.name, error)
                    yield {"event": "ended", "error": {"kind": "internal", "text": ""}}
                    return
        finally:
            self._running -= 1
            self._take_stats()

    async def _answers(
        self, handle: Any, header: Mapping[str, Any], blobs: Sequence[bytes]
    ) -> AsyncGenerator[dict[str, Any]]:
        """The events of one attempt."""
        response = handle.answer.remote(header, list(blobs))
        try:
            async for replica, stats, events in response:
                if stats is not None:
                    self._stats[replica] = stats
                    self._take_stats()
                for event in events:
                    yield event
        finally:
            response.cancel()

    def _take_stats(self) -> None:
        """Add up what the replicas have said of themselves."""
        found: dict[str, dict[str, float]] = {"": {}, **{name: {} for name in self._config["adapters"]}}
        for stats in self._stats.values():
            for adapter, numbers in stats.items():
                sums = found[adapter]
                for name, value in numbers.items():
                    before = sums.get(name, 0.0)
                    sums[name] = max(before, value) if name.endswith("_perc") else before + value
        idle = {} if self._running else {"num_requests_running": 0.0, "num_requests_waiting": 0.0}
        more = {**idle, "num_replicas": float(self._num_replicas)}
        self._on_stats({adapter: {**numbers, **more} for adapter, numbers in found.items()})


def session_of(job: Job) -> str:
    """A digest of the first medium of a job, by which its replica is found; random where there is none."""
    for message in job.messages:
        for part in message["parts"]:
            if part["type"] != "text":
                digest = hashlib.sha256()
                _digest(part["source"], job.blobs, digest)
                return digest.hexdigest()
    return secrets.token_hex(8)


def _digest(source: Any, blobs: Sequence[bytes], digest: Any) -> None:
    if isinstance(source, list):
        for each in source:
            _digest(each, blobs, digest)
        return
    data = source.encode(errors="replace") if isinstance(source, str) else blobs[source["blob"]]
    digest.update(len(data).to_bytes(8, "big") + data)


class Replica:
    """One replica: it runs in a process of Ray's.

    Args:
        config: See `Engines`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        _listen_on_this_machine_only()
        from ray import serve

        from longview.serve.engines import Engines

        _be_quiet()
        self._id = serve.get_replica_context().replica_id.unique_id
        self._failed = ""
        try:
            self._engines = Engines(config)
        except LongviewError as error:  # told by `facts`: an error here would have Ray try for minutes
            self._failed = str(error)

    def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        if self._failed:
            raise RuntimeError(self._failed)

    async def facts(self) -> dict[str, Any]:
        return {"failed": self._failed} if self._failed else self._engines.facts

    async def answer(
        self, job: Mapping[str, Any], blobs: Sequence[bytes]
    ) -> AsyncIterator[tuple[str, Mapping[str, Any] | None, list[dict[str, Any]]]]:
        """The events of a job, as many at a time as there are; with them, now and then, who says so and its stats."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        answering = asyncio.create_task(self._engines.answer(job, blobs, events.put_nowait))
        told = 0.0
        try:
            while True:
                found = [await events.get()]
                while not events.empty():
                    found.append(events.get_nowait())
                ended, now = found[-1]["event"] == "ended", time.monotonic()
                is_time = ended or now - told > STATS_SECONDS
                told = now if is_time else told
                yield self._id, self._engines.stats if is_time else None, found
                if ended:
                    return
        finally:
            answering.cancel()


def _be_quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _listen_on_this_machine_only() -> None:
    """A replica of a cluster of one machine listens there, as Ray's other processes do: by itself it would everywhere.

    Ray Serve 2.60 has no setting for it. It is called in the replica's process before Ray opens that port.
    """
    import ray.util
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() == "127.0.0.1":
        listen = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = functools.partial(_listen, listen)


def _listen(listen: Any, server: Any, address: str) -> int:
    return listen(server, address.replace("[::]", "127.0.0.1"))
