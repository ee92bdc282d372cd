"""Where the images of an ``ImageSet`` lie while runs draw from them: on the device, in memory, or in the map.

Runs of one process that train on the same packed set share one copy (``storage_of``). A memory map is read
without a thread: the kernel is told which images come next and fetches them by itself, which under load costs
less than handing batches from one thread to another (``benchmarks/data_preparation``).
"""

from __future__ import annotations

import mmap
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ganlab.types import Batch

if TYPE_CHECKING:
    from ganlab.data.base import SampleSet

BLOCK = 1 << 25  # values (bytes, of images) sent to a device at a time
SHARE = 0.5  # of a GPU's free memory that images may take
CPU_GB = 4.0
SLOTS = 4  # batches on their way to a GPU at once

_SHARED: WeakValueDictionary[tuple[Any, ...], Storage] = WeakValueDictionary()
_LOCK = threading.Lock()


def room(device: torch.device, data_memory_gb: float | None) -> float:
    """Bytes up to which images lie in the memory of the device as a whole; None: see ``Experiment``."""
    if data_memory_gb is None and device.type == "cuda":
        return SHARE * torch.cuda.mem_get_info(device)[0]
    return 1e9 * (CPU_GB if data_memory_gb is None else data_memory_gb)


def storage_of(image_set: SampleSet, device: torch.device, data_memory_gb: float | None) -> Storage:
    """The storage of a set on a device; as long as it is in use, the same object for the same images.

    The same are those of one array, or of one file and fingerprint: a packed set that was loaded twice.
    Images beyond ``room`` are gathered from their map, unless another run has them there already.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    images = image_set.images
    where: tuple[Any, ...] = (id(images),)  # the storage keeps them, so no other array gets their id
    if _map_of(images) is not None and isinstance(images, np.memmap):
        where = (str(images.filename), images.offset, images.shape)
    key = (*where, image_set.fingerprint, image_set.labels is None, str(device))
    with _LOCK:
        found = _SHARED.get((*key, True)) if data_memory_gb is None else None
        if found is None:
            in_memory = images.nbytes <= room(device, data_memory_gb)
            found = _SHARED.get((*key, in_memory)) or Storage(image_set, device, in_memory)
            _SHARED[(*key, in_memory)] = found
        return found


class Storage:
    """The images and labels of a set for ``device``.

    on_device: all images, uint8 (N, C, H, W), or other samples as they are stored, on a device that is not
    the CPU; None where a batch is gathered on the host by numpy, which on a CPU is the faster one.
    """

    def __init__(self, image_set: SampleSet, device: torch.device, in_memory: bool) -> None:
        self.image_set, self.device, self.in_memory = image_set, device, in_memory
        self.on_device: Tensor | None = None
        self.labels = None if image_set.labels is None else torch.from_numpy(np.array(image_set.labels))
        self._host: npt.NDArray[Any] = np.asarray(image_set.images)  # a memmap is a slow kind of array
        self._dtype = torch.from_numpy(np.empty(0, self._host.dtype)).dtype
        self._map: mmap.mmap | None = None
        self._ring = _Ring(device) if device.type == "cuda" and not in_memory else None
        if not in_memory:
            self._map = _map_of(image_set.images)
        elif device.type != "cpu":
            self.on_device = _sent(self._host, device)
            self.labels = None if self.labels is None else self.labels.to(device)
        elif isinstance(image_set.images, np.memmap):
            self._host = np.array(self._host)  # a copy: the map's pages may be dropped by the kernel

    def gather(self, chosen: Tensor) -> Batch:
        """The images of numbers ``chosen``, int64 (n,): x uint8 (n, C, H, W), y int64 (n,), on the device."""
        if self.on_device is not None:
            return Batch(self.on_device[chosen], None if self.labels is None else self.labels[chosen])
        y = None if self.labels is None else self.labels[chosen]
        shape = (len(chosen), *self._host.shape[1:])
        if self._ring is None:
            x = torch.empty(shape, dtype=self._dtype)
            self._take(chosen, x)
            return Batch(x.to(self.device), None if y is None else y.to(self.device))
        with self._ring.slot(shape, self._dtype) as slot:
            self._take(chosen, slot.x)
            if y is not None:
                slot.y.copy_(y)
        return self._ring.send(slot, labels=y is not None)

    def expect(self, chosen: Tensor) -> None:
        """Say that these images are wanted soon: the kernel begins to read them. Does nothing in memory."""
        if self._map is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        images = self.image_set.images
        assert isinstance(images, np.memmap)
        size, begin = int(np.prod(images.shape[1:])), images.offset % mmap.ALLOCATIONGRANULARITY
        for number in chosen.tolist():
            start = begin + number * size
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _take(self, chosen: Tensor, out: Tensor) -> None:
        # "clip": "raise" would go through a hidden buffer
        np.take(self._host, chosen.numpy(), axis=0, out=out.numpy(), mode="clip")


class _Slot:
    """Pinned memory for a batch on its way to the GPU; free again once ``sent`` has happened."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.x = torch.empty(shape, dtype=dtype, pin_memory=True)
        self.y = torch.empty(shape[0], dtype=torch.int64, pin_memory=True)
        self.sent = torch.cuda.Event()


class _Ring:
    """Sends batches to a GPU on a stream of its own, beside the compute, through memory pinned once."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._slots: dict[tuple[int, ...], list[_Slot]] = defaultdict(list)  # by shape, the oldest first

    @contextmanager
    def slot(self, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[_Slot]:
        """A slot to be filled by the host, then to be given to ``send``."""
        of_shape = self._slots[shape]
        oldest = of_shape.pop(0) if len(of_shape) >= SLOTS else _Slot(shape, dtype)
        oldest.sent.synchronize()  # of a new slot: at once
        yield oldest
        of_shape.append(oldest)

    def send(self, slot: _Slot, labels: bool) -> Batch:
        """Copies of the slot on the device, ready for what the current stream does next."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            x = slot.x.to(self._device, non_blocking=True)
            y = slot.y.to(self._device, non_blocking=True) if labels else None
            slot.sent.record(self._stream)
        current.wait_event(slot.sent)
        for copy in (x, y):
            if copy is not None:
                copy.record_stream(current)  # or its memory might be given away while it is still read
        return Batch(x, y)


def _map_of(images: npt.NDArray[Any]) -> mmap.mmap | None:
    """The map of a file that ``images`` are as a whole; a part of one does not tell where it begins."""
    base = images.base if isinstance(images, np.memmap) else None
    return base if isinstance(base, mmap.mmap) else None


def _sent(images: npt.NDArray[Any], device: torch.device) -> Tensor:
    """All images on the device, in blocks: the host never holds a second copy of a large set."""
    dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype
    whole = torch.empty(images.shape, dtype=dtype, device=device)
    source, target = images.reshape(-1), whole.view(-1)
    pinned = device.type == "cuda"
    blocks = [torch.empty(min(BLOCK, source.size), dtype=dtype, pin_memory=pinned) for _ in range(2)]
    events = [torch.cuda.Event() for _ in blocks] if pinned else []
    for number, start in enumerate(range(0, source.size, BLOCK)):
        part = source[start : start + BLOCK]
        block = blocks[number % 2][: part.size]
        if pinned:
            events[number % 2].synchronize()  # until then it is being read
        np.copyto(block.numpy(), part)
        target[start : start + part.size].copy_(block, non_blocking=pinned)
        if pinned:
            events[number % 2].record(torch.cuda.current_stream(device))
    if pinned:
        torch.cuda.current_stream(device).synchronize()
    return whole
