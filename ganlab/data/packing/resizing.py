"""Raw images to another size, on every core: sets that come as arrays, not as encoded files."""

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
    """uint8 of ``shape``, in the shared memory with its axes in the order ``axes``; the answer follows it."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    resolution: int
    resample: Resample


def resize_all(
    blocks: Iterable[Pixels], count: int, resolution: int, resample: Resample, workers: int | None = None
) -> Generator[Pixels, None, None]:
    """``images.resize_block`` of ``count`` images in blocks, uint8 (n, 3, S, S), in order; in smaller blocks.

    workers: processes; None is one per core, or none for a set that is done before they have started.
    """
    blocks = iter(blocks)
    if (first := next(blocks, None)) is None:
        return
    each = first[0].size, 3 * resolution**2
    most = max(1, PIECE // max(each))
    if workers is None:
        workers = num_cores() if count > 2 * most else 0
    pieces = (
        block[start : start + most]
        for block in itertools.chain([first], blocks)
        for start in range(0, len(block), most)
    )
    if first.shape[-1] == resolution or not workers:
        yield from (resize_block(piece, resolution, resample) for piece in pieces)
        return
    crew = WorkerPool(shared=most * sum(each))

    def work(piece: Pixels) -> Pixels:
        axes = tuple(sorted(range(4), key=lambda axis: -piece.strides[axis]))  # as it lies: no slow copy

        def there(child: Worker) -> Pixels:
            lying = np.ndarray([piece.shape[axis] for axis in axes], np.uint8, child.memory)
            np.copyto(lying, piece.transpose(axes))
            child.call(_resize_there, _Job(piece.shape, axes, resolution, resample))
            shape = (len(piece), 3, resolution, resolution)
            return np.ndarray(shape, np.uint8, child.memory, piece.size).copy()

        return crew.run(there)

    try:
        yield from in_order(work, pieces, workers, crew.stop)
    finally:
        crew.close()


def _resize_there(job: _Job) -> None:
    """In a child."""
    lying = np.ndarray([job.shape[axis] for axis in job.axes], np.uint8, shared_memory())
    images = lying.transpose(np.argsort(job.axes))
    out = resize_block(images, job.resolution, job.resample)
    np.ndarray(out.shape, np.uint8, shared_memory(), images.size)[:] = out
