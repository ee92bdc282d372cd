"""One pass over generated samples: through the feature network and into every metric, in bounded memory.

At most two chunks of images and one block of features are in memory. On a GPU a chunk is generated on its own
stream while the features of the previous one are computed, without host synchronization. On a CPU both would
compete for the same cores.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.errors import GanlabError
from ganlab.evaluation.generate import CHUNK, Generate, MicroBatcher, chunk, settle
from ganlab.extractors.base import Extractor
from ganlab.metrics.base import (
    BLOCK,
    EMPTY,
    Accumulator,
    Fakes,
    LinAlgError,
    Metric,
    MetricError,
    Need,
    Protocol,
)
from ganlab.types import Features

Poll = Callable[[], None] | None
Chunk = tuple[int, Tensor, Iterable[Features]]  # first row, samples to keep, features in pieces

NO_VALUE = (MetricError, torch.OutOfMemoryError, LinAlgError)

BATCH_CPU = 100

T = TypeVar("T")


def attempt(function: Callable[[], T], crashes: bool = False) -> T | Exception:
    """The result of ``function``, or the exception that prevented it; with ``crashes``, any exception."""
    try:
        return function()
    except NO_VALUE as e:
        return e.with_traceback(None)
    except GanlabError:  # a signal, or an error for the user to fix
        raise
    except Exception as e:
        if not crashes:
            raise
        return MetricError(f"crashed with {type(e).__name__}: {e}")


def attempt_on_all_ranks(function: Callable[[], T], crashes: bool = False) -> T | Exception:
    """``attempt`` for a collective function: with several ranks only MetricError counts as no value."""
    if collectives.current().size == 1:
        return attempt(function, crashes)
    try:
        return function()
    except MetricError as e:
        return e.with_traceback(None)


def batch_size(protocol: Protocol, device: torch.device) -> int:
    """Images per forward pass of the extractor: the protocol's, or the device's default."""
    return protocol.batch_size or (CHUNK if device.type == "cuda" else BATCH_CPU)


def agree_on_value(function: Callable[[], T]) -> T:
    """Each rank's result of ``function``; all raise MetricError, with the reason, if one of them fails."""
    team = collectives.current()
    if team.size == 1:
        return function()
    with team.agree_on_errors():
        value = attempt(function, crashes=True)
    own = str(value) or type(value).__name__ if isinstance(value, Exception) else ""
    reasons = team.all_gather_object(own)
    if reason := next(filter(None, reasons), ""):
        raise MetricError(reason) from (value if isinstance(value, Exception) else None)
    assert not isinstance(value, Exception)
    return value


