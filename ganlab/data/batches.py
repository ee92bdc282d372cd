"""Batches of a dataset by position, as a pure function of (seed, position)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ganlab.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ganlab.data.base import SampleSet
    from ganlab.types import Batch


AHEAD = 8  # batches that the kernel is asked for beforehand, of a set in a memory map


class Sampler:
    """Batches of an ``ImageSet`` by position: a pure function of (seed, position), so resume needs no state.

    Sample number i of a run is image ``permutation(seed, epoch=i // N)[i % N]``. The images lie on the device
    as one uint8 tensor if they fit ``data_memory_gb`` (``storage.room``); else each batch is gathered by
    numpy from the memory map, whose next images the kernel is asked for meanwhile, and sent as uint8.
    ``Batches`` of the same images on one device share their storage (``storage.storage_of``).
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
        self.share: Callable[[Tensor], Tensor] | None = None  # a rank's of whole batches
        self._orders: dict[int, Tensor] = {}
        self._expected = 0  # the images of samples before this one were asked for

    def __len__(self) -> int:
        return len(self.image_set)

    @property
    def obstacle(self) -> str:
        """Why an update can't be recorded that draws from here, while ``on_device`` is None."""
        return "the images do not lie on the device (data_memory_gb)"

    @property
    def on_device(self) -> Tensor | None:
        """All images, uint8 (N, C, H, W), where they lie on a device as a whole; None on a CPU or in a map.

        ``indices`` tells which of them the samples are, on the same device. It is shared: do not write to it.
        """
        return self._storage.on_device

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 (N,), beside the images; or None."""
        return self._storage.labels

    def batch(self, start: int, size: int) -> Batch:
        """Samples from ``start`` on, on the device: x uint8 (size, C, H, W) and y int64 (size,) or None.

        A batch may straddle epochs. With ``share`` set: its part. Raises DataError if ``size`` exceeds the
        number of images, ValueError if ``start`` or ``size`` is negative.
        """
        if start < 0 or size < 0:
            raise ValueError(f"a batch needs start >= 0 and size >= 0, got {start} and {size}")
        if size > len(self):
            from ganlab.types import NOUNS

            named = NOUNS[self.image_set.shape.kind]
            there = f"the {len(self)} {named} of {self.image_set.name} {self.image_set.split}"
            raise DataError("batch_size", f"{size} is more than {there}", f"use at most {len(self)}")
        if not self._storage.in_memory:
            self._expect(start, start + (1 + AHEAD) * size)
        return self._storage.gather(self._ours(start, size))

    def indices(self, start: int, size: int) -> Tensor:
        """Which images the samples from ``start`` on are: int64 (size,), where the images lie."""
        import torch

        parts, end = [], start + size
        while start < end:
            epoch, first = divmod(start, len(self))
            take = min(end - start, len(self) - first)
            parts.append(self._order(epoch)[first : first + take])
            start += take
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else self._order(0)[:0]

    def close(self) -> None:
        """Let go of the order of the images. The batches already handed out stay valid."""
        self._orders.clear()

    def _expect(self, start: int, end: int) -> None:
        """Ask for the images of the samples up to ``end``, each once while one batch follows another."""
        first = self._expected if start <= self._expected <= end else start
        self._storage.expect(self._ours(first, end - first))
        self._expected = end

    def _ours(self, start: int, size: int) -> Tensor:
        """``indices``, or the share of them."""
        chosen = self.indices(start, size)
        return chosen if self.share is None else self.share(chosen)

    def _order(self, epoch: int) -> Tensor:
        """Permutation of one epoch, drawn on the CPU so that it is the same on every device; two are kept."""
        import torch

        from ganlab.rng import generator

        if epoch not in self._orders:
            order = torch.randperm(len(self), generator=generator("cpu", self.seed, "order", epoch))
            for old in sorted(self._orders, key=lambda e: abs(e - epoch))[1:]:
                self._orders.pop(old, None)
            self._orders[epoch] = order if self.on_device is None else order.to(self.device)
        return self._orders[epoch]


def to_float(
    x: Tensor,
    dequantize: bool = False,
    flip: bool = False,
    generator: torch.Generator | None = None,
    draw: Callable[..., Tensor] | None = None,
) -> Tensor:
    """uint8 (B, C, H, W) to float32 in [-1, 1] on the same device.

    x / 127.5 - 1; with ``dequantize`` x / 128 - 1 + U(0, 1/128), as SN-GAN's released code has it. ``flip``
    mirrors each image left-right with probability 1/2. ``generator`` lies on x's device; None is torch's own.
    ``draw`` stands in for ``torch.rand``.
    """
    import torch

    draw = draw or torch.rand
    if flip:
        mirrored = draw(len(x), 1, 1, 1, device=x.device, generator=generator) < 0.5
        x = torch.where(mirrored, x.flip(-1), x)
    if not dequantize:
        return x.float().div_(127.5).sub_(1)
    noise = draw(*x.shape, device=x.device, generator=generator)
    return noise.add_(x).div_(128).sub_(1)  # in place: on a CPU half the time of the formula as it is written
