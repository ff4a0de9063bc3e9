"""Continuous batching: which requests take part in which forward pass. One `step`:

    drop        take over requests that were added; take cancelled ones out, and free what they hold
    admit       take waiting requests in, first come, first served, while the memory for keys and values allows
    encode      run the vision encoder over a chunk of pictures, a frame of each encoding request in turn
    prefill     run the language model over a chunk of prompt tokens; a long prompt takes several steps; a request whose
                answers are given has them scored behind its prompt, and ends
    decode      run it over the last token of every request whose prompt is prefilled, in one pass per length bucket

After the last chunk of a prompt, and after each decode pass, a request's next token is sampled from its row of logits.
Chunks are small while other requests wait, so that these get their next token soon.

Whatever goes wrong for one request (a picture that cannot be decoded, too little memory, logits that are NaN, a
progress callback that raises) ends this request only. A pass over several requests that fails is repeated for each of
them alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from longview.engine.decode_batch import DecodeBatch, DecodeBatches, allocated_positions
from longview.engine.evidence import evidence_of
from longview.engine.features import FeatureCache, Prefetcher, details_key, feature_key
from longview.engine.kv_cache import KVCache
from longview.engine.model_runner import ModelRunner, count_pictures
from longview.engine.prefix_cache import CachedPrefix, PrefixCache, PrefixKey, PrefixSource
from longview.engine.request import Request, is_out_of_memory
from longview.engine.sampling import non_finite_logits
from longview.models.base import EncoderInput, Footprint, Model

MAX_PADDED_TOKENS = 2048
"""Tokens of several short prompts in one pass at most, padding included."""

logger = logging.getLogger(__name__)


class Scheduler:
    """The queues of requests, and the caches that they share. Only `add` may be called while another thread steps.

    Args:
        model_id: Part of the keys of `feature_cache`; see `features.model_digest`.
        max_requests: Requests that run at a time.
        max_bytes: Keys and values of all running requests.
        wake: Called, from any thread, when a step may find something to do again.
        batch_class: `StaticDecodeBatch` where decoding is compiled.
    """

    def __init__(
        self,
        model: Model,
        feature_cache: FeatureCache,
        prefix_cache: PrefixCache,
        model_id: str,
        max_requests: int,
        max_bytes: int,
        wake: Callable[[], None],
        batch_class: type[DecodeBatch] = DecodeBatch,
    ) -> None:
        self.model, self.runner = model, ModelRunner(model)
        self.feature_cache, self.prefix_cache, self.model_id = feature_cache, prefix_cache, model_id
        self.max_requests, self.max_bytes, self.wake = max_requests, max_bytes, wake
        self._added: deque[Request] = deque()  # the only field that other threads write to
        self.waiting: deque[Request] = deque()
        self.encoding: deque[Request] = deque()
        self.prefilling: deque[Request] = deque()
        self.decode_batches = DecodeBatches(self.runner.num_layers, batch_class)
        self.kv_cache_bytes = 0
        """Keys and values that the running requests may need."""
        self._footprint: Footprint | None = None
        self._progressed = False  # this step has changed something, so the next one may find work

    def add(self, request: Request) -> None:
        """Queue a request. From any thread."""
        self._added.append(request)

    @property
    def decoding(self) -> list[Request]:
        return [request for batch in self.decode_batches for request in batch.requests]

    @property
    def running(self) -> list[Request]:
        """Requests that have been admitted."""
        return [*self.encoding, *self.prefilling, *self.decoding]

    @property
    def num_running(self) -> int:
        """As `len(running)`, but from any thread."""
        return len(self.encoding) + len(self.prefilling) + sum(len(batch.requests) for batch in self.decode_batches)

    @property
    def num_waiting(self) -> int:
        """Requests that have not been admitted; from any thread."""
        return len(self.waiting) + len(self._added)

    @torch.inference_mode()
    def step(self) -> bool:
        """Run one step. False: there is nothing to do until `wake` is called."""
        self._progressed = False
        self._drop()
        self._admit()
        self._encode()
        self._prefill()
        self._decode()
        return self._progressed

    # ── drop and admit ──

    @torch.inference_mode()
    def drop(self) -> None:
        """Queue the requests that were added since the last step, and take cancelled ones out."""
        self._drop()

    def _drop(self) -> None:
        while self._added:
            self.waiting.append(self._added.popleft())
        for request in (*self.waiting, *self.running):
            if request.finished:  # removing its row failed before
                self._remove_row(request)
            elif request.cancelled:
                self._end(request)

    def abort(self, error: Exception) -> None:
        """End all requests with an error, after a step that was interrupted in the middle."""
        for request in (*self._added, *self.waiting, *self.running):
            if not request.finished:
                request.fail(error)
            request.release()
        for queue in (self._added, self.waiting, self.encoding, self.prefilling):
            queue.clear()
        self.decode_batches.clear()
        self._count_kv_cache_bytes()

    @contextmanager
    def _error_ends(self, request: Request) -> Iterator[None]:
        """Whatever is raised inside ends this request only."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the caller of this request gets it, the other requests go on
            self._end(request, error)

    def _end(self, request: Request, error: Exception | None = None) -> None:
        """Take a request out of all queues, and free what it holds. Raises nothing."""
        self._progressed = True
        if error is not None and not request.finished:
            request.fail(error)
        request.finished = True
        for queue in (self.waiting, self.encoding, self.prefilling):
            if request in queue:
                queue.remove(request)
        request.release()
        if request.error is None and request.keeps_prefix:
            with best_effort("keeping a prefix"):
                self._keep_prefix(request)
        self._remove_row(request)
        self._count_kv_cache_bytes()

    def _remove_row(self, request: Request) -> None:
        with best_effort("removing a row"):  # where it fails, decode passes include the row until the next `drop`
            self.decode_batches.remove(request, zero=request.error is not None)

    def _keep_prefix(self, request: Request) -> None:
        """Put a finished request into the prefix cache, with the part of its answer that is in the KV cache."""
        batch = request.decode_batch
        if batch is not None:
            length = batch.lengths[batch.requests.index(request)]
            request.prefix_key = self._extended_prefix_key(request, length)
            self.prefix_cache.put(request, length)

    def _extended_prefix_key(self, request: Request, length: int) -> PrefixKey:
        """The prefix key of the prompt with tokens of the answer, up to a length in positions."""
        key = request.prefix_key
        tokens = request.token_ids[request.num_prompt_ids :][: length - key.length]
        answer = torch.tensor([tokens], dtype=torch.long, device=key.tokens_or_embeds.device)
        if key.tokens_or_embeds.dim() == 3:
            answer = self.model.get_input_embeddings()(answer).to(key.tokens_or_embeds)
        extended = torch.cat([key.tokens_or_embeds, answer], dim=1)
        return PrefixKey(extended, key.picture_starts, key.picture_keys)

    def _admit(self) -> None:
        for request in list(self.waiting):
            with self._error_ends(request):
                if len(self.running) >= self.max_requests or not self._fits(request):
                    break  # first come, first served: a smaller one does not overtake
                if request.after is not None and not request.after.prefilled:
                    continue
                self._progressed = True
                self.waiting.remove(request)
                self.encoding.append(request)
                self._count_kv_cache_bytes()
                self._start_encoding(request)

    def _fits(self, request: Request) -> bool:
        """Whether there is memory for one request more. A request alone always fits, or it would wait for ever."""
        running = self.running
        return not running or self._kv_cache_bytes([*running, request]) <= self.max_bytes

    def _count_kv_cache_bytes(self) -> None:
        running = self.running
        self.kv_cache_bytes = self._kv_cache_bytes(running) if running else 0

    def _kv_cache_bytes(self, requests: Sequence[Request]) -> int:
        """Keys and values that requests may need when they run concurrently."""
        if self._footprint is None:
            self._footprint = self.model.footprint(self.model.config, self.model.dtype)
        footprint = self._footprint
        positions = allocated_positions([each.max_positions for each in requests])
        # where pictures take positions of the language sequence, `max_positions` counts them
        num_pictures = 0 if footprint.picture_positions else sum(each.inputs.num_pictures for each in requests)
        return positions * footprint.token_bytes + num_pictures * footprint.picture_bytes

    # ── encode ──

    def _start_encoding(self, request: Request) -> None:
        """Look features up in the feature cache, and have the pixels of the other frames prefetched."""
        inputs = request.inputs
        request.feature_keys = [
            feature_key(self.model_id, inputs.media[encoder_input.medium], encoder_input)
            for encoder_input in inputs.encoder_inputs
        ]
        missing: dict[str, EncoderInput] = {}
        for key, encoder_input in zip(request.feature_keys, inputs.encoder_inputs, strict=True):
            if key not in request.features and key not in missing:
                cached = self._cached(request, key)
                if cached is None:
                    missing[key] = encoder_input
                else:
                    request.features[key] = cached
        if missing:
            request.pending_keys = deque(missing)
            request.prefetcher = Prefetcher(inputs, list(missing.values()), self.wake)
        else:
            for medium in inputs.media:
                medium.close()
            self._start_prefill(request)

    def _cached(self, request: Request, key: str) -> Tensor | None:
        """Features of a frame; None also where a request asks for details that are not kept with them."""
        if self._wants_details(request):
            details = self._cached_features(details_key(key))
            if details is None:
                return None
            request.details[key] = details
        return self._cached_features(key)

    def _wants_details(self, request: Request) -> bool:
        return request.picture_positions is not None and bool(self.model.detail)

    def _cached_features(self, key: str) -> Tensor | None:
        with best_effort("reading the feature cache"):
            return self.feature_cache.get(key)
        return None

    def _encode(self) -> None:
        """Collect a chunk of pictures, a frame of each encoding request in turn, and run the vision encoder on it."""
        if not self.encoding:
            return
        limit = self.runner.encode_size.current(others_wait=bool(self.decode_batches or self.prefilling))
        pixels: dict[str, Mapping[str, Tensor]] = {}  # by feature key: two requests may need the same picture
        owners: list[tuple[Request, str]] = []  # with the key of a frame that the request needs
        num_pictures, before = 0, -1
        while len(owners) > before and num_pictures < limit:
            before = len(owners)
            for request in list(self.encoding):
                with self._error_ends(request):  # a medium that cannot be decoded
                    frame = request.take_frame()
                    if frame is not None:
                        key, frame_pixels = frame
                        owners.append((request, key))
                        if key not in pixels:
                            pixels[key] = frame_pixels
                            num_pictures += count_pictures(frame_pixels)
                if num_pictures >= limit:
                    break
        if owners:
            self._progressed = True
            self.encoding.rotate(-1)
            self._encode_frames(pixels, [(request, key) for request, key in owners if not request.finished])

    def _encode_frames(self, pixels: Mapping[str, Mapping[str, Tensor]], owners: Sequence[tuple[Request, str]]) -> None:
        """Encode frames of several requests in one pass; where it fails, those of each request alone.

        Args:
            pixels: By feature key.
            owners: Requests, each with the feature key of a frame that it needs.
        """
        requests = list(dict.fromkeys(request for request, _ in owners))
        wanting = [(request, key) for request, key in owners if self._wants_details(request)]
        features = {key: cached for key in pixels if (cached := self._cached_features(key)) is not None}
        missing = [key for key in pixels if key not in features or any(key == each for _, each in wanting)]
        details: dict[str, Tensor] = {}
        if missing and requests:
            try:
                encoded, found = self.runner.encode([pixels[key] for key in missing], with_details=bool(wanting))
            except Exception as error:  # noqa: BLE001 - it ends only the request whose own frames raise it
                if len(requests) == 1:
                    self._end(requests[0], error)
                    return
                for request in requests:
                    keys = [key for owner, key in owners if owner is request]
                    self._encode_frames({key: pixels[key] for key in keys}, [(request, key) for key in keys])
                return
            details = dict(zip(missing, found, strict=True)) if found else {}
            features |= dict(zip(missing, encoded, strict=True))
            with best_effort("keeping features"):
                for key, frame_features in zip(missing, encoded, strict=True):
                    self.feature_cache.put(key, frame_features)
                for key, of_frame in details.items():
                    self.feature_cache.put(details_key(key), of_frame)
        for request, key in owners:
            request.features[key] = features[key]
        for request, key in wanting:
            request.details[key] = details[key]
        for request in requests:
            with self._error_ends(request):
                request.report_progress()
                if not request.pending_keys:
                    self._start_prefill(request)

    # ── prefill ──

    def _start_prefill(self, request: Request) -> None:
        """All features are there: embed the prompt, and copy its longest prefix from the prefix cache or a request."""
        inputs = request.inputs
        if inputs.num_pictures and not inputs.encoder_inputs:  # a family that encodes all pictures at once
            arguments = self.model.embed_pictures(inputs.load_pixels(), request.context.progress)
        else:
            features = [request.features[key] for key in request.feature_keys]
            arguments = self.model.embed_pictures(
                inputs.text_inputs, features=torch.cat(features) if features else None
            )
        starts = self.model.picture_starts(arguments)
        picture_keys = [
            f"{key}/{crop}"
            for key, encoder_input in zip(request.feature_keys, inputs.encoder_inputs, strict=True)
            for crop in range(encoder_input.num_pictures)
        ]
        sequence = arguments["inputs_embeds"] if "inputs_embeds" in arguments else arguments["input_ids"]
        request.prefix_key = PrefixKey(sequence, starts, picture_keys if starts else [])
        source, request.cached_tokens = self._longest_prefix(request)
        if isinstance(source, CachedPrefix):
            request.shared_prefix = source  # copied when it is prefilled, for several requests at once
        else:  # a request that is decoding may be gone by then
            request.prefill_cache = self._new_cache(request, source)
        request.forward_arguments, request.features = arguments, {}
        request.clock.end_phase("encode")
        self.encoding.remove(request)
        self.prefilling.append(request)

    def _new_cache(self, request: Request, source: PrefixSource | None) -> KVCache:
        """A KV cache for one prompt, with what it shares with a source."""
        cache, shared = KVCache.empty(self.runner.num_layers, request.prefix_key.length + 1), request.cached_tokens
        if source is not None:
            cache.write_row(0, source.key_values(shared), shared)
            cache.side_cache = None if source.side_cache is None else source.side_cache.until(shared)
        return cache

    def _longest_prefix(self, request: Request) -> tuple[PrefixSource | None, int]:
        kept = None if request.after is None else request.after.kept_prefix
        running = [request for request in self.decoding if not request.finished] if kept is None else [kept]
        with best_effort("searching the prefix cache"):
            return self.prefix_cache.find(request.prefix_key, running, among_kept=kept is None)
        return None, 0

    def _prefill(self) -> None:
        """Prefill several short prompts in one pass; or chunks of single prompts, in turn, up to the size of a step."""
        if not self.prefilling:
            return
        self._progressed = True
        others_wait = bool(self.decode_batches or self.encoding or len(self.prefilling) > 1)
        left = self.runner.prefill_size.current(others_wait)
        while self.prefilling and left > 0:
            group = self._short_prompts(left)
            if len(group) > 1 and (done := self._prefill_together(group)):
                left -= done
                continue
            request = self.prefilling.popleft()
            with self._error_ends(request):
                left -= self._prefill_one(request, left)

    def _prefill_one(self, request: Request, limit: int) -> int:
        """Prefill at most so many further positions of a prompt; returns how many."""
        if request.prefill_cache is None:
            request.prefill_cache = self._new_cache(request, request.shared_prefix)
        cache, length = request.prefill_cache, request.prefix_key.length
        begin, end = cache.lengths[0], min(length, cache.lengths[0] + limit)
        chunk = self.model.prefill_chunk(request.forward_arguments, begin, end)
        logits = self.runner.prefill(cache, chunk, end - begin)
        if end < length:
            self.prefilling.append(request)
        else:
            self._prefilled([request], cache, logits)
        return end - begin

    def _short_prompts(self, limit: int) -> list[Request]:
        """The first in the queue, and those behind it of which as many positions are in the KV cache, none or a prefix
        that they share, as far as their rests fit into one pass."""
        group: list[Request] = []
        longest = total = begin = 0
        for request in self.prefilling:
            begun = request.num_prefilled
            begin = begin if group else begun
            if begun != begin or (group and bool(request.answers) != bool(group[0].answers)):
                continue
            rest = request.prefix_key.length - begun
            longest, total = max(longest, rest), total + rest
            if (len(group) + 1) * longest > min(limit, MAX_PADDED_TOKENS, 2 * total):
                break
            group.append(request)
        return group

    def _prefill_together(self, group: Sequence[Request]) -> int:
        """Prefill the rests of prompts in one pass; returns its positions. 0: it failed, and nothing has changed."""
        try:
            rows = self._joined_rows(group)
            begin, ends = rows.longest, [request.prefix_key.length for request in group]
            chunks = [
                self.model.prefill_chunk(request.forward_arguments, begin, end)
                for request, end in zip(group, ends, strict=True)
            ]
            counts = [end - begin for end in ends]
            logits = self.runner.prefill(rows, self.model.collate_chunks(chunks), *counts)
        except Exception:  # noqa: BLE001 - whose error it is shows when each is prefilled alone
            return 0
        for request in group:
            self.prefilling.remove(request)
        self._prefilled(group, rows, logits)
        return len(group) * max(counts)

    def _prefilled(self, group: Sequence[Request], rows: KVCache, logits: Tensor) -> None:
        """The prompts of a group are in the rows: score its answers, or sample its first tokens, by logits (B, V)."""
        if group[0].answers:
            self._score(group, rows, logits)
            return
        for row, request in enumerate(group):
            with self._error_ends(request):
                self._start_decoding(request, rows, row)
        self._sample(group, logits)

    def _joined_rows(self, group: Sequence[Request]) -> KVCache:
        """What is in the KV caches of requests, as rows of one."""
        longest = max(request.prefix_key.length for request in group)
        behind = max(1, *(sum(map(len, request.answers)) for request in group))
        rows = KVCache.empty(self.runner.num_layers, longest + behind, len(group))
        begin = group[0].num_prefilled
        if not begin:
            return rows
        shared = [request.shared_prefix for request in group if request.prefill_cache is None]
        if len(shared) == len(group) and shared[0] is not None and all(each is shared[0] for each in shared):
            rows.write_rows(shared[0].key_values(begin), begin)
        else:
            for row, request in enumerate(group):
                if request.prefill_cache is not None:
                    rows.write_row(row, request.prefill_cache.key_values(0, begin), begin)
                elif request.shared_prefix is not None:
                    rows.write_row(row, request.shared_prefix.key_values(begin), begin)
        side_caches = [request.prefilled_side_cache(begin) for request in group]
        first = next((each for each in side_caches if each is not None), None)
        rows.side_cache = None if first is None else type(first).joined(side_caches)
        return rows

    def _start_decoding(self, request: Request, rows: KVCache, row: int = 0) -> None:
        """Copy a prefilled row into a decode batch."""
        self.decode_batches.add(request, rows, row)
        request.release()

    # ── score ──

    def _score(self, group: Sequence[Request], rows: KVCache, logits: Tensor) -> None:
        """Score the answers of requests behind their prompts, and end them; where that fails, each alone."""
        try:
            scores = self.runner.score(rows, [request.answers for request in group], logits)
        except Exception as error:  # noqa: BLE001 - it ends only the request whose own answers raise it
            if len(group) == 1:
                self._end(group[0], error)
                return
            for row, request in enumerate(group):
                with self._error_ends(request):
                    self._score([request], rows.alone(row), logits[row : row + 1])
            return
        for row, (request, of_answers) in enumerate(zip(group, scores, strict=True)):
            with self._error_ends(request):
                if not all(map(math.isfinite, of_answers)):
                    raise non_finite_logits()
                if request.keeps_prefix:
                    request.kept_prefix = CachedPrefix.of_row(request.prefix_key, rows, row)
                    with best_effort("keeping a prefix"):
                        self.prefix_cache.put(request.kept_prefix, request.prefix_key.length)
                request.end_scored(of_answers)
                self._end(request)

    # ── decode ──

    def _decode(self) -> None:
        if len(self.decode_batches) > 1:
            with best_effort("merging decode batches"):  # apart they cost a pass each
                self.decode_batches.merge()
        for batch in self.decode_batches:
            self._progressed = True
            self._decode_batch(batch)

    def _decode_batch(self, batch: DecodeBatch) -> None:
        """One pass over a decode batch; where it fails, one over each of its rows alone."""
        requests = list(batch.requests)
        try:
            logits = self.runner.decode(batch, [request.token_ids[-1] for request in requests])
        except Exception as error:  # noqa: BLE001 - it ends only the request whose own row raises it
            if len(requests) == 1:
                self._end(requests[0], error)
            else:
                self._decode_apart(requests)
            return
        self._sample(requests, logits)

    def _decode_apart(self, requests: Sequence[Request]) -> None:
        """Split a batch into batches of one row, and make a pass over each. The next step merges them."""
        for request in reversed(requests[1:]):
            try:
                self.decode_batches.split_off(request)
            except Exception as error:  # noqa: BLE001 - it ends this request, which makes room for the others
                self._end(request, error)
                return
        for request in requests:
            if request.decode_batch is not None:
                self._decode_batch(request.decode_batch)

    # ── sample ──

    def _sample(self, requests: Sequence[Request], logits: Tensor) -> None:
        """Append a token to each request that has not finished, from its row of logits (B, V)."""
        try:
            highest, most_likely = logits.max(-1)
            finite, argmax = torch.isfinite(highest).tolist(), most_likely.tolist()
        except Exception as error:  # noqa: BLE001 - it ends only the request whose own row raises it
            if len(requests) == 1:
                self._end(requests[0], error)
            else:
                for row, request in enumerate(requests):
                    self._sample([request], logits[row : row + 1])
            return
        for row, request in enumerate(requests):
            if request.finished:
                continue
            try:
                if not finite[row]:
                    raise non_finite_logits()
                sampler = request.sampler
                if sampler.only_argmax:
                    request.accept(argmax[row])
                else:
                    token = sampler(logits[row], request.token_ids, request.num_generated)
                    request.accept(token, sampler.logprob(logits[row], token))
                if request.answered:
                    if not request.finished:
                        self._add_evidence(request)
                    self._end(request)
            except Exception as error:  # noqa: BLE001 - it ends only this request
                self._end(request, error)

    # ── evidence ──

    def _add_evidence(self, request: Request) -> None:
        """Finish an answer with what its tokens attended to: a pass over them behind the prompt, in the row's place."""
        began, batch, tokens = time.perf_counter(), request.decode_batch, request.answer_ids
        assert batch is not None
        assert request.picture_positions is not None
        row, begin = batch.requests.index(request), request.prefix_key.length - 1
        # the query that chose a token is of the token before it
        prefix_key = self._extended_prefix_key(request, begin + max(1, len(tokens)))
        sequence = prefix_key.tokens_or_embeds[:, begin : begin + len(tokens)]
        keys = request.max_positions + request.inputs.visual_tokens
        with batch.rewound(row, begin) as view:
            view.side_cache = batch.side_cache_of(row)
            found = self.runner.evidence(view, sequence, request.picture_positions, keys) if tokens else ()
            evidence = evidence_of(request, self.model.signal, self.model.detail, found)
        request.end_with(replace(evidence, seconds=time.perf_counter() - began))


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Run what no request depends on. It may fail: for lack of memory silently, otherwise with a warning in the log."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            logger.warning("%s failed", what, exc_info=True)
