"""All metrics of one generator under one protocol, from one feature pass.

Nothing here touches the default random generators, the networks' state or torch's flags, so evaluation never
changes training. Images are generated in chunks of ``CHUNK``, each with its own random stream, so that no
score depends on a batch size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from ganlab.distributed import collectives
from ganlab.errors import DataError, Mistake
from ganlab.evaluation import per_sample
from ganlab.evaluation.generate import CHUNK, Generate, OfClass
from ganlab.evaluation.passes import (
    FakeFeatures,
    FeaturePass,
    Poll,
    attempt,
    attempt_on_all_ranks,
    batch_size,
    pass_over_fakes,
)
from ganlab.evaluation.per_class import ClassPass, class_counts, details, mean_over, score_groups
from ganlab.evaluation.reference_stats import Cache, cache_key, compute
from ganlab.evaluation.scores import Scores as Scores
from ganlab.evaluation.scores import suspicions
from ganlab.extractors.base import Extractor, exact_fp32
from ganlab.metrics.base import GroupMetric, Measure, Metric, MetricError, Protocol, Reference, SampleMetric
from ganlab.metrics.protocol import OWN_SPLIT, digest
from ganlab.types import ImageShape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ganlab.data.base import Dataset, SampleSet


def require_split(protocol: Protocol, dataset: str, available: Sequence[str]) -> None:
    """Raise DataError unless the ``available`` splits of ``dataset`` include the protocol's real split."""
    if protocol.real_split not in (OWN_SPLIT, *available):
        raise DataError(
            "metric.protocol.real_split",
            f"{protocol.name} compares with split {protocol.real_split!r}, which {dataset} lacks",
            f"it has {', '.join(available)}; choose one, or another metric.protocol",
        )


