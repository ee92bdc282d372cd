"""One pass of generated images through the feature network, in bounded memory.

At most two chunks of images and one block of features are in memory. On a GPU a chunk is generated on its own
stream while the features of the previous one are computed, without host synchronization. On a CPU both would
compete for the same cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.errors import GanlabError
from ganlab.evaluation.generate import CHUNK, Generate, MicroBatcher, chunk, settle
from ganlab.extractors.base import Extractor
from ganlab.metrics.base import BLOCK, LinAlgError, Metric, MetricError, Protocol, Running
from ganlab.types import Features

Poll = Callable[[], None] | None

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
        report: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Features]:
        """Features of ``n`` generated images, ``BLOCK`` at a time; the tensors are reused for the next block.

        ``report`` is called with the number done. Raises MetricError if images are not finite, after the
        first chunk or at the end.
        """
        size, dim, classes = min(BLOCK, n), self.extractor.feature_dim, self.extractor.num_classes
        block = Features(*(torch.empty(size, width, device=self.home) for width in (dim, classes)))
        done = 0

        def make(start: int) -> Tensor:
            return chunk(generate, start, rng.generator(self.device, seed, "evaluate", start))

        chunks = self._chunks if collectives.current().size == 1 else self._chunks_of_ranks
        for pieces in chunks(make, n, poll, generate):
            for features in pieces:
                while len(features.pool):
                    at = done % size
                    taken = min(size - at, len(features.pool))
                    for whole, part in zip(block, features, strict=True):
                        whole[at : at + taken] = part[:taken]
                    features = Features(features.pool[taken:], features.logits[taken:])
                    done += taken
                    if done % size == 0:
                        yield block
                report(done)
        if rest := done % size:
            yield Features(block.pool[:rest], block.logits[:rest])

    def _chunks(
        self, make: Callable[[int], Tensor], n: int, poll: Poll, generate: Generate
    ) -> Iterator[Iterator[Features]]:
        """Features of each chunk of ``n`` images, in pieces."""
        for i, images in enumerate(prefetch(make, range(0, n, CHUNK), self.device)):
            yield self(images[: n - i * CHUNK], poll)
            if i == 0:
                settle(generate)  # stop early if the generator diverged
        settle(generate)

    def _chunks_of_ranks(
        self, make: Callable[[int], Tensor], n: int, poll: Poll, generate: Generate
    ) -> Iterator[list[Features]]:
        """The same on rank 0, in the same order; each rank generates every ``size``-th chunk.

        Other ranks get nothing. All raise what one raises: a signal stops them at the same chunk.
        """
        team, widths = collectives.current(), [self.extractor.feature_dim, self.extractor.num_classes]

        def features_of_chunk(start: int) -> Tensor:
            rows = torch.zeros(CHUNK, sum(widths), device=self.home)
            if start < n:
                parts = [torch.cat(f, 1) for f in self(make(start)[: n - start], poll)]
                torch.cat(parts, out=rows[: min(CHUNK, n - start)])
                settle(generate)
            return rows

        for first in range(0, n, CHUNK * team.size):
            rows = agree_on_value(functools.partial(features_of_chunk, first + team.rank * CHUNK))
            all_rows = team.all_gather(rows)
            if team.is_rank_zero:
                sizes = [min(CHUNK, n - start) for start in range(first, n, CHUNK)]
                yield from (
                    [Features(*rows[:k].split(widths, 1))] for rows, k in zip(all_rows, sizes, strict=False)
                )


@dataclass
class FakeFeatures:
    """What the metrics need of the generated images after the pass.

    running: by metric, its running sums or the exception that ended them. kept: the first rows of the
    features, as many as the metrics without a running form need.
    """

    running: dict[str, Running | Exception]
    kept: Features


def pass_over_fakes(
    metrics: Mapping[str, Metric],
    protocol: Protocol,
    features: FeaturePass,
    generate: Generate,
    poll: Poll,
    report: Callable[[str, int, int], None],
) -> FakeFeatures:
    """Feed as many generated images as any metric needs to all of them, block by block.

    Memory depends on the protocol alone: KID keeps ``fid_n_fake`` rows, 410 MB for 50,000 of Inception's.
    """
    n = max(metric.n_fake(protocol) for metric in metrics.values())
    running = {name: metric.running(protocol) for name, metric in metrics.items()}
    keepers = [metrics[name] for name, run in running.items() if run is None]

    def kept(part: str, width: int) -> Tensor:
        rows = max((m.n_fake(protocol) for m in keepers if part in m.keeps), default=0)
        return torch.empty(rows, width, device=features.home)

    extractor, done = features.extractor, 0
    fake = FakeFeatures(
        {name: run for name, run in running.items() if run is not None},
        Features(kept("pool", extractor.feature_dim), kept("logits", extractor.num_classes)),
    )
    for block in features.blocks(generate, n, protocol.seed, poll, lambda done: report("fake", done, n)):
        for side, new in zip(fake.kept, block, strict=True):
            side[done : done + len(new)] = new[: max(len(side) - done, 0)]
        done += len(block.pool)
        for name, run in fake.running.items():
            if not isinstance(run, Exception):
                failed = attempt(functools.partial(run.add, block))
                fake.running[name] = failed if isinstance(failed, Exception) else run
    return fake


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
