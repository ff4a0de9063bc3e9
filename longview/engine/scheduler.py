"""Who runs in this step. One `step` is a turn of the wheel, and everybody gets something out of each:

    drop        whoever has been cancelled leaves, with all that it held
    admit       whoever waits enters, while there is memory
    look        a few pictures are encoded, those of all who wait for some in turn
    read        a few words are read (prefilled): a long prompt is cut, so that nobody waits behind a film
    answer      everybody who has been read gets a token, in one pass a decode batch

A request that fails fails alone: a picture that cannot be decoded, a prefill for which memory is short, scores that are
no numbers. Of a pass over several rows that fails, each row is tried alone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longview.engine.features import FeatureCache, Prefetcher, key_of
from longview.engine.kv_cache import SMALLEST, DecodeBatch, KVCache, empty_rows, length_bucket
from longview.engine.prefix_cache import PrefixCache, PrefixKey
from longview.engine.request import Request
from longview.engine.sampling import not_numbers
from longview.errors import RequestError
from longview.models.base import EncoderInput

PATIENCE = 0.25
"""Seconds that a piece of looking or reading may take while others are being answered."""
MOST_WORDS = 2048
"""Words read at a time, at most."""
TOGETHER = 2048
"""Words of several short prompts read side by side, at most, padding included."""


@dataclass
class ChunkSize:
    """How much of something can be done in a given time, by what was measured last."""

    most: int
    seconds_each: float = 0.0

    def amount(self, hurry: bool) -> int:
        """How much to do now; in a hurry, what takes about `PATIENCE`."""
        if not hurry or not self.seconds_each:
            return self.most
        return max(1, min(self.most, int(PATIENCE / self.seconds_each)))

    def took(self, seconds: float, amount: int) -> None:
        """So much was done in so long; recent measurements count more."""
        self.seconds_each += (seconds / amount - self.seconds_each) * (0.3 if self.seconds_each else 1.0)


class Scheduler:
    """The requests under way, and the state they share. Not to be stepped by two threads at once.

    Args:
        most: Requests under way at a time.
        memory: Bytes of keys and values of all requests together.
        decode_batch: What those who answer stand on.
        wake: Called, from any thread, when there may be something to do again.
    """

    def __init__(
        self,
        model: Any,
        features: FeatureCache,
        prefixes: PrefixCache,
        model_id: str,
        most: int,
        memory: int,
        wake: Callable[[], None],
        decode_batch: type[DecodeBatch] = DecodeBatch,
    ) -> None:
        self._batch_class = decode_batch
        self.model, self.features, self.prefixes, self.model_id = model, features, prefixes, model_id
        self.most, self.memory, self.wake = most, memory, wake
        self._entrance: deque[Request] = deque()  # the one thing that other threads may touch
        self.waiting: deque[Request] = deque()
        self.looking: deque[Request] = deque()
        self.reading: deque[Request] = deque()
        self.decode_batches: list[DecodeBatch] = []
        self.num_layers = model.language_model.config.num_hidden_layers
        self._pictures = ChunkSize(model.config.vision_batch_size)
        self._words = ChunkSize(MOST_WORDS)
        self._footprint: Any = None

    def add(self, request: Request) -> None:
        """Let a request in, as soon as there is room. From any thread."""
        self._entrance.append(request)

    @property
    def answering(self) -> list[Request]:
        return [request for decode_batch in self.decode_batches for request in decode_batch.rows]

    @property
    def under_way(self) -> list[Request]:
        return [*self.looking, *self.reading, *self.answering]

    @torch.inference_mode()
    def step(self) -> bool:
        """One turn of the wheel. False: nothing could be done until somebody calls `wake`."""
        self.drop()
        moved = self._admit()
        moved |= self._look()
        moved |= self._read()
        moved |= self._answer()
        return moved

    # ── coming and going ──

    def abandon(self, error: Exception) -> None:
        """The wheel has broken in the middle of a turn: everybody ends with this error, and it starts anew."""
        for request in (*self._entrance, *self.waiting, *self.under_way):
            request.fail(error)
            if request.prefetcher is not None:
                request.prefetcher.stop()
        for queue in (self._entrance, self.waiting, self.looking, self.reading):
            queue.clear()
        self.decode_batches = []

    @torch.inference_mode()
    def drop(self) -> None:
        """Whoever has been cancelled leaves."""
        while self._entrance:
            self.waiting.append(self._entrance.popleft())
        for request in (*self.waiting, *self.under_way):
            if request.cancelled:
                self._leave(request)

    def _leave(self, request: Request, error: Exception | None = None) -> None:
        """A request ends, and holds nothing any more; what it has read may serve others."""
        if error is not None:
            request.fail(explained(error, request))
        request.ended = True
        if request.prefetcher is not None:
            request.prefetcher.stop()
        if request.decode_batch is not None:
            decode_batch = request.decode_batch
            if error is None:
                length = decode_batch.lengths[decode_batch.rows.index(request)]
                self._extend_prefix_key(request, length)
                self.prefixes.put(request, length)
            decode_batch.remove(request, wipe=error is not None)
            self.decode_batches = [decode_batch for decode_batch in self.decode_batches if decode_batch.rows]
        for queue in (self.waiting, self.looking, self.reading):
            if request in queue:
                queue.remove(request)
        request.prefetcher = request.row = request.decode_batch = None
        request.features, request.arguments, request.due = {}, {}, deque()

    def _extend_prefix_key(self, request: Request, length: int) -> None:
        """Add what was answered, as far as it has been read again, to what the row was computed from."""
        prompt = request.prompt
        tokens = request.history[request.prompt_words :][: length - prompt.length]
        words = torch.tensor([tokens], dtype=torch.long, device=prompt.words.device)
        if prompt.words.dim() == 3:
            words = self.model.get_input_embeddings()(words).to(prompt.words)
        request.prompt = PrefixKey(torch.cat([prompt.words, words], dim=1), prompt.starts, prompt.pictures)

    def _admit(self) -> bool:
        moved = False
        for request in list(self.waiting):
            if len(self.under_way) >= self.most or not self._fits(request):
                break  # first come, first served
            if request.after is not None and not request.after.read:
                continue
            self.waiting.remove(request)
            self.looking.append(request)
            moved = True
            try:
                self._begin_to_look(request)
            except Exception as error:  # fails alone
                self._leave(request, error)
        return moved

    def _fits(self, request: Request) -> bool:
        """Whether there is memory for one more. Nobody is turned away for ever: alone, everybody fits."""
        others = self.under_way
        if not others:
            return True
        if self._footprint is None:
            self._footprint = type(self.model).footprint(self.model.config, self.model.dtype)
        kinds: dict[int, list[int]] = {}
        pictures = 0
        for each in (*others, request):
            kinds.setdefault(length_bucket(each.positions), []).append(each.positions)
            # where pictures stand in the sequence, they are among its positions
            outside = not self._footprint.picture_positions
            pictures += each.inputs.num_pictures * (self._footprint.picture_bytes if outside else 0)
        slots = sum(_doubled(len(rows), 1) * _doubled(max(rows), SMALLEST) for rows in kinds.values())
        return slots * self._footprint.token_bytes + pictures <= self.memory

    # ── pictures ──

    def _begin_to_look(self, request: Request) -> None:
        inputs = request.inputs
        request.keys = [
            key_of(self.model_id, inputs.media[encoder_input.medium], encoder_input)
            for encoder_input in inputs.encoder_inputs
        ]
        missing: dict[str, EncoderInput] = {}
        for key, encoder_input in zip(request.keys, inputs.encoder_inputs, strict=True):
            if key in request.features or key in missing:
                continue
            found = self.features.get(key)
            if found is None:
                missing[key] = encoder_input
            else:
                request.features[key] = found
        if missing:
            request.due = deque(missing)
            request.prefetcher = Prefetcher(inputs, list(missing.values()), self.wake)
        else:
            for medium in inputs.media:
                medium.close()
            self._seen(request)

    def _look(self) -> bool:
        """Encode a few pictures: one frame of each request in turn, until there are enough."""
        limit = self._pictures.amount(hurry=bool(self.decode_batches or self.reading))
        chunk: dict[str, Mapping[str, Tensor]] = {}
        owners: list[tuple[Request, str]] = []
        count, moved, taken = 0, False, True
        while taken and count < limit:
            taken = False
            for request in list(self.looking):
                try:
                    shown = request.prefetcher.take() if request.prefetcher is not None else None
                except Exception as error:  # a medium that cannot be decoded, or a picture that cannot be shown
                    self._leave(request, error)
                    shown, moved = None, True
                if shown is not None:
                    key = request.due.popleft()
                    owners.append((request, key))
                    if key not in chunk:  # two requests may have the same picture
                        chunk[key] = shown[1]
                        count += shown[0].num_pictures
                    taken = moved = True
                if count >= limit:
                    break
        if owners:
            self.looking.rotate(-1)
            self._encode(chunk, [(request, key) for request, key in owners if not request.ended])
        return moved

    def _encode(self, chunk: Mapping[str, Mapping[str, Tensor]], owners: Sequence[tuple[Request, str]]) -> None:
        """Encode frames of several requests together; where that fails, those of each request alone."""
        encoded = {key: found for key in chunk if (found := self.features.get(key)) is not None}
        left = [key for key in chunk if key not in encoded]
        requests = list(dict.fromkeys(request for request, _ in owners))
        if left and requests:
            names, began = chunk[left[0]], time.perf_counter()
            try:
                features = self.model.encode(**{name: torch.cat([chunk[key][name] for key in left]) for name in names})
            except Exception as error:
                if len(requests) == 1:
                    self._leave(requests[0], error)
                    return
                for alone in requests:
                    mine = [key for request, key in owners if request is alone]
                    self._encode({key: chunk[key] for key in mine}, [(alone, key) for key in mine])
                return
            self._pictures.took(time.perf_counter() - began, len(features))
            parts = features.split([len(next(iter(chunk[key].values()))) for key in left])
            for key, part in zip(left, parts, strict=True):
                encoded[key] = part.clone() if len(left) > 1 else part  # or one would keep the memory of all
                self.features.put(key, encoded[key])
        for request, key in owners:
            request.features[key] = encoded[key]
        for request in requests:
            inputs, progress = request.inputs, request.settings.progress
            if progress is not None:
                there = zip(request.keys, inputs.encoder_inputs, strict=True)
                done = sum(encoder_input.num_pictures for key, encoder_input in there if key in request.features)
                progress(done, inputs.num_pictures, "looking at pictures")
            if not request.due:
                self._seen(request)

    def _seen(self, request: Request) -> None:
        """All features are there: the prompt can be read, from where another conversation has been read already."""
        try:
            inputs = request.inputs
            if inputs.num_pictures and not inputs.encoder_inputs:  # a family that shows its pictures all at once
                request.arguments = self.model.embed_pictures(inputs.load_pixels(), request.settings.progress)
            else:
                features = [request.features[key] for key in request.keys]
                together = torch.cat(features) if features else None
                request.arguments = self.model.embed_pictures(inputs.text_inputs, features=together)
            arguments = request.arguments
            words = arguments["inputs_embeds"] if "inputs_embeds" in arguments else arguments["input_ids"]
            starts = self.model.picture_starts(arguments)
            names = [
                f"{key}/{crop}"
                for key, encoder_input in zip(request.keys, inputs.encoder_inputs, strict=True)
                for crop in range(encoder_input.num_pictures)
            ]
            request.prompt = PrefixKey(words, starts, names if starts else [])
            request.row = empty_rows(self.num_layers, request.prompt.length + 1)
            source, shared = self.prefixes.find(request.prompt, self.answering)
            if source is not None:
                request.row.put(0, source.pairs(shared), shared)
                request.row.side_cache = None if source.side_cache is None else source.side_cache.until(shared)
                request.cached_tokens = shared
        except Exception as error:  # fails alone
            self._leave(request, error)
            return
        request.features = {}
        request.clock.lap("encode")
        self.looking.remove(request)
        self.reading.append(request)

    # ── words ──

    def _read(self) -> bool:
        """Read a few words: of several short prompts, or a part of a long one, which then goes to the end."""
        left = self._words.amount(hurry=bool(self.decode_batches or self.looking or len(self.reading) > 1))
        if not self.reading:
            return False
        group = self._beginners(left)
        if len(group) > 1 and self._read_together(group):
            return True
        while self.reading and left > 0:
            request = self.reading.popleft()
            row, length = request.row, request.prompt.length
            assert row is not None
            begin = row.lengths[0]
            end = min(length, begin + left)
            left -= end - begin
            try:
                logits = self._pass(row, self.model.prefill_chunk(request.arguments, begin, end), end - begin)
                if end < length:
                    self.reading.append(request)
                    continue
                self._join_decode_batch(request, row)
                self._choose([request], logits)
            except Exception as error:  # fails alone
                self._leave(request, error)
        return True

    def _pass(self, rows: KVCache, words: Mapping[str, Any], *counts: int) -> Tensor:
        """Read the next words of rows, so many of each; logits (B, V) after the last of them."""
        began, device = time.perf_counter(), self.model.device
        begin, last = rows.lengths[0], torch.tensor([count - 1 for count in counts], device=device)
        places, which = last.unique(return_inverse=True)
        output = self.model(
            **words,
            position_ids=torch.arange(begin, begin + max(counts), device=device).expand(len(counts), -1),
            past_key_values=rows,
            use_cache=True,
            logits_to_keep=places,
        )
        rows.advance(*counts)
        self._words.took(time.perf_counter() - began, len(counts) * max(counts))
        return output.logits[torch.arange(len(counts), device=device), which]

    def _beginners(self, most: int) -> list[Request]:
        """Requests whose whole prompts can be read in one pass, side by side: short ones of which nothing is known."""
        group: list[Request] = []
        longest = words = 0
        for request in self.reading:
            longest, words = max(longest, request.prompt.length), words + request.prompt.length
            padded = (len(group) + 1) * longest
            begun = request.row is None or request.row.lengths != [0]
            if begun or padded > min(most, TOGETHER, 2 * words):
                break
            group.append(request)
        return group

    def _read_together(self, group: Sequence[Request]) -> bool:
        """Read whole prompts in one pass. False: it failed, and each is to be tried alone."""
        counts = [request.prompt.length for request in group]
        try:
            rows = empty_rows(self.num_layers, max(counts) + 1, len(group))
            portions = [self.model.prefill_chunk(request.arguments, 0, request.prompt.length) for request in group]
            logits = self._pass(rows, self.model.collate_chunks(portions), *counts)
        except Exception:  # whose fault it is, reading each alone will tell
            return False
        fine: list[int] = []
        for number, request in enumerate(group):
            self.reading.remove(request)
            try:
                self._join_decode_batch(request, rows, number)
                fine.append(number)
            except Exception as error:  # fails alone
                self._leave(request, error)
        self._choose([group[number] for number in fine], logits[fine])
        return True

    def _join_decode_batch(self, request: Request, rows: KVCache, number: int = 0) -> None:
        """Place a row that has been read beside those that answer."""
        kind = length_bucket(request.positions)
        decode_batch = next((decode_batch for decode_batch in self.decode_batches if decode_batch.kind == kind), None)
        if decode_batch is None:
            decode_batch = self._batch_class(self.num_layers, kind)
            self.decode_batches.append(decode_batch)
        decode_batch.add(request, rows, number)
        request.decode_batch, request.row, request.arguments = decode_batch, None, {}

    def _answer(self) -> bool:
        """A token for everybody."""
        kinds = {decode_batch.kind for decode_batch in self.decode_batches}
        if len(kinds) < len(self.decode_batches):
            self._gather()
        decode_batches = list(self.decode_batches)
        for decode_batch in decode_batches:
            self._decode(decode_batch)
        return bool(decode_batches)

    def _decode(self, decode_batch: DecodeBatch) -> None:
        requests = list(decode_batch.rows)
        device = self.model.device
        try:
            decode_batch.make_room(decode_batch.longest + 1, len(requests))
            idle = [0] * (decode_batch.width - len(requests))
            words = [request.history[-1] for request in requests] + idle
            output = self.model(
                input_ids=torch.tensor(words, device=device)[:, None],
                attention_mask=self._mask(decode_batch, device),
                position_ids=torch.tensor(decode_batch.lengths + idle, device=device)[:, None],
                past_key_values=decode_batch,
                use_cache=True,
                logits_to_keep=1,
            )
        except Exception as error:
            if len(requests) == 1:
                self._leave(requests[0], error)
            else:
                self._part(decode_batch)
            return
        decode_batch.advance(1)
        self._choose(requests, output.logits[:, -1])

    def _part(self, decode_batch: DecodeBatch) -> None:
        """A pass over several rows has failed: try each alone, so that only those who fail alone fail."""
        for number, request in enumerate(list(decode_batch.rows)):
            alone = self._batch_class(self.num_layers, decode_batch.kind)
            try:
                alone.add(request, decode_batch, number)
            except Exception as error:  # not even memory to move: whoever comes first makes room for the rest
                self._leave(request, error)
                return
            request.decode_batch = alone
            self.decode_batches.append(alone)
        self.decode_batches.remove(decode_batch)
        for request in list(decode_batch.rows):
            assert request.decode_batch is not None
            self._decode(request.decode_batch)

    def _gather(self) -> None:
        """Those who were tried alone, and did not fail, stand together again."""
        first: dict[int, DecodeBatch] = {}
        for decode_batch in self.decode_batches:
            home = first.setdefault(decode_batch.kind, decode_batch)
            for number, request in enumerate(decode_batch.rows if decode_batch is not home else ()):
                home.add(request, decode_batch, number)
                request.decode_batch = home
        self.decode_batches = list(first.values())

    def _mask(self, decode_batch: DecodeBatch, device: torch.device) -> Tensor | None:
        """The mask of a decoding pass, as the model's attention wants it."""
        seen = decode_batch.mask(device)
        if seen is None:
            return None
        attention = self.model.config._attn_implementation
        if attention.startswith("flash"):
            return seen[:, 0, 0].long()
        if attention == "eager":
            floor = torch.finfo(self.model.dtype).min
            return torch.zeros(seen.shape, dtype=self.model.dtype, device=device).masked_fill_(~seen, floor)
        return seen

    def _choose(self, requests: Sequence[Request], logits: Tensor) -> None:
        """The next token of each request, from its row of logits (B, V)."""
        best, tokens = logits.max(-1)
        fine, likeliest = torch.isfinite(best).tolist(), tokens.tolist()
        for number, request in enumerate(requests):
            sampler = request.sampler
            try:
                if not fine[number]:
                    raise not_numbers()
                if sampler.plain:
                    request.accept(likeliest[number])
                else:
                    row = logits[number]
                    token = sampler(row, request.history, request.answered)
                    tells = sampler.params.logprobs is not None
                    request.accept(token, sampler.logprob(row, token) if tells else None)
            except Exception as error:  # fails alone
                self._leave(request, error)
                continue
            if request.ended:
                self._leave(request)


def _doubled(count: int, smallest: int) -> int:
    """The least size a table that grows by doubling has for so many."""
    return max(smallest, 1 << math.ceil(math.log2(max(1, count))))


def explained(error: Exception, request: Request) -> Exception:
    """What a user can do about an error, where it is one of memory."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        inputs = request.inputs
        return RequestError(
            f"there is not enough memory for {inputs.num_pictures} pictures and {inputs.length} tokens; look at fewer "
            "frames (--frames), shorten the conversation, or choose a smaller --dtype"
        )
    return error
