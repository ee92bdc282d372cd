"""Scores of each class: cached reference statistics, one class in memory at a time.

ImageNet's 1,000 classes would take 10 GB of Inception features and 5 million generated images at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.evaluation.generate import Generate, OfClass
from ganlab.evaluation.passes import (
    FeaturePass,
    Poll,
    agree_on_value,
    attempt,
    attempt_on_all_ranks,
    score_fakes,
)
from ganlab.evaluation.reference_stats import Cache, class_key, class_reference, compute_class, piece, rows_of
from ganlab.metrics.base import ClassReference, Fakes, Metric, MetricError, Protocol
from ganlab.metrics.protocol import OWN_SPLIT

if TYPE_CHECKING:
    import numpy.typing as npt

    from ganlab.data.base import Dataset, SampleSet

WORST = 10  # classes named in a summary
Values = dict[str, float]
Metrics = Mapping[str, Metric[Any]]


def labels_of(protocol: Protocol, num_classes: int) -> list[int]:
    """The classes that are scored: all, or ``intra_classes`` of them, drawn by the protocol's seed."""
    n = min(protocol.intra_classes or num_classes, num_classes)
    return [int(c) for c in rows_of(n, num_classes, protocol.seed, 4)]


def class_counts(images: SampleSet, dataset: Dataset, protocol: Protocol) -> dict[str, int]:
    """Number of reference images of each scored class, by name.

    Raises MetricError if they have no labels, or other classes than ``dataset``'s training images.
    """
    if images.labels is None:
        raise MetricError(f"{images.name} has no class labels in split {images.split!r}")
    if protocol.real_split != OWN_SPLIT and dataset.load().classes != images.classes:
        raise MetricError(f"split {images.split!r} has other classes than the training images")
    counts = np.bincount(images.labels, minlength=len(images.classes))
    return {images.classes[c]: int(counts[c]) for c in labels_of(protocol, len(images.classes))}


@dataclass
class ClassPass:
    """Reference statistics and scores of one class at a time.

    extract: real images, uint8 (B, C, H, W), to pooled features. features: the pass for generated images.
    crashes: whether a crash only costs the scores. of_real: by metric, its value for real images.
    """

    images: SampleSet
    protocol: Protocol
    cache: Cache
    extract: Callable[[npt.NDArray[np.uint8], Poll], Tensor]
    features: FeaturePass
    poll: Poll = None
    crashes: bool = False
    of_real: dict[str, float | None] = field(default_factory=dict)

    def real(self, label: int) -> ClassReference:
        """Statistics of the real images of a class: cached, or from a feature pass. Raises MetricError."""
        assert self.images.labels is not None
        key = class_key(self.images, label, self.features.extractor.identity())
        folder = {k: v for k, v in key.items() if k != "label"}
        text = hashlib.sha256(json.dumps(folder, sort_keys=True).encode()).hexdigest()[:16]
        cache = Cache(self.cache.folder / f"classes-{text}", self.cache.warn)
        with cache.turn(key, self.poll):
            tensors = cache.read(key)
            if tensors is None:
                rows = torch.from_numpy(np.flatnonzero(self.images.labels == label))
                step = piece(self.protocol)
                tensors = compute_class(self.images, rows, step, lambda x: self.extract(x, self.poll))
                cache.write(key, tensors)
        return class_reference(tensors)

    def score(self, label: int, generate: Generate, metrics: Metrics) -> dict[str, Values | Exception]:
        """The values of ``metrics`` for one class, or the exceptions; {} on ranks above 0."""
        needed = any("real" in m.needs for m in metrics.values()) and collectives.current().is_rank_zero
        real = agree_on_value(lambda: self.real(label) if needed else None)
        parts = (self.protocol, self.features, generate, self.poll)
        return score_fakes(metrics, lambda _: real, *parts, label=label, crashes=self.crashes)

    def real_mean(self, metric: Metric[Any], labels: Iterable[int]) -> float | None:
        """Mean of ``metric`` over real images of these classes, as many as generated ones if available."""
        images = (self.real_images(label, metric.n_fake(self.protocol)) for label in labels)
        values = [metric(None, Fakes(samples=x), self.protocol)[metric.names[0]] for x in images if len(x)]
        return math.fsum(values) / len(values) if values else None

    def real_images(self, label: int, n: int) -> Tensor:
        """At most ``n`` real images of a class, in an order drawn by the seed: uint8 (n, C, H, W), n even."""
        rows = np.flatnonzero(self.images.labels == label)
        random = rng.generator("cpu", self.protocol.seed, "metric", 5, label)
        drawn = rows[torch.randperm(len(rows), generator=random)[: min(n, len(rows) // 2 * 2)].numpy()]
        return torch.from_numpy(self.images.images[drawn]).to(self.features.home)


def score_classes(
    classes: ClassPass, metrics: Metrics, of_class: OfClass | None, report: Callable[[int, int], None]
) -> dict[str, dict[int, Values] | Exception]:
    """The values of ``metrics`` by name and label, or the exception if there are none for some class.

    Values are on rank 0 only; exceptions on all ranks.
    """
    if of_class is None:
        return dict.fromkeys(metrics, MetricError("needs class labels, and there are none"))
    values: dict[str, dict[int, Values]] = {name: {} for name in metrics}
    errors: dict[str, str] = {}
    names, team = classes.images.classes, collectives.current()
    labels = labels_of(classes.protocol, len(names))
    for i, label in enumerate(labels):
        pending = {name: metric for name, metric in metrics.items() if name not in errors}
        if not pending:
            break
        results = attempt_on_all_ranks(partial(classes.score, label, of_class(label), pending))
        if isinstance(results, Exception):
            results = dict.fromkeys(pending, results)
        for name, result in results.items():
            if isinstance(result, Exception):
                errors[name] = f"class {names[label]!r}: {result}"
            else:
                values[name][label] = result
        errors = team.on_rank_zero(errors.copy)
        report(i + 1, len(labels))
    for name, metric in metrics.items() if team.is_rank_zero else ():
        if metric.needs == {"labels", "samples"} and name not in {*errors, *classes.of_real}:
            real = attempt(partial(classes.real_mean, metric, labels))
            classes.of_real[name] = None if isinstance(real, Exception) else real
    return {name: MetricError(errors[name]) if name in errors else values[name] for name in metrics}


def mean_values(by_class: Collection[Values]) -> Values:
    """The mean over the classes of each value."""
    names = next(iter(by_class))
    return {name: math.fsum(values[name] for values in by_class) / len(by_class) for name in names}


def details(values: Mapping[str, float], metric: Metric[Any], of_real: float | None) -> dict[str, Any]:
    """Extremes, median, worst classes and each class's value, as JSON.

    ``values``: by class name. ``of_real``: the mean for real images, or None.
    """
    order = sorted(values.items(), key=lambda item: item[1], reverse=metric.better == "lower")
    return {
        "classes": len(values),
        "min": min(values.values()),
        "median": statistics.median(values.values()),
        "max": max(values.values()),
        "worst": [[name, value] for name, value in order[:WORST]],
        "per_class": dict(values),
        **({} if of_real is None else {"real": of_real}),
    }
