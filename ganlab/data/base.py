"""What a dataset is (``Dataset``, ``ImageSet``) and how batches are drawn from it (``Batches``).

Images are uint8 (N, C, H, W) here, at the border; ``to_float`` makes the float32 [-1, 1] that players see.
Other samples are an ``ImageSet`` of another class (``points.py``, ``text.py``): its ``seen`` makes what
players see of them, and their kind is told by ``shape``.
Importing this page does not import torch: ``ganlab doctor`` and ``ganlab data`` read datasets without it.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ganlab.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ganlab.data.check import Known, Originals
    from ganlab.types import Batch, Shape

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
HASH_BLOCK = 1 << 24  # bytes hashed at a time: a memory map never has to be resident as a whole
AHEAD = 8  # batches that the kernel is asked for beforehand, of a set in a memory map


def fingerprint(images: npt.NDArray[Any], labels: Labels | None) -> str:
    """sha256 (hex) over the pixel bytes, then the shape as text, then the labels (little-endian int64).

    Two sets agree in it if and only if they hold the same images and labels in the same order; names,
    paths and times play no part. The pixels come first so that a packer can hash while it streams.
    """
    digest = hashlib.sha256()
    flat = np.ascontiguousarray(images).reshape(-1)
    for start in range(0, flat.size, HASH_BLOCK):
        digest.update(flat[start : start + HASH_BLOCK].data)
    return finish_fingerprint(digest, images.shape, labels)


def finish_fingerprint(digest: Any, shape: tuple[int, ...], labels: Labels | None) -> str:
    """Close a running sha256 over pixel bytes into a ``fingerprint``; ``digest`` itself is left as it was."""
    digest = digest.copy()
    digest.update(",".join(map(str, shape)).encode())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return str(digest.hexdigest())


@dataclass(frozen=True)
class ImageSet:
    """A split of a dataset, ready to train on.

    images: uint8 (N, C, H, W), in memory or memory-mapped; a subclass may hold other samples. labels: int64
    (N,) in [0, len(classes)), or None. classes: their names, by label. fingerprint: see ``fingerprint``;
    caches are keyed by it, never by name. warnings: things a user should hear of (one class only, empty
    classes, skipped images); never fatal.
    manifest: where the images come from and what was done to them (``pack.py``), or empty.
    """

    images: npt.NDArray[Any]
    labels: Labels | None
    classes: list[str]
    fingerprint: str
    name: str
    split: str
    warnings: tuple[str, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """Of one sample, as players see it."""
        from ganlab.types import ImageShape

        return ImageShape(*map(int, self.images.shape[1:]))

    @property
    def endless(self) -> bool:
        """Whether training draws samples anew, however many there are here."""
        return False

    def seen(
        self,
        x: Tensor,
        dequantize: bool = False,
        flip: bool = False,
        generator: torch.Generator | None = None,
        draw: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """What players see of stored samples ``x``, float32 on the same device; options of ``to_float``."""
        return to_float(x, dequantize, flip, generator, draw)

    def batches(self, device: torch.device | str, seed: int, data_memory_gb: float | None = None) -> Batches:
        """The samples of a run in the order in which it sees them."""
        return Batches(self, device, seed, data_memory_gb)

    def __len__(self) -> int:
        return int(self.images.shape[0])


class Dataset(ABC):
    """A source of images. Constructors are cheap: they check their arguments and read nothing.

    Attributes: ``name``; ``split``, the one that training uses; ``resolution`` (pixels, square) and
    ``channels`` (1 grey, 3 RGB) of images; ``labelled``, False where it is certain that ``split`` has no
    class labels.
    """

    name: str
    split: str
    resolution: int
    channels: int
    labelled: bool = True
    to_hold_out: str = ""  # what gives it a split that training does not use, as key=value
    comes = "comes with its package"  # of a set that is not packed: where its samples are from

    @property
    def shape(self) -> Shape:
        """Of one sample. Of text, whose vocabulary is known once it is loaded, the largest that it may be."""
        from ganlab.types import ImageShape

        return ImageShape(self.channels, self.resolution, self.resolution)

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that ``load`` accepts."""

    @abstractmethod
    def load(self, *, split: str | None = None) -> ImageSet:
        """The images of a split (None: ``self.split``), prepared first where they are not yet.

        Raises DataError where the source is missing, damaged or has no such split, EnvError where the cache
        cannot be written or a download fails.
        """

    def pack_folder(self, split: str) -> Path | None:
        """Where the packed split lies once it is prepared; None for sets that are made in memory."""
        return None

    def originals(self, split: str) -> Originals | Known | None:
        """The files that ``split`` is made from, as they lie (``check.py``); None for a set without any.

        Raises DataError where there is no source.
        """
        return None

    def chosen(self, split: str | None) -> str:
        """``split``, or ``self.split`` if None. Raises DataError unless it is one of ``splits()``."""
        wanted, there = split or self.split, self.splits()
        if wanted in there:
            return wanted
        near = difflib.get_close_matches(wanted, there, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            "dataset.split", f"{self.name} has no split {wanted!r}", f"{hint}it has {', '.join(there)}"
        )


class Batches:
    """Batches of an ``ImageSet`` by position: a pure function of (seed, position), so resume needs no state.

    Sample number i of a run is image ``permutation(seed, epoch=i // N)[i % N]``. The images lie on the device
    as one uint8 tensor if they fit ``data_memory_gb`` (``storage.room``); else each batch is gathered by
    numpy from the memory map, whose next images the kernel is asked for meanwhile, and sent as uint8.
    ``Batches`` of the same images on one device share their storage (``storage.storage_of``).
    """

    def __init__(
        self,
        image_set: ImageSet,
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