class Evaluator:
    """Scores generators on ``device`` with ``metrics``, by name, against ``dataset.reference``'s real images.

    The constructor reads nothing; ``check`` does, before training. ``cache_dir`` holds ``reference/``.
    ``progress(stage, done, of)`` is called during the stages "real", "fake" and "class".
    """

    def __init__(
        self,
        extractor: Extractor,
        metrics: Mapping[str, Measure],
        protocol: Protocol,
        dataset: Dataset,
        device: torch.device | str,
        cache_dir: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.extractor, self.protocol = extractor.to(self.device), protocol
        self.measures = dict(metrics)
        self.metrics = {name: m for name, m in metrics.items() if isinstance(m, Metric)}
        self.group_metrics = {name: m for name, m in metrics.items() if isinstance(m, GroupMetric)}
        self.sample_metrics = {name: m for name, m in metrics.items() if isinstance(m, SampleMetric)}
        self.dataset, self.progress = dataset.reference, progress
        self._warnings: list[str] = []
        self._cache = Cache(cache_dir / "reference", self._warn)
        size = batch_size(protocol, self.device)
        self._features = FeaturePass(extractor, size, self.device, self._warn)
        self._reference: Reference | None = None
        self._among: dict[str, float] | None = None  # of sample metrics

    @functools.cached_property
    def images(self) -> SampleSet:
        """The real images to compare with. Raises DataError if the dataset has no such split."""
        split = self.protocol.real_split
        require_split(self.protocol, self.dataset.name, self.dataset.splits())
        return self.dataset.load(split=None if split == OWN_SPLIT else split)

    def check(self) -> None:
        """Before training: raise DataError if the images are too few, EnvError without the weights."""
        mistakes, protocol, available = [], self.protocol, len(self.images)
        n_real = protocol.fid_n_real or available
        shape = self.images.shape
        if isinstance(shape, ImageShape) and shape.channels not in (1, 3):
            mistakes.append(Mistake("dataset", f"scores need grayscale or RGB images, not {shape}"))
        if self._needs_real and n_real > available:
            what = f"{protocol.name} compares with {n_real} images of split {self.images.split!r}"
            fix = f"set it to at most {available} or 0 (all), or choose another metric.protocol"
            what += f", {self.images.name} has {available}"
            mistakes.append(Mistake("metric.protocol.fid_n_real", what, fix))
            n_real = available
        for name, measure in list(self.measures.items()):
            try:
                if isinstance(measure, Metric):
                    measure.check(protocol, n_real)
                elif isinstance(measure, SampleMetric):
                    self._check_samples(name, measure)
                elif isinstance(measure, GroupMetric) and isinstance(shape, ImageShape):
                    n_of_class = (
                        class_counts(self.images, self.dataset, protocol) if measure.needs_labels else {}
                    )
                    measure.check(protocol, shape, n_of_class)
            except MetricError as e:
                fix = "choose another metric.protocol, or leave this metric out"
                mistakes.append(Mistake(f"metric.scores.{name}", str(e), fix))
        if mistakes:
            raise DataError(mistakes)
        if self._uses_features:
            self.extractor.check()

    def _check_samples(self, name: str, measure: SampleMetric) -> None:
        """Drop a metric that does not apply to this dataset, unless it is alone. Raises MetricError."""
        real = per_sample.real_of(self.images)
        if (reason := measure.not_applicable(real)) and len(self.measures) > 1:
            del self.measures[name], self.sample_metrics[name]
            self._warn(f"{name}: left out, {reason}")
            return
        if reason:
            raise MetricError(reason)
        measure.check(self.protocol, real)

    def among_real(self, real: Reference | Exception | None = None) -> dict[str, float]:
        """Scores of other real samples, by full name, for metrics that estimate them. Call after ``check``.

        Without ``real`` (reference statistics), only sample metrics are included.
        """
        if self._among is None and self.sample_metrics:
            samples = per_sample.real_of(self.images)
            self._among = {
                k: v for m in self.sample_metrics.values() for k, v in m.among_real(samples).items()
            }
        values = dict(self._among or {})
        if not isinstance(real, Reference):
            return values
        for name, metric in self.metrics.items():
            key = cache_key(self.images, self.protocol, self.extractor.identity())
            key |= {"among_real": name, "n_fake": metric.n_fake(self.protocol), "seed": self.protocol.seed}
            numbers = self._cache.numbers(key, functools.partial(metric.among_real, real, self.protocol))
            values |= {self._full(metric, k): v for k, v in numbers.items()}
        return values

    def check_classes(self, num_classes: int) -> None:
        """Raise DataError unless the reference images have as many classes as the generator."""
        if (n_classes := len(self.images.classes)) != num_classes:
            what = f"{self.images.name} has {n_classes} classes, the run was made with {num_classes}"
            raise DataError("dataset", what, "use the run's own dataset, or leave out class scores")

    @property
    def better(self) -> dict[str, Literal["lower", "higher"]]:
        """The better direction of every score (standard deviations excluded), by full name."""
        return {
            self._full(measure, name): measure.better
            for measure in self.measures.values()
            for name in measure.names
            if not name.endswith("_std")
        }

    def _full(self, measure: Measure, name: str) -> str:
        return name + self.extractor.suffix if measure.uses_features else name

    def record(self, generator: Literal["raw", "ema"] = "raw", group: str | None = None) -> dict[str, Any]:
        """Everything except G that can affect the scores, as plain values; ``digest`` turns it into the id.

        ``group``: the record of this group metric; otherwise that of all other metrics. A record does not
        depend on which other scores are computed, except through the options of other metrics.
        """
        others: Mapping[str, Measure] = {**self.metrics, **self.sample_metrics}
        measures = {group: self.measures[group]} if group else others
        options = {name: settings for name, measure in measures.items() if (settings := measure.options())}
        fields = {field for measure in measures.values() for field in measure.protocol_fields}
        uses_features = any(measure.uses_features for measure in measures.values())
        return {
            **self.protocol.record(fields),
            "dataset": self.images.name,
            "dataset_fingerprint": self.images.fingerprint,
            "real_split": self.images.split,
            "fid_n_real": self.protocol.fid_n_real or len(self.images),
            "extractor": self.extractor.identity() if uses_features else None,
            "generator": generator,
            "chunk": CHUNK,
            **({"options": options} if options else {}),
        }

    def reference(self, poll: Poll = None) -> Reference:
        """Statistics of the real images: from memory, the cache or a feature pass. Raises MetricError."""
        if self._reference is None:
            images, done = self.images, 0
            key = cache_key(images, self.protocol, self.extractor.identity())

            def extract(pixels: npt.NDArray[np.uint8]) -> Tensor:
                nonlocal done
                pool = self._real_pool(pixels, poll)
                done += len(pool)
                self._report("real", done, key["n_real"])
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
        of_class: OfClass | None = None,
        *,
        step: int = 0,
        generator: Literal["raw", "ema"] = "raw",
        poll: Poll = None,
        strict: bool = False,
    ) -> Scores:
        """All metrics of the images that ``generate(n, start, random)`` makes: uint8 (n, C, H, W).

        ``n`` is always ``CHUNK``, ``start`` a multiple of it, ``random`` a generator on the device seeded by
        (protocol.seed, start). ``of_class(c)`` is the same for images of class c, with ``random`` seeded by
        (protocol.seed, start, c); without it class scores have no value. ``generator``: which of G's weights
        are used. ``poll`` is called before every batch and may raise to abort. A metric without a value
        gives None and a warning; with ``strict``, DataError lists all of them.
        """
        began, protocol = time.perf_counter(), self.protocol
        values: dict[str, float | None] = {}
        missing: list[Mistake] = []
        more: dict[str, dict[str, Any]] = {}
        for name in self.group_metrics:
            record = self.record(generator, name)
            more[name] = {"protocol": record, "protocol_id": digest(record)}
        team = collectives.current()
        with exact_fp32(self.device.type):
            crashes = not strict  # a crash costs the scores, not the run
            get_reference = functools.partial(attempt, lambda: self.reference(poll), crashes)
            real = team.only_on_rank_zero(get_reference) if self._needs_real else None
            fake = (
                attempt_on_all_ranks(lambda: self._fake_features(generate, poll), crashes)
                if self.metrics
                else None
            )
            groups = attempt_on_all_ranks(lambda: self._groups(generate, of_class, poll), crashes)

            def compute_scores() -> Scores:
                samples = per_sample.SamplePass(self.sample_metrics, protocol, self.images, self.device)
                samples.generate(generate, poll if team.size == 1 else None, crashes)
                for name, measure in self.measures.items():
                    if isinstance(measure, SampleMetric):
                        value = attempt(functools.partial(samples.value, name), crashes)
                    elif isinstance(measure, Metric):
                        value = attempt(functools.partial(self._value, name, real, fake), crashes)
                    elif isinstance(groups, Exception):
                        value = groups
                    else:
                        value = attempt(
                            functools.partial(self._mean, name, groups[name], more[name]), crashes
                        )
                    if isinstance(value, Exception):
                        missing.append(Mistake(f"metric.scores.{name}", str(value)))
                        self._warn(f"{name}: no value, {value}")
                        value = dict.fromkeys(measure.names, math.nan)
                    values.update({self._full(measure, k): _nan_to_none(v) for k, v in value.items()})
                among = attempt(functools.partial(self.among_real, real), crashes)
                among = {} if isinstance(among, Exception) else among
                record = self.record(generator)
                warnings = [*self._warnings, *suspicions(values, among, self.better)]
                self._warnings.clear()
                if strict and missing:
                    raise DataError(missing)
                named = {self._full(m, m.names[0]): more[name] for name, m in self.group_metrics.items()}
                seconds = time.perf_counter() - began
                return Scores(step, values, record, digest(record), seconds, warnings, named, among)

            scores = team.only_on_rank_zero(compute_scores)
        if team.size > 1:
            scores = Scores(**team.on_rank_zero(lambda: dataclasses.asdict(cast(Scores, scores))))
        return cast(Scores, scores)

    @property
    def _needs_real(self) -> bool:
        return any(metric.needs_real for metric in self.metrics.values())

    @property
    def _uses_features(self) -> bool:
        return any(measure.uses_features for measure in self.measures.values())

    def _value(
        self, name: str, real: Reference | Exception | None, fake: FakeFeatures | Exception | None
    ) -> dict[str, float]:
        metric = self.metrics[name]
        for needed in (real, fake) if metric.needs_real else (fake,):
            if isinstance(needed, Exception):
                raise needed
        assert isinstance(fake, FakeFeatures)
        reference: Reference | None = real if metric.needs_real else None  # type: ignore[assignment]
        run = fake.running.get(name)
        if isinstance(run, Exception):
            raise run
        values = run.value(reference) if run else metric(reference, fake.kept, self.protocol)
        if not all(map(math.isfinite, values.values())):
            raise MetricError(f"not finite: {values}")
        return values

    def _fake_features(self, generate: Generate, poll: Poll) -> FakeFeatures:
        return pass_over_fakes(self.metrics, self.protocol, self._features, generate, poll, self._report)

    def _groups(self, generate: Generate, of_class: OfClass | None, poll: Poll) -> dict[str, Any]:
        """Each group metric's values by label, or the exception that explains their absence."""
        if not self.group_metrics:
            return {}
        self._classes.poll = poll
        return score_groups(self._classes, self.group_metrics, generate, of_class, self._report)

    @functools.cached_property
    def _classes(self) -> ClassPass:
        return ClassPass(self.images, self.protocol, self._cache, self._real_pool, self._features)

    def _mean(self, name: str, by_label: Any, more: dict[str, Any]) -> dict[str, float]:
        """The mean over the groups; adds details to ``more``."""
        mean, measure = mean_over(by_label), self.measures[name]
        if measure.needs_labels:
            of_real = self._classes.of_real.get(name)
            more |= details(by_label, self.images.classes, measure.better, of_real)
        return {measure.names[0]: mean}

    def _real_pool(self, pixels: npt.NDArray[np.uint8], poll: Poll) -> Tensor:
        images = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            images = images.pin_memory()  # overlap the copy with reading the next images
        return torch.cat([f.pool for f in self._features(images, poll)])

    def _warn(self, text: str) -> None:
        self._warnings.append(text)

    def _report(self, stage: str, done: int, of: int) -> None:
        if self.progress:
            self.progress(stage, done, of)


def _nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else value
