"""What a dataset is (``Dataset``, ``ImageSet``) and how batches are drawn from it (``Sampler``).

Images are uint8 (N, C, H, W) here, at the border; ``to_float`` makes the float32 [-1, 1] that players see.
Other samples are an ``ImageSet`` of another class (``points.py``, ``text.py``): its ``seen`` makes what
players see of them, and their kind is told by ``shape``.
Importing this page does not import torch: ``ganlab doctor`` and ``ganlab data`` read datasets without it.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ganlab.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ganlab.data.packing.check import Known, Originals
    from ganlab.data.packing.writer import Recipe
    from ganlab.types import Shape
from ganlab.data.batches import Sampler, to_float
from ganlab.data.fingerprint import Labels


@dataclass(frozen=True)
class SampleSet:
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

    def batches(self, device: torch.device | str, seed: int, data_memory_gb: float | None = None) -> Sampler:
        """The samples of a run in the order in which it sees them."""
        return Sampler(self, device, seed, data_memory_gb)

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
    comes = "comes with its package"  # of a set that is not downloaded: where its samples are from

    @property
    def shape(self) -> Shape:
        """Of one sample. Of text, whose vocabulary is known once it is loaded, the largest that it may be."""
        from ganlab.types import ImageShape

        return ImageShape(self.channels, self.resolution, self.resolution)

    @property
    def reference(self) -> Dataset:
        """Where the real images come from that scores compare with: this set, unless it alters its own."""
        return self

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that ``load`` accepts."""

    @abstractmethod
    def load(self, *, split: str | None = None) -> SampleSet:
        """The images of a split (None: ``self.split``), prepared first where they are not yet.

        Raises DataError where the source is missing, damaged or has no such split, EnvError where the cache
        cannot be written or a download fails.
        """

    def recipe(self, split: str) -> Recipe | None:
        """What the packed split is made from and how; None for sets that are made in memory."""
        return None

    def pack_folder(self, split: str) -> Path | None:
        """Where the packed split lies once it is prepared; None for sets that are made in memory."""
        recipe = self.recipe(split)
        return recipe.folder if recipe else None

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
