"""Resize raw image arrays on all cores, for datasets that are not stored as encoded files."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Sequence

import numpy as np

from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.images import Resample, resize_block
from ganlab.data.packing.worker import WorkerPool, num_cores

PIECE = 1 << 22  # bytes of the larger side of a resize that go to a process at once


def resize_all(
    blocks: Iterable[Pixels], count: int, resolution: int, resample: Resample, workers: int | None = None
) -> Generator[Pixels, None, None]:
    """Resize ``count`` images in blocks, uint8 (n, 3, S, S), in order, yielding smaller blocks.

    workers: processes; None is one per core, or none for a set too small to be worth starting them.
    """
    blocks = iter(blocks)
    if (first := next(blocks, None)) is None:
        return
    chunk_size = max(1, PIECE // max(first[0].size, 3 * resolution**2))
    if workers is None:
        workers = num_cores() if count > 2 * chunk_size else 0
    pieces = (
        block[start : start + chunk_size]
        for block in itertools.chain([first], blocks)
        for start in range(0, len(block), chunk_size)
    )
    if first.shape[-1] == resolution or not workers:
        yield from (resize_block(piece, resolution, resample) for piece in pieces)
        return
    with WorkerPool() as pool:

        def work(piece: Pixels) -> Pixels:
            axes = sorted(range(4), key=lambda axis: -piece.strides[axis])  # in memory order: a fast copy
            return pool.run(_resize, piece.transpose(axes), axes, resolution, resample)

        yield from pool.map(work, pieces, workers)


def _resize(stored: Pixels, axes: Sequence[int], resolution: int, resample: Resample) -> Pixels:
    """Resize images whose axes are stored in the order ``axes``; runs in a worker process."""
    return resize_block(stored.transpose(np.argsort(axes)), resolution, resample)
