"""Resize raw image arrays on all cores, for datasets that are not stored as encoded files."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np

from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.images import Resample, resize_block
from ganlab.data.packing.pool import WorkerPool, in_order, num_cores
from ganlab.data.packing.worker import Worker, shared_memory

PIECE = 1 << 22  # bytes of the larger side of a resize that go to a process at once


class _Job(NamedTuple):
    """uint8 array of ``shape`` in shared memory, axes stored in order ``axes``; the result follows."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    resolution: int
    resample: Resample


def resize_all(
    blocks: Iterable[Pixels], count: int, resolution: int, resample: Resample, workers: int | None = None
) -> Generator[Pixels, None, None]:
    """Resize ``count`` images in blocks, uint8 (n, 3, S, S), in order, yielding smaller blocks.

    workers: processes; None is one per core, or none for a set too small to be worth starting them.
    """
    blocks = iter(blocks)
    if (first := next(blocks, None)) is None:
        return
    sizes = first[0].size, 3 * resolution**2
    chunk_size = max(1, PIECE // max(sizes))
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
    pool = WorkerPool(shared=chunk_size * sum(sizes))

    def work(piece: Pixels) -> Pixels:
        axes = tuple(
            sorted(range(4), key=lambda axis: -piece.strides[axis])
        )  # in memory order, for a fast copy

        def resize_in(child: Worker) -> Pixels:
            pixels = np.ndarray([piece.shape[axis] for axis in axes], np.uint8, child.memory)
            np.copyto(pixels, piece.transpose(axes))
            child.call(_resize_shared, _Job(piece.shape, axes, resolution, resample))
            shape = (len(piece), 3, resolution, resolution)
            return np.ndarray(shape, np.uint8, child.memory, piece.size).copy()

        return pool.run(resize_in)

    try:
        yield from in_order(work, pieces, workers, pool.stop)
    finally:
        pool.close()


def _resize_shared(job: _Job) -> None:
    """Resize images in shared memory; runs in a worker process."""
    pixels = np.ndarray([job.shape[axis] for axis in job.axes], np.uint8, shared_memory())
    images = pixels.transpose(np.argsort(job.axes))
    out = resize_block(images, job.resolution, job.resample)
    np.ndarray(out.shape, np.uint8, shared_memory(), images.size)[:] = out
