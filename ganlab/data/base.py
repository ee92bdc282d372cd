"""Base classes of datasets: ``Dataset``, the source, and ``SampleSet``, one loaded split of it.

Stored images are uint8 (N, C, H, W). Points (``points.py``) and text (``text.py``) subclass ``SampleSet`` and
override ``shape``; ``samples/`` has what follows from its kind.
Importing this module does not import torch, so ``ganlab doctor`` and ``ganlab data`` start fast.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ganlab.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ganlab.data.batches import Sampler
    from ganlab.data.packing.check import Originals, PublishedFiles
    from ganlab.data.packing.writer import Recipe
    from ganlab.types import Shape
from ganlab.data.fingerprint import Labels


@dataclass(frozen=True)
class SampleSet:
    """A split of a dataset, ready to train on.

    images: uint8 (N, C, H, W), in memory or memory-mapped; a subclass may hold other samples. labels: int64
    (N,) in [0, len(classes)), or None. classes: names by label. fingerprint: hash of samples and labels
    (``fingerprint.py``), the key of caches. warnings: non-fatal findings to show to the user (a single class,
    empty classes, skipped images). manifest: source and transform of the images (``pack.py``), or empty.
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
        """Shape of one sample as model input."""
        from ganlab.types import ImageShape

        return ImageShape(*map(int, self.images.shape[1:]))

    @property
    def is_stream(self) -> bool:
        """Whether training draws fresh samples instead of iterating over ``images``."""
        return False

    def to_model_input(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Convert stored samples ``x`` to float32 model input; options: ``samples.images.to_float``."""
        from ganlab.samples.base import sample_kind

        return sample_kind(self.shape).to_model_input(x, *args, **kwargs)

    def batches(self, device: torch.device | str, seed: int, data_memory_gb: float | None = None) -> Sampler:
        """Create the sampler of a run with this seed."""
        from ganlab.data.batches import Sampler

        return Sampler(self, device, seed, data_memory_gb)

    def __len__(self) -> int:
        return int(self.images.shape[0])


def memory_manifest(
    dataset: Dataset, split: str, samples: npt.NDArray[Any], fingerprint: str, **more: Any
) -> dict[str, Any]:
    """The manifest of a set built in memory; ``more``: its source and whatever else it has."""
    return {
        "name": dataset.name,
        "split": split,
        "count": len(samples),
        "shape": list(samples.shape),
        "bytes": samples.nbytes,
        "classes": [],
        "class_counts": None,
        "counts": {},
        "fingerprint": fingerprint,
        **more,
    }


class Dataset(ABC):
    """A source of samples. Constructors only check their arguments; they read no files.

    Attributes: ``name``; ``split``, used for training; ``resolution`` (pixels, square) and ``channels`` (1
    grayscale, 3 RGB) of images; ``labelled``, False if ``split`` is known to have no class labels.
    """

    name: str
    split: str
    resolution: int
    channels: int
    labelled: bool = True
    holdout_option: str = ""  # key=value that adds a held-out split
    origin = "comes with its package"  # where the samples of a dataset without a download come from

    @property
    def shape(self) -> Shape:
        """Shape of one sample; for text an upper bound, as the vocabulary is known only after loading."""
        from ganlab.types import ImageShape

        return ImageShape(self.channels, self.resolution, self.resolution)

    @property
    def reference(self) -> Dataset:
        """The dataset of the real images for metrics: this one, unless its images are augmented."""
        return self

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that ``load`` accepts."""

    @abstractmethod
    def load(self, *, split: str | None = None) -> SampleSet:
        """Load a split (None: ``self.split``), preparing it first if necessary.

        Raises DataError if the source is missing, damaged or has no such split; EnvError if the cache is not
        writable or a download fails.
        """

    def recipe(self, split: str) -> Recipe | None:
        """Source and transform of the packed split; None for a dataset built in memory."""
        return None

    def pack_folder(self, split: str) -> Path | None:
        """Folder of the packed split, whether or not it exists; None for a dataset built in memory."""
        recipe = self.recipe(split)
        return recipe.folder if recipe else None

    def originals(self, split: str) -> Originals | PublishedFiles | None:
        """Source files of ``split``, for ``packing/check.py``; None for a dataset without source files.

        Raises DataError if the source is missing.
        """
        return None

    def resolve_split(self, split: str | None) -> str:
        """Return ``split``, or ``self.split`` if None. Raises DataError unless it is one of ``splits()``."""
        requested, available = split or self.split, self.splits()
        if requested in available:
            return requested
        near = difflib.get_close_matches(requested, available, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            "dataset.split", f"{self.name} has no split {requested!r}", f"{hint}it has {', '.join(available)}"
        )
