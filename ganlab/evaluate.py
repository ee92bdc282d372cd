"""All metrics of one generator under one protocol, from one feature pass.

Nothing here touches the default random generators, the networks' state or the flags of torch: looking at a
run never changes it. Generated images come in chunks of ``CHUNK`` with a random stream each, so that no
number depends on a batch size.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from ganlab import rng
from ganlab.errors import DataError, Mistake
from ganlab.extractors.base import Extractor, exact_fp32
from ganlab.fakes import CHUNK, Generate, Pieces
from ganlab.metrics.base import LinAlgError, Metric, MetricError, Protocol, Reference
from ganlab.metrics.protocol import OWN_SPLIT, digest
from ganlab.reference import Cache, cache_key, compute
from ganlab.types import Features

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ganlab.data.base import Dataset, ImageSet

NO_VALUE = (MetricError, torch.OutOfMemoryError, LinAlgError)
T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """What one evaluation found. A value is None where there was none; ``warnings`` says why.

    step: generator updates. values: by name, the extractor's suffix included. record: everything beside G
    that can move them; protocol_id: its digest. seconds: wall time, reference statistics included.
    """

    step: int
    values: dict[str, float | None]
    record: dict[str, Any]
    protocol_id: str
    seconds: float
    warnings: list[str] = field(default_factory=list)


class Evaluator:
    """Scores generators on ``device`` with ``metrics``, by name, against the real images of ``dataset``.

    The constructor reads nothing; ``check`` does, before training. ``cache_dir`` holds ``reference/``.
    ``progress(what, done, of)`` hears how far the "real" or "fake" images are.
    """

    def __init__(
        self,
        extractor: Extractor,
        metrics: Mapping[str, Metric],
        protocol: Protocol,
        dataset: Dataset,
        device: torch.device | str,
        cache_dir: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.extractor, self.metrics, self.protocol = extractor.to(self.device), dict(metrics), protocol
        self.dataset, self.progress = dataset, progress
        self._home = torch.device("cpu") if self.device.type == "mps" else self.device  # knows float64
        self._warnings: list[str] = []
        self._cache = Cache(cache_dir / "reference", self._warn)
        self._pieces = Pieces(protocol.batch_size, self._warn)
        self._reference: Reference | None = None

    @functools.cached_property
    def images(self) -> ImageSet:
        """The real images to compare with. Raises DataError if the dataset has no such split."""
        split, there = self.protocol.real_split, self.dataset.splits()
        if split not in (OWN_SPLIT, *there):
            raise DataError(
                "metric.protocol.real_split",
                f"{self.protocol.name} compares with split {split!r}, {self.dataset.name} has no such split",
                f"it has {', '.join(there)}; choose one, or another metric.protocol",
            )
        return self.dataset.load(split=None if split == OWN_SPLIT else split)

    def check(self) -> None:
        """Before training: raise DataError if the images are too few, EnvError without the weights."""
        mistakes, protocol, available = [], self.protocol, len(self.images)
        n_real = protocol.fid_n_real or available
        if self.images.shape.channels not in (1, 3):
            mistakes.append(Mistake("dataset", f"scores need grey or RGB images, not {self.images.shape}"))
        if self._needs_real and n_real > available:
            what = f"{protocol.name} compares with {n_real} images of split {self.images.split!r}"
            fix = f"set it to at most {available} or 0 (all), or choose another metric.protocol"
            there = f"{self.images.name} has {available}"
            mistakes.append(Mistake("metric.protocol.fid_n_real", f"{what}, {there}", fix))
            n_real = available
        for name, metric in self.metrics.items():
            try:
                metric.check(protocol, n_real)
            except MetricError as e:
                fix = "choose another metric.protocol, or leave this metric out"
                mistakes.append(Mistake(f"metric.scores.{name}", str(e), fix))
        if mistakes:
            raise DataError(mistakes)
        self.extractor.check()

    @property
    def better(self) -> dict[str, Literal["lower", "higher"]]:
        """The good direction of every value that is a score (not a spread), by its full name."""
        return {
            name + self.extractor.suffix: metric.better
            for metric in self.metrics.values()
            for name in metric.names
            if not name.endswith("_std")
        }

    def record(self, generator: Literal["raw", "ema"] = "raw") -> dict[str, Any]:
        """Everything beside G that can move the numbers, as plain values; ``digest`` makes the id of it."""
        options = {name: told for name, metric in self.metrics.items() if (told := metric.options())}
        return {
            **self.protocol.record(),
            "dataset": self.images.name,
            "dataset_fingerprint": self.images.fingerprint,
            "real_split": self.images.split,
            "fid_n_real": self.protocol.fid_n_real or len(self.images),
            "extractor": self.extractor.identity(),
            "generator": generator,
            "chunk": CHUNK,
            **({"options": options} if options else {}),
        }

    def reference(self, poll: Callable[[], None] | None = None) -> Reference:
        """Statistics of the real images: from memory, the cache, or a feature pass. Raises MetricError."""
        if self._reference is None:
            images, done = self.images, 0
            key = cache_key(images, self.protocol, self.extractor.identity())

            def extract(pixels: npt.NDArray[np.uint8]) -> Tensor:
                nonlocal done
                pool = torch.cat([f.pool for f in self._features(torch.from_numpy(pixels), poll)])
                done += len(pool)
                self._tell("real", done, key["n_real"])
                return pool

            with self._cache.turn(key, poll), exact_fp32(self.device.type):
                self._reference = self._cache.get(key)
                if self._reference is None:
                    self._reference = compute(images, self.protocol, extract)
                    self._cache.put(key, self._reference)
        return self._reference

    def score(
        self,
        generate: Generate,
        *,
        step: int = 0,
        generator: Literal["raw", "ema"] = "raw",
        poll: Callable[[], None] | None = None,
        strict: bool = False,
    ) -> Scores:
        """All metrics of the images that ``generate(n, start, random)`` makes: uint8 (n, C, H, W).

        ``n`` is always ``CHUNK``, ``start`` a multiple of it, ``random`` a generator on the device seeded by
        (protocol.seed, start). ``generator`` tells which of G's weights they come from. ``poll`` is called
        before every batch and may raise to abort. A metric without a value gives None and a warning;
        with ``strict`` it raises DataError instead.
        """
        began = time.perf_counter()
        values: dict[str, float | None] = {}
        with exact_fp32(self.device.type):
            real = _try(lambda: self.reference(poll)) if self._needs_real else None
            fake = _try(lambda: self._fakes(generate, poll))
            for name, metric in self.metrics.items():
                found = _try(functools.partial(self._value, metric, real, fake))
                if isinstance(found, Exception):
                    if strict:
                        raise DataError(f"metric.scores.{name}", str(found)) from found
                    self._warn(f"{name}: no value, {found}")
                    found = dict.fromkeys(metric.names, math.nan)
                suffix = self.extractor.suffix
                values |= {k + suffix: None if math.isnan(v) else v for k, v in found.items()}
        record, warnings = self.record(generator), self._warnings.copy()
        self._warnings.clear()
        return Scores(step, values, record, digest(record), time.perf_counter() - began, warnings)

    @property
    def _needs_real(self) -> bool:
        return any(metric.needs_real for metric in self.metrics.values())

    def _value(
        self, metric: Metric, real: Reference | Exception | None, fake: Features | Exception
    ) -> dict[str, float]:
        for needed in (real, fake) if metric.needs_real else (fake,):
            if isinstance(needed, Exception):
                raise needed
        assert isinstance(fake, Features)
        found = metric(real if metric.needs_real else None, fake, self.protocol)  # type: ignore[arg-type]
        if not all(map(math.isfinite, found.values())):
            raise MetricError(f"it came out as {found}")
        return found

    def _fakes(self, generate: Generate, poll: Callable[[], None] | None) -> Features:
        """Features of as many generated images as the neediest metric wants."""
        n = max(metric.n_fake(self.protocol) for metric in self.metrics.values())
        pool = torch.empty(n, self.extractor.feature_dim, device=self._home)
        logits = torch.empty(n, self.extractor.num_classes, device=self._home)
        done = 0
        for start in range(0, n, CHUNK):
            random = rng.generator(self.device, self.protocol.seed, "evaluate", start)
            images = generate(CHUNK, start, random)
            if images.dtype != torch.uint8 or len(images) != CHUNK:
                raise TypeError(f"wanted {CHUNK} uint8 images, got {images.dtype} {tuple(images.shape)}")
            for found in self._features(images[: n - start], poll):
                pool[done : done + len(found.pool)] = found.pool
                logits[done : done + len(found.pool)] = found.logits
                done += len(found.pool)
                self._tell("fake", done, n)
        return Features(pool, logits)

    def _features(self, images: Tensor, poll: Callable[[], None] | None) -> Iterator[Features]:
        def extract(piece: Tensor) -> Features:
            if poll:
                poll()
            piece = piece.to(self.device)
            rgb = piece.expand(-1, 3, -1, -1) if piece.shape[1] == 1 else piece
            return Features(*(t.to(self._home) for t in self.extractor(rgb.contiguous())))

        return self._pieces(extract, images)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)

    def _tell(self, what: str, done: int, of: int) -> None:
        if self.progress:
            self.progress(what, done, of)


def _try(function: Callable[[], T]) -> T | Exception:
    """What ``function`` returns, or why there is no value."""
    try:
        return function()
    except NO_VALUE as e:
        return e.with_traceback(None)