class FeaturePass:
    """``extractor`` on ``device``, at most ``batch_size`` images at a time, fewer where memory runs out.

    ``home``: the device of the features, which must support float64. ``warn`` is called for smaller batches.
    """

    def __init__(
        self, extractor: Extractor, batch_size: int, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        self.extractor, self.device = extractor.to(device), device
        self.home = torch.device("cpu") if device.type == "mps" else device
        self._pieces = MicroBatcher(batch_size, warn)

    def __call__(self, images: Tensor, poll: Poll = None) -> Iterator[Features]:
        """Features of ``images``, uint8 (N, 1 or 3, H, W), in pieces; ``poll`` is called before each."""

        def extract(piece: Tensor) -> Features:
            if poll:
                poll()
            piece = piece.to(self.device, non_blocking=True)
            rgb = piece.expand(-1, 3, -1, -1) if piece.shape[1] == 1 else piece
            return Features(*(t.to(self.home) for t in self.extractor(rgb.contiguous())))

        return self._pieces(extract, images)

    def blocks(
        self,
        generate: Generate,
        n: int,
        seed: int,
        poll: Poll = None,
        report: Callable[[int, int], None] = lambda done, total: None,
        *,
        n_samples: int = 0,
        label: int | None = None,
    ) -> Iterator[Fakes]:
        """Features of ``n`` generated samples and the first ``n_samples`` themselves, in blocks of ``BLOCK``.

        The tensors are reused for the next block. With several ranks each generates every ``size``-th chunk,
        and rank 0 gets all blocks, the others none. ``label``: their class; it seeds the samples.
        ``report(done, total)`` counts samples. Raises MetricError if samples are not finite, after the first
        chunk or at the end; then, and for a signal, all ranks raise at the same chunk.
        """
        total, widths = max(n, n_samples), (self.extractor.feature_dim, self.extractor.num_classes)
        pool, logits = (torch.empty(min(BLOCK, n), width, device=self.home) for width in widths)
        samples = EMPTY

        def make(start: int) -> Tensor:
            if poll and start >= n:  # else it is called before every batch of the extractor
                poll()
            counters = (start,) if label is None else (start, label)
            return chunk(generate, start, rng.generator(self.device, seed, "evaluate", *counters))

        chunks = self._chunks if collectives.current().size == 1 else self._chunks_of_ranks
        for start, images, pieces in chunks(make, n, n_samples, poll, generate):
            first, row = start - start % BLOCK, start % BLOCK
            if start == 0:
                samples = images.new_empty(min(BLOCK, n_samples), *images.shape[1:])
            samples[row : row + len(images)] = images
            for features in pieces:
                row_end = row + len(features.pool)
                pool[row:row_end], logits[row:row_end] = features
                row = row_end
                report(first + row, total)
            end = min(start + CHUNK, total)
            report(end, total)
            if end % BLOCK == 0 or end == total:
                features_left, samples_left = max(n - first, 0), max(n_samples - first, 0)
                yield Fakes(pool[:features_left], logits[:features_left], samples[:samples_left])

    def _chunks(
        self, make: Callable[[int], Tensor], n: int, n_samples: int, poll: Poll, generate: Generate
    ) -> Iterator[Chunk]:
        starts = range(0, max(n, n_samples), CHUNK)
        for start, images in zip(starts, prefetch(make, starts, self.device), strict=True):
            kept = images[: max(n_samples - start, 0)].to(self.home)
            yield start, kept, self(images[: max(n - start, 0)], poll)
            if start == 0:
                settle(generate)  # stop early if the generator diverged
        settle(generate)

    def _chunks_of_ranks(
        self, make: Callable[[int], Tensor], n: int, n_samples: int, poll: Poll, generate: Generate
    ) -> Iterator[Chunk]:
        team, total = collectives.current(), max(n, n_samples)
        widths = [self.extractor.feature_dim, self.extractor.num_classes]

        def one_chunk(start: int) -> tuple[Tensor, Tensor]:
            rows, images = torch.zeros(CHUNK, sum(widths), device=self.home), make(start)
            if start < n:
                parts = [torch.cat(f, 1) for f in self(images[: n - start], poll)]
                torch.cat(parts, out=rows[: min(CHUNK, n - start)])
            settle(generate)
            return images.to(self.home).contiguous(), rows

        for first in range(0, total, CHUNK * team.size):
            images, rows = agree_on_value(functools.partial(one_chunk, first + team.rank * CHUNK))
            dtype = images.dtype  # sent as bytes: no backend sends int16
            all_images = team.all_gather(images.view(torch.uint8)) if first < n_samples else []
            all_rows = team.all_gather(rows) if first < n else []
            for i, start in enumerate(range(first, total, CHUNK)[: team.size if team.is_rank_zero else 0]):
                kept = all_images[i].view(dtype)[: max(n_samples - start, 0)] if all_images else EMPTY
                features = all_rows[i][: n - start].split(widths, 1) if start < n else ()
                yield start, kept, [Features(*features)] if features else []


def score_fakes(
    metrics: Mapping[str, Metric[Any]],
    real_for: Callable[[Metric[Any]], Any],
    protocol: Protocol,
    features: FeaturePass,
    generate: Generate,
    poll: Poll,
    report: Callable[[int, int], None] = lambda done, total: None,
    *,
    label: int | None = None,
    crashes: bool = False,
) -> dict[str, dict[str, float] | Exception]:
    """The values of each metric, or the exception that prevented them, in one pass; {} on ranks above 0.

    ``real_for(metric)``: what it compares with; may raise MetricError. ``label``: the class of the samples.
    Memory depends on the protocol alone: KID keeps ``fid_n_fake`` rows, 410 MB for 50,000 of Inception's.
    """

    def n_fake(needs: set[Need]) -> int:
        return max((m.n_fake(protocol) for m in metrics.values() if m.needs & needs), default=0)

    runs: dict[str, Accumulator | Exception] = {}
    for name, metric in metrics.items() if collectives.current().is_rank_zero else ():
        runs[name] = attempt(functools.partial(_start, metric, real_for, protocol), crashes)
    n, n_samples = n_fake({"features", "logits"}), n_fake({"samples"})
    for block in features.blocks(generate, n, protocol.seed, poll, report, n_samples=n_samples, label=label):
        for name, run in runs.items():
            if not isinstance(run, Exception):
                error = attempt(functools.partial(run.add, block), crashes)
                runs[name] = error or run
    return {name: attempt(functools.partial(_value, run), crashes) for name, run in runs.items()}


def _start(metric: Metric[Any], real_for: Callable[[Metric[Any]], Any], protocol: Protocol) -> Accumulator:
    return metric.start(real_for(metric) if "real" in metric.needs else None, protocol)


def _value(run: Accumulator | Exception) -> dict[str, float]:
    if isinstance(run, Exception):
        raise run
    values = run.value()
    if not all(map(math.isfinite, values.values())):
        raise MetricError(f"not finite: {values}")
    return values


def prefetch(make: Callable[[int], Tensor], starts: Iterable[int], device: torch.device) -> Iterator[Tensor]:
    """``make(start)`` for each of ``starts``; on a GPU one step ahead, on a separate stream.

    The caller must queue its work on a tensor on the current stream before it requests the next.
    """
    if device.type != "cuda":
        yield from map(make, starts)
        return
    here, side = torch.cuda.current_stream(device), side_stream(device)
    side.wait_stream(here)  # for G's last update

    def make_on_side(start: int) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return make(start), side.record_event()

    try:
        waiting: tuple[Tensor, torch.cuda.Event] | None = None
        used: torch.cuda.Event | None = None
        for start in starts:
            if used is not None:
                side.wait_event(used)  # two chunks at a time, however far the host is ahead
            following = make_on_side(start)
            if waiting is not None:
                yield from on_stream(waiting, here)
                used = here.record_event()
            waiting = following
        if waiting is not None:
            yield from on_stream(waiting, here)
    finally:
        here.wait_stream(side)  # G may be changed from here on


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for generating ahead; only one, as the allocator never shares memory between streams."""
    return torch.cuda.Stream(device)


def on_stream(
    chunk_and_event: tuple[Tensor, torch.cuda.Event], stream: torch.cuda.Stream
) -> Iterator[Tensor]:
    """Yield a tensor of another stream, safe to use on this one."""
    images, ready = chunk_and_event
    stream.wait_event(ready)
    images.record_stream(stream)
    yield images
