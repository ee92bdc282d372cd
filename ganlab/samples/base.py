"""One object per kind of sample: the only place that tells images, points and text apart.

A kind is a file ``samples/NAME.py`` with a class ``KIND``, and a shape (a named tuple of ints) whose ``kind``
is NAME. Datasets, architectures and metrics say which kinds they have or support; all other code asks
``sample_kind(shape)``.
"""

from __future__ import annotations

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ganlab.schema import Quantize
from ganlab.system.files import write_atomic
from ganlab.types import Shape

Picture = npt.NDArray[np.uint8]  # (H, W, 3)


class RealSamples(Protocol):
    """What a kind reads of a ``SampleSet``."""

    @property
    def images(self) -> npt.NDArray[Any]: ...

    @property
    def manifest(self) -> Mapping[str, Any]: ...


class Context(NamedTuple):
    """What some kinds need beside generated samples to show them: real samples as stored; a vocabulary."""

    real: npt.NDArray[Any] | None = None
    symbols: Sequence[str] = ()


class Export(NamedTuple):
    """Samples to write to files, as stored. path: of interpolations, ``columns`` steps each, or None.

    singles: whether to write each sample to a file too, where the kind has such files.
    """

    samples: Tensor
    path: Tensor | None
    columns: int
    singles: bool


class Rendered(NamedTuple):
    """A picture (H, W, 3) or lines of text."""

    picture: Picture | None
    text: str = ""

    def write(self, path: Path) -> None:
        """Write to a file, atomically. Raises EnvError."""
        if self.picture is not None:
            write_png(path, self.picture)
        else:
            write_atomic(path, self.text.encode(), durable=False)


class SampleKind(ABC):
    """A kind of sample, of one ``shape``.

    noun: plural, for messages. architecture, metrics: what to suggest in place of those of another kind.
    options: keys of an experiment that apply to this kind alone. count: latents of a preview; suffix: of its
    files; is_grid: whether it is a grid of samples.
    """

    noun: ClassVar[str]
    architecture: ClassVar[str]
    metrics: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    count: ClassVar[int] = 64
    suffix: ClassVar[str] = "png"
    is_grid: ClassVar[bool] = False

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    @property
    def pixels(self) -> int:
        """What the memory of a pass through G grows with."""
        return 1

    @abstractmethod
    def describe(self) -> str:
        """The shape in words."""

    def to_model_input(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stored samples (B, ...) as float32 model input, on the same device. Options: ``to_float``."""
        return x

    @abstractmethod
    def to_stored(self, x: Tensor, how: Quantize = "round") -> Tensor:
        """G's samples in their stored form, without checking values."""

    def bounded(self, x: Tensor) -> Tensor:
        """Unbounded numbers (B, ...) in the range of this kind's samples, for a generator's last layer."""
        return x

    def restored_shape(self, sizes: Sequence[int]) -> Shape:
        """The shape with the ``sizes`` of a checkpoint. Raises ValueError if the config forbids it."""
        if tuple(sizes) != tuple(self.shape):
            raise ValueError(f"shape: {list(sizes)} is not that of the config")
        return cast(Shape, self.shape)

    def unscorable(self) -> str | None:
        """Why no metric can score samples of this shape."""
        return None

    def random(self, n: int, random: np.random.Generator) -> npt.NDArray[Any] | None:
        """``n`` meaningless samples as stored, for timings; None where loading the set takes no time."""
        return None

    def begin_run(self, folder: Path, data: RealSamples) -> None:  # noqa: B027
        """Write to a new run's folder what outlasts its data. Raises DataError, EnvError."""

    def context(self, data: RealSamples, seed: int) -> Context:
        """What previews of a run with this seed need."""
        return Context()

    def saved_context(self, folder: Path, load: Callable[[], RealSamples]) -> Context:
        """What an export needs, from the folder of a run or else its data. Raises DataError."""
        return Context()

    @abstractmethod
    def preview(self, samples: Tensor, context: Context) -> Rendered:
        """Render stored samples."""

    @abstractmethod
    def export(self, out: Path, samples: Export, context: Context) -> None:
        """Write samples into the folder ``out``. Raises EnvError."""


def sample_kind(shape: Shape) -> SampleKind:
    """The kind of samples of this shape."""
    kind: type[SampleKind] = importlib.import_module(f"ganlab.samples.{shape.kind}").KIND
    return kind(shape)


def write_png(path: Path, picture: Picture) -> None:
    """Write uint8 (H, W, 3) or (H, W, 1) as PNG, atomically. Raises EnvError."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(data, "PNG")
    write_atomic(path, data.getvalue(), durable=False)
