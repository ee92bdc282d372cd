"""One pass of generated images through the feature network, in bounded memory.

Of the images two chunks are alive at a time, of the features one block, whatever their number. On a GPU a
chunk is made on a stream of its own while the features of the one before are computed, and the host waits for
neither. On a CPU both would want the same cores.
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
    """What ``function`` returns, or why there is no value: with ``crashes`` whatever goes wrong."""
    try:
        return function()
    except NO_VALUE as e:
        return e.with_traceback(None)
    except GanlabError:  # a signal's, or the user's to mend
        raise
    except Exception as e:
        if not crashes:
            raise
        return MetricError(f"it crashed, {type(e).__name__}: {e}")


def attempt_on_all_ranks(function: Callable[[], T], crashes: bool = False) -> T | Exception:
    """The same of what many ranks do together: no value is what they agreed on, any other failure is one."""
    if collectives.current().size == 1:
        return attempt(function, crashes)
    try:
        return function()
    except MetricError as e:
        return e.with_traceback(None)


def batch_size(protocol: Protocol, device: torch.device) -> int:
    """Images per forward pass of the extractor: what the protocol says, else what suits the device."""
    return protocol.batch_size or (CHUNK if device.type == "cuda" else BATCH_CPU)


def agree_on_value(function: Callable[[], T]) -> T:
    """What ``function`` returns on each rank. All raise MetricError if one has no value, with its reason."""
    team = collectives.current()
    if team.size == 1:
        return function()
    with team.agree_on_errors():
        found = attempt(function, crashes=True)
    reasons = team.all_gather_text(str(found) or type(found).__name__ if isinstance(found, Exception) else "")
    if reason := next(filter(None, reasons), ""):
        raise MetricError(reason) from (found if isinstance(found, Exception) else None)
    assert not isinstance(found, Exception)
    return found


class FeaturePass:
    """``extractor`` on ``device``, at most ``batch_size`` images at a time, fewer where memory runs out.

    ``home``: where features are wanted; it must know float64. ``warn`` hears of smaller batches.
    """

    def __init__(
        self, extractor: Extractor, batch_size: int, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        self.extractor, self.device = extractor.to(device), device
        self.home = torch.device("cpu") if device.type == "mps" else device
        self._pieces = MicroBatcher(batch_size, warn)

    def __call__(self, images: Tensor, poll: Poll = None) -> Iterator[Features]:
        """Features of ``images``, uint8 (N, 1 or 3, H, W), piece by piece; ``poll`` is called before each."""

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
        tell: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Features]:
        """Features of ``n`` generated images, ``BLOCK`` at a time; the tensors are used again for the next.

        ``tell`` hears how many are done. Raises MetricError if images are not finite: after the first chunk,
        else at the end.
        """
        size, dim, classes = min(BLOCK, n), self.extractor.feature_dim, self.extractor.num_classes
        block = Features(*(torch.empty(size, width, device=self.home) for width in (dim, classes)))
        done = 0

        def make(start: int) -> Tensor:
            return chunk(generate, start, rng.generator(self.device, seed, "evaluate", start))

        chunks = self._chunks if collectives.current().size == 1 else self._chunks_of_ranks
        for pieces in chunks(make, n, poll, generate):
            for found in pieces:
                while len(found.pool):
                    at = done % size
                    taken = min(size - at, len(found.pool))
                    for whole, part in zip(block, found, strict=True):
                        whole[at : at + taken] = part[:taken]
                    found, done = Features(found.pool[taken:], found.logits[taken:]), done + taken
                    if done % size == 0:
                        yield block
                tell(done)
        if rest := done % size:
            yield Features(block.pool[:rest], block.logits[:rest])

    def _chunks(
        self, make: Callable[[int], Tensor], n: int, poll: Poll, generate: Generate
    ) -> Iterator[Iterator[Features]]:
        """Of each chunk of ``n`` images the features, piece by piece."""
        for i, images in enumerate(prefetch(make, range(0, n, CHUNK), self.device)):
            yield self(images[: n - i * CHUNK], poll)
            if i == 0:
                settle(generate)  # a generator that diverged is known by now; no need to go on for minutes
        settle(generate)

    def _chunks_of_ranks(
        self, make: Callable[[int], Tensor], n: int, poll: Poll, generate: Generate
    ) -> Iterator[list[Features]]:
        """The same on the first rank, in the same order; each rank makes every ``size``-th chunk.

        The others get nothing. All raise what one does: a signal stops them at the same chunk.
        """
        team, widths = collectives.current(), [self.extractor.feature_dim, self.extractor.num_classes]

        def made(start: int) -> Tensor:
            rows = torch.zeros(CHUNK, sum(widths), device=self.home)
            if start < n:
                found = [torch.cat(f, 1) for f in self(make(start)[: n - start], poll)]
                torch.cat(found, out=rows[: min(CHUNK, n - start)])
                settle(generate)
            return rows

        for first in range(0, n, CHUNK * team.size):
            rows = agree_on_value(functools.partial(made, first + team.rank * CHUNK))
            found = team.all_gather(rows)
            if team.is_rank_zero:
                sizes = [min(CHUNK, n - start) for start in range(first, n, CHUNK)]
                yield from (
                    [Features(*rows[:k].split(widths, 1))] for rows, k in zip(found, sizes, strict=False)
                )


@dataclass
class Seen:
    """What is left of the generated images after the pass.

    running: by metric, what it summed, or why it could not. kept: the first rows of the features, as many as
    the metrics without a running form want, of the parts that they want.
    """

    running: dict[str, Running | Exception]
    kept: Features


def show(
    metrics: Mapping[str, Metric],
    protocol: Protocol,
    features: FeaturePass,
    generate: Generate,
    poll: Poll,
    tell: Callable[[str, int, int], None],
) -> Seen:
    """As many generated images as the neediest metric wants, shown to all of them block by block.

    What is kept grows with the protocol alone: for KID ``fid_n_fake`` rows, 410 MB for 50,000 of Inception's.
    """
    n = max(metric.n_fake(protocol) for metric in metrics.values())
    running = {name: metric.running(protocol) for name, metric in metrics.items()}
    keepers = [metrics[name] for name, run in running.items() if run is None]

    def kept(part: str, width: int) -> Tensor:
        rows = max((m.n_fake(protocol) for m in keepers if part in m.keeps), default=0)
        return torch.empty(rows, width, device=features.home)

    extractor, done = features.extractor, 0
    seen = Seen(
        {name: run for name, run in running.items() if run is not None},
        Features(kept("pool", extractor.feature_dim), kept("logits", extractor.num_classes)),
    )
    for block in features.blocks(generate, n, protocol.seed, poll, lambda done: tell("fake", done, n)):
        for side, new in zip(seen.kept, block, strict=True):
            side[done : done + len(new)] = new[: max(len(side) - done, 0)]
        done += len(block.pool)
        for name, run in seen.running.items():
            if not isinstance(run, Exception):
                failed = attempt(functools.partial(run.add, block))
                seen.running[name] = failed if isinstance(failed, Exception) else run
    return seen


def prefetch(make: Callable[[int], Tensor], starts: Iterable[int], device: torch.device) -> Iterator[Tensor]:
    """``make(start)`` for each of ``starts``; on a GPU one further than asked for, on a stream of its own.

    What the caller does with a tensor, before it asks for the next, must be queued on the current stream.
    """
    if device.type != "cuda":
        yield from map(make, starts)
        return
    here, side = torch.cuda.current_stream(device), side_stream(device)
    side.wait_stream(here)  # for G's last update

    def made(start: int) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return make(start), side.record_event()

    try:
        waiting: tuple[Tensor, torch.cuda.Event] | None = None
        used: torch.cuda.Event | None = None
        for start in starts:
            if used is not None:
                side.wait_event(used)  # two chunks at a time, however far the host is ahead
            following = made(start)
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
    """The one on which chunks are made ahead: the allocator keeps memory of each stream apart, for good."""
    return torch.cuda.Stream(device)


def on_stream(made: tuple[Tensor, torch.cuda.Event], stream: torch.cuda.Stream) -> Iterator[Tensor]:
    """A tensor of another stream, safe to use on this one."""
    images, ready = made
    stream.wait_event(ready)
    images.record_stream(stream)
    yield images
