"""Draw batches from a dataset by position, as a pure function of (seed, position).

A memory map is prefetched with ``madvise`` rather than by a thread: under load this is cheaper than passing
batches between threads (``benchmarks/data_preparation``).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab.errors import DataError
from ganlab.rng import generator
from ganlab.types import Batch

if TYPE_CHECKING:
    from ganlab.data.base import SampleSet

AHEAD = 8  # batches to prefetch from a memory map
BLOCK = 1 << 25  # values (bytes for images) per transfer to a device
GPU_FRACTION = 0.5  # of a GPU's free memory available to images
CPU_GB = 4.0


def memory_limit(device: torch.device, data_memory_gb: float | None) -> float:
    """Largest set, in bytes, to hold in device memory; for None see ``Experiment.data_memory_gb``."""
    if data_memory_gb is None and device.type == "cuda":
        return GPU_FRACTION * torch.cuda.mem_get_info(device)[0]
    return 1e9 * (CPU_GB if data_memory_gb is None else data_memory_gb)


class Sampler:
    """Shuffled batches of a ``SampleSet``: a pure function of (seed, position), so resume needs no state.

    Sample i of a run is image ``permutation(seed, epoch=i // N)[i % N]``. If the images fit
    ``data_memory_gb`` (``memory_limit``), the device holds them as one uint8 tensor; otherwise numpy
    gathers each batch from the memory map, which is prefetched, and sends it as uint8. On the CPU numpy
    always gathers: it is faster.

    on_device: all samples as stored, such as uint8 (N, C, H, W), if a GPU holds them, else None. labels: all
    labels, int64 (N,), or None.
    """

    on_device: Tensor | None = None
    labels: Tensor | None = None

    def __init__(
        self,
        image_set: SampleSet,
        device: torch.device | str,
        seed: int,
        data_memory_gb: float | None = None,
    ) -> None:
        self.image_set, self.device, self.seed = image_set, torch.device(device), seed
        self.shard: Callable[[Tensor], Tensor] | None = None  # a rank's part of a batch's indices
        self._orders: dict[int, Tensor] = {}
        self._expected = 0  # samples before this one were prefetched
        if image_set.labels is not None:
            self.labels = torch.from_numpy(np.array(image_set.labels))
        self._host: npt.NDArray[Any] = np.asarray(image_set.images)  # indexing a memmap is slower
        in_memory = self._host.nbytes <= memory_limit(self.device, data_memory_gb)
        self._map = None if in_memory else _map_of(image_set.images)
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu and not in_memory else None
        if in_memory and self.device.type != "cpu":
            self.on_device = _to_device(self._host, self.device)
            self.labels = None if self.labels is None else self.labels.to(self.device)
        elif in_memory and isinstance(image_set.images, np.memmap):
            self._host = np.array(self._host)  # a copy: the kernel may evict the map's pages

    def __len__(self) -> int:
        return len(self.image_set)

    def batch(self, start: int, size: int) -> Batch:
        """Samples from ``start`` on, on the device: x uint8 (size, C, H, W) and y int64 (size,) or None.

        A batch may straddle epochs. If ``shard`` is set, only this rank's part is returned. Raises DataError
        if ``size`` exceeds the number of images, ValueError if ``start`` or ``size`` is negative.
        """
        if start < 0 or size < 0:
            raise ValueError(f"a batch needs start >= 0 and size >= 0, got {start} and {size}")
        if size > len(self):
            from ganlab.samples.base import sample_kind

            noun = sample_kind(self.image_set.shape).noun
            available = f"the {len(self)} {noun} of {self.image_set.name} {self.image_set.split}"
            raise DataError("batch_size", f"{size} is more than {available}", f"use at most {len(self)}")
        if self._map is not None and hasattr(mmap, "MADV_WILLNEED"):
            self._expect(start, start + (1 + AHEAD) * size)
        return self._gather(self._own_indices(start, size))

    def indices(self, start: int, size: int) -> Tensor:
        """Indices into the images of the samples from ``start`` on: int64 (size,), on the images' device."""
        parts, end = [], start + size
        while start < end:
            epoch, first = divmod(start, len(self))
            take = min(end - start, len(self) - first)
            parts.append(self._order(epoch)[first : first + take])
            start += take
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else self._order(0)[:0]

    def close(self) -> None:
        """Free the cached permutations. Batches returned before stay valid."""
        self._orders.clear()

    def _gather(self, rows: Tensor) -> Batch:
        """The samples ``rows``, int64 (n,): x uint8 (n, C, H, W), y int64 (n,), on the device."""
        y = None if self.labels is None else self.labels[rows]
        if self.on_device is not None:
            return Batch(self.on_device[rows], y)
        shape, dtype = (len(rows), *self._host.shape[1:]), _dtype_of(self._host)
        x = torch.empty(shape, dtype=dtype, pin_memory=self._stream is not None)
        # "clip": "raise" would go through a hidden buffer
        np.take(self._host, rows.numpy(), axis=0, out=x.numpy(), mode="clip")
        if self._stream is None:
            return Batch(x.to(self.device), None if y is None else y.to(self.device))
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):  # torch keeps pinned memory until its copy is done
            x = x.to(self.device, non_blocking=True)
            y = None if y is None else y.pin_memory().to(self.device, non_blocking=True)
        current.wait_stream(self._stream)
        for copy in (x, y):
            if copy is not None:
                copy.record_stream(current)  # else the allocator may reuse its memory too early
        return Batch(x, y)

    def _expect(self, start: int, end: int) -> None:
        """Ask the kernel to read the samples up to ``end`` ahead; consecutive batches ask for each once."""
        first = self._expected if start <= self._expected <= end else start
        self._expected = end
        images = self.image_set.images
        assert isinstance(images, np.memmap)
        assert self._map is not None
        size, begin = math.prod(images.shape[1:]), images.offset % mmap.ALLOCATIONGRANULARITY
        for number in self._own_indices(first, end - first).tolist():
            at = begin + number * size
            page = at - at % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, at + size - page)

    def _own_indices(self, start: int, size: int) -> Tensor:
        """``indices``, restricted to this rank's part if ``shard`` is set."""
        rows = self.indices(start, size)
        return rows if self.shard is None else self.shard(rows)

    def _order(self, epoch: int) -> Tensor:
        """Permutation of one epoch, drawn on the CPU so that it is device-independent; two are cached."""
        if epoch not in self._orders:
            order = torch.randperm(len(self), generator=generator("cpu", self.seed, "order", epoch))
            for old in sorted(self._orders, key=lambda e: abs(e - epoch))[1:]:
                self._orders.pop(old, None)
            self._orders[epoch] = order if self.on_device is None else order.to(self.device)
        return self._orders[epoch]


def _map_of(images: npt.NDArray[Any]) -> mmap.mmap | None:
    """The memory map of ``images`` if they are a whole file; None for a slice, whose offset is unknown."""
    base = images.base if isinstance(images, np.memmap) else None
    return base if isinstance(base, mmap.mmap) else None


def _dtype_of(array: npt.NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _to_device(images: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy all images to the device in blocks, so that the host never holds a second copy."""
    out = torch.empty(images.shape, dtype=_dtype_of(images), device=device)
    rows = max(1, BLOCK // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        out[start : start + rows] = torch.from_numpy(np.array(images[start : start + rows]))
    return out
