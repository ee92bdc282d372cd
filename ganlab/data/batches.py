"""Draw batches from a dataset by position, as a pure function of (seed, position)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ganlab.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ganlab.data.base import SampleSet
    from ganlab.types import Batch


AHEAD = 8  # batches to prefetch from a memory map


class Sampler:
    """Shuffled batches of a ``SampleSet``: a pure function of (seed, position), so resume needs no state.

    Sample i of a run is image ``permutation(seed, epoch=i // N)[i % N]``. If the images fit
    ``data_memory_gb`` (``storage.memory_limit``), the device holds them as one uint8 tensor; otherwise numpy
    gathers each batch from the memory map, which is prefetched with ``madvise``, and sends it as uint8.
    Samplers of the same images on one device share their storage (``storage.storage_of``).
    """

    def __init__(
        self,
        image_set: SampleSet,
        device: torch.device | str,
        seed: int,
        data_memory_gb: float | None = None,
    ) -> None:
        import torch

        from ganlab.data.storage import storage_of

        self.image_set, self.device, self.seed = image_set, torch.device(device), seed
        self._storage = storage_of(image_set, self.device, data_memory_gb)
        self.shard: Callable[[Tensor], Tensor] | None = None  # a rank's part of a batch's indices
        self._orders: dict[int, Tensor] = {}
        self._expected = 0  # samples before this one were prefetched

    def __len__(self) -> int:
        return len(self.image_set)

    @property
    def on_device(self) -> Tensor | None:
        """All images, uint8 (N, C, H, W), if a GPU holds the whole set; otherwise None.

        ``indices`` (on the same device) selects samples from it. Shared between runs: do not write to it.
        """
        return self._storage.on_device

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 (N,), or None."""
        return self._storage.labels

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
        if not self._storage.in_memory:
            self._expect(start, start + (1 + AHEAD) * size)
        return self._storage.gather(self._own_indices(start, size))

    def indices(self, start: int, size: int) -> Tensor:
        """Indices into the images of the samples from ``start`` on: int64 (size,), on the images' device."""
        import torch

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

    def _expect(self, start: int, end: int) -> None:
        """Prefetch the samples up to ``end``; consecutive batches prefetch each sample once."""
        first = self._expected if start <= self._expected <= end else start
        self._storage.expect(self._own_indices(first, end - first))
        self._expected = end

    def _own_indices(self, start: int, size: int) -> Tensor:
        """``indices``, restricted to this rank's part if ``shard`` is set."""
        rows = self.indices(start, size)
        return rows if self.shard is None else self.shard(rows)

    def _order(self, epoch: int) -> Tensor:
        """Permutation of one epoch, drawn on the CPU so that it is device-independent; two are cached."""
        import torch

        from ganlab.rng import generator

        if epoch not in self._orders:
            order = torch.randperm(len(self), generator=generator("cpu", self.seed, "order", epoch))
            for old in sorted(self._orders, key=lambda e: abs(e - epoch))[1:]:
                self._orders.pop(old, None)
            self._orders[epoch] = order if self.on_device is None else order.to(self.device)
        return self._orders[epoch]
