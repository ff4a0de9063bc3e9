"""What `/metrics` tells Prometheus, under vLLM's names with the prefix `longview:`, so that dashboards need one change.

Counts of requests come from their events and receipts; states of a model's caches from its process, twice a second.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "longview:"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
FRAMES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

GAUGES = {
    "num_requests_running": "Requests that run.",
    "num_requests_waiting": "Requests that wait for memory or for others.",
    "num_replicas": "Processes that answer for the model; 0 while there is none.",
    "kv_cache_usage_perc": "Share of the memory for keys and values that running requests may need; 1 is all.",
    "vision_features_cache_bytes": "Bytes of features of pictures that are kept.",
    "prefix_cache_bytes": "Bytes of keys and values of past requests that are kept.",
}
COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "generation_tokens": "Tokens of answers.",
    "prefix_cache_queries": "Prompts whose beginning was looked up.",
    "prefix_cache_hits": "Prompts whose beginning was found.",
    "mm_cache_queries": "Pictures whose features were looked up.",
    "mm_cache_hits": "Pictures whose features were found.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": ("From the request to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Between pieces of an answer.", TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("From the request to its end.", SECONDS),
    "request_prefill_time_seconds": ("The prompt through the language model.", SECONDS),
    "request_decode_time_seconds": ("Every token after the first.", SECONDS),
    "media_decode_seconds": ("To fetch, open and choose frames of media.", SECONDS),
    "encoder_model_forward_seconds": ("Pixels to features, with the wait for them.", SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", TOKENS),
    "frames_selected": ("Frames that a request's media were shown in.", FRAMES),
}
PHASES = {
    "media": "media_decode_seconds",
    "encode": "encoder_model_forward_seconds",
    "prefill": "request_prefill_time_seconds",
    "decode": "request_decode_time_seconds",
}


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        label = ("model_name",)
        self._gauges = {
            name: Gauge(PREFIX + name, help, label, registry=self._registry) for name, help in GAUGES.items()
        }
        self._counters = {
            name: Counter(PREFIX + name, help, label, registry=self._registry) for name, help in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(PREFIX + name, help, label, buckets=buckets, registry=self._registry)
            for name, (help, buckets) in HISTOGRAMS.items()
        }
        self._success = Counter(
            PREFIX + "request_success",
            "Requests that have ended.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._rejections = Counter(
            PREFIX + "admission_rejections", "Requests that were refused.", ("reason",), registry=self._registry
        )
        self._media_rejected = Counter(
            PREFIX + "media_rejected", "Requests whose media were refused.", ("reason",), registry=self._registry
        )
        self._before: dict[str, Mapping[str, float]] = {}

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def reject(self, code: str | None) -> None:
        """A request was refused."""
        self._rejections.labels(code or "other").inc()

    def update(self, names: Mapping[str, str], stats: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in what a process says of its models, by adapter.

        Args:
            names: Of the models, by adapter.
        """
        for adapter, model in names.items():
            self._update(model, stats.get(adapter, {}))

    def _update(self, model: str, stats: Mapping[str, Any]) -> None:
        """Counts begin at 0 when a process is started again."""
        for name in GAUGES:
            self._gauges[name].labels(model).set(stats.get(name, 0))
        before = self._before.get(model, {})
        for name in COUNTERS.keys() & stats.keys():
            grown = stats[name] - before.get(name, 0)
            self._counters[name].labels(model).inc(grown if grown >= 0 else stats[name])
        self._before[model] = stats

    def forget(self, names: Iterable[str]) -> None:
        """Models have gone: their states are shown no longer; what was counted is."""
        for model in names:
            self._before.pop(model, None)
            for gauge in self._gauges.values():
                with contextlib.suppress(KeyError):
                    gauge.remove(model)

    async def watch(self, model: str, events: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[dict[str, Any]]:
        """The same events, of one request."""
        began, last, reason = time.monotonic(), None, "abort"
        try:
            async for event in events:
                if event["event"] == "piece" and event["tokens"]:
                    now = time.monotonic()
                    name = "time_to_first_token_seconds" if last is None else "inter_token_latency_seconds"
                    self._histograms[name].labels(model).observe(now - (began if last is None else last))
                    last = now
                    if "receipt" in event:
                        reason = event["finish_reason"]
                        self._observe(model, event["receipt"])
                elif event["event"] == "ended" and event["error"] is not None:
                    reason = "error"
                    if event["error"]["kind"] == "media":
                        self._media_rejected.labels(event["error"]["limit"] or "unreadable").inc()
                yield event
        finally:
            await events.aclose()
            self._histograms["e2e_request_latency_seconds"].labels(model).observe(time.monotonic() - began)
            self._success.labels(model, reason).inc()

    def _observe(self, model: str, receipt: Mapping[str, Any]) -> None:
        usage, timings = receipt["usage"], receipt["timings"]
        self._counters["prompt_tokens"].labels(model).inc(usage["prompt_tokens"])
        self._counters["generation_tokens"].labels(model).inc(usage["completion_tokens"])
        self._histograms["request_prompt_tokens"].labels(model).observe(usage["prompt_tokens"])
        self._histograms["request_generation_tokens"].labels(model).observe(usage["completion_tokens"])
        for phase, name in PHASES.items():
            self._histograms[name].labels(model).observe(timings[phase])
        if receipt["frames"]:
            self._histograms["frames_selected"].labels(model).observe(len(receipt["frames"]))
