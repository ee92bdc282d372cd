"""Storage of a ``SampleSet`` during training: on the device, in host memory, or in the memory map.

Runs in one process that train on the same packed set share one copy (``storage_of``). A memory map is
prefetched with ``madvise`` rather than by a thread: under load this is cheaper than passing batches between
threads (``benchmarks/data_preparation``).
"""

from __future__ import annotations

import math
import mmap
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab.types import Batch

if TYPE_CHECKING:
    from ganlab.data.base import SampleSet

BLOCK = 1 << 25  # values (bytes for images) per transfer to a device
GPU_FRACTION = 0.5  # of a GPU's free memory available to images
CPU_GB = 4.0

_SHARED: WeakValueDictionary[tuple[Any, ...], Storage] = WeakValueDictionary()
_LOCK = threading.Lock()


def memory_limit(device: torch.device, data_memory_gb: float | None) -> float:
    """Largest set, in bytes, to hold in device memory; for None see ``Experiment.data_memory_gb``."""
    if data_memory_gb is None and device.type == "cuda":
        return GPU_FRACTION * torch.cuda.mem_get_info(device)[0]
    return 1e9 * (CPU_GB if data_memory_gb is None else data_memory_gb)


def storage_of(image_set: SampleSet, device: torch.device, data_memory_gb: float | None) -> Storage:
    """Return the storage of a set on a device, shared by all users of the same images.

    Images are the same if they are one array, or have the same file and fingerprint (a packed set loaded
    twice). A set larger than ``memory_limit`` is gathered from its map, unless another run already holds it.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    images = image_set.images
    identity: tuple[Any, ...] = (id(images),)  # the storage references them, so the id stays unique
    if _map_of(images) is not None and isinstance(images, np.memmap):
        identity = (str(images.filename), images.offset, images.shape)
    key = (*identity, image_set.fingerprint, image_set.labels is None, str(device))
    with _LOCK:
        storage = _SHARED.get((*key, True)) if data_memory_gb is None else None
        if storage is None:
            in_memory = images.nbytes <= memory_limit(device, data_memory_gb)
            storage = _SHARED.get((*key, in_memory)) or Storage(image_set, device, in_memory)
            _SHARED[(*key, in_memory)] = storage
        return storage


class Storage:
    """The images and labels of a set for ``device``.

    on_device: all samples as stored, such as uint8 (N, C, H, W), on a device other than the CPU; None if
    numpy gathers batches on the host, which is faster for the CPU.
    """

    def __init__(self, image_set: SampleSet, device: torch.device, in_memory: bool) -> None:
        self.image_set, self.device, self.in_memory = image_set, device, in_memory
        self.on_device: Tensor | None = None
        self.labels = None if image_set.labels is None else torch.from_numpy(np.array(image_set.labels))
        self._host: npt.NDArray[Any] = np.asarray(image_set.images)  # indexing a memmap is slower
        self._dtype = torch.from_numpy(np.empty(0, self._host.dtype)).dtype
        self._map: mmap.mmap | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not in_memory else None
        if not in_memory:
            self._map = _map_of(image_set.images)
        elif device.type != "cpu":
            self.on_device = _to_device(self._host, device)
            self.labels = None if self.labels is None else self.labels.to(device)
        elif isinstance(image_set.images, np.memmap):
            self._host = np.array(self._host)  # a copy: the kernel may evict the map's pages

    def gather(self, rows: Tensor) -> Batch:
        """The samples ``rows``, int64 (n,): x uint8 (n, C, H, W), y int64 (n,), on the device."""
        y = None if self.labels is None else self.labels[rows]
        if self.on_device is not None:
            return Batch(self.on_device[rows], y)
        pinned = self._stream is not None
        x = torch.empty((len(rows), *self._host.shape[1:]), dtype=self._dtype, pin_memory=pinned)
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

    def expect(self, rows: Tensor) -> None:
        """Ask the kernel to read the samples ``rows`` ahead; no effect on a set in memory."""
        if self._map is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        images = self.image_set.images
        assert isinstance(images, np.memmap)
        size, begin = int(np.prod(images.shape[1:])), images.offset % mmap.ALLOCATIONGRANULARITY
        for number in rows.tolist():
            start = begin + number * size
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)


def _map_of(images: npt.NDArray[Any]) -> mmap.mmap | None:
    """The memory map of ``images`` if they are a whole file; None for a slice, whose offset is unknown."""
    base = images.base if isinstance(images, np.memmap) else None
    return base if isinstance(base, mmap.mmap) else None


def _to_device(images: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy all images to the device in blocks, so that the host never holds a second copy."""
    dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype
    out = torch.empty(images.shape, dtype=dtype, device=device)
    rows = max(1, BLOCK // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        out[start : start + rows] = torch.from_numpy(np.array(images[start : start + rows]))
    return out
