"""Scores per class: images on demand, cached statistics, one class in memory at a time.

ImageNet's 1,000 classes would take 10 GB of Inception features and 5 million generated images at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.evaluation.generate import CHUNK, Generate, OfClass, chunk, settle
from ganlab.evaluation.passes import (
    FeaturePass,
    Poll,
    agree_on_value,
    attempt,
    attempt_on_all_ranks,
    prefetch,
)
from ganlab.evaluation.reference_stats import Cache, class_key, class_reference, compute_class, piece, rows_of
from ganlab.metrics.base import ClassReference, Group, GroupMetric, MetricError, Protocol
from ganlab.metrics.protocol import OWN_SPLIT

if TYPE_CHECKING:
    import numpy.typing as npt

    from ganlab.data.base import Dataset, SampleSet

WORST = 10  # classes named in a summary


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
    """Reference statistics and generated images of one class at a time.

    extract: real images, uint8 (B, C, H, W), to pooled features. features: of generated images. of_real: by
    metric, its value for real images, once computed.
    """

    images: SampleSet
    protocol: Protocol
    cache: Cache
    extract: Callable[[npt.NDArray[np.uint8], Poll], Tensor]
    features: FeaturePass
    poll: Poll = None
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

    def group(self, label: int | None, generate: Generate, metrics: list[GroupMetric]) -> Group:
        """One class, or all images as one group, with everything that ``metrics`` need.

        With several ranks each generates every ``size``-th chunk, and rank 0 gets all of them.
        """
        protocol = self.protocol
        n_images = max((m.n_fake(protocol) for m in metrics if m.needs_images), default=0)
        n_pool = max((m.n_fake(protocol) for m in metrics if m.uses_features), default=0)
        kept: list[Tensor] = []
        pools: list[Tensor] = []

        def make(start: int) -> Tensor:
            if self.poll:
                self.poll()
            counters = (start,) if label is None else (start, label)
            random = rng.generator(self.features.device, protocol.seed, "evaluate", *counters)
            return chunk(generate, start, random)

        if collectives.current().size > 1:
            kept, pools = self._of_ranks(make, generate, n_images, n_pool)
        starts = range(0, max(n_images, n_pool) if collectives.current().size == 1 else 0, CHUNK)
        for start, images in zip(starts, prefetch(make, starts, self.features.device), strict=True):
            if start < n_images:
                kept.append(images[: n_images - start].to(self.features.home))
            if start < n_pool:
                pools.extend(f.pool for f in self.features(images[: n_pool - start], self.poll))
        settle(generate)
        needs_real = (
            label is not None and any(m.needs_real for m in metrics) and collectives.current().is_rank_zero
        )
        real = agree_on_value(lambda: self.real(label) if needs_real and label is not None else None)
        return Group(label, torch.cat(kept) if kept else None, torch.cat(pools) if pools else None, real)

    def _of_ranks(
        self, make: Callable[[int], Tensor], generate: Generate, n_images: int, n_pool: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Chunks of images and of pooled features in order, on rank 0; empty lists on the others."""
        team, features = collectives.current(), self.features
        shape, kept, pools = self.images.shape, list[Tensor](), list[Tensor]()

        def chunk_and_pool(start: int) -> tuple[Tensor, Tensor]:
            images = torch.zeros(CHUNK, *shape, dtype=torch.uint8, device=features.home)
            pool = torch.zeros(CHUNK, features.extractor.feature_dim, device=features.home)
            if start < max(n_images, n_pool):
                images.copy_(new := make(start))
                if start < n_pool:
                    parts = [f.pool for f in features(new[: n_pool - start], self.poll)]
                    torch.cat(parts, out=pool[: min(CHUNK, n_pool - start)])
                settle(generate)
            return images, pool

        for first in range(0, max(n_images, n_pool), CHUNK * team.size):
            images, pool = agree_on_value(partial(chunk_and_pool, first + team.rank * CHUNK))
            for n, chunks, all_ranks in ((n_images, kept, images), (n_pool, pools, pool)):
                if first >= n:
                    continue
                gathered = team.all_gather(all_ranks)
                starts = range(first, n, CHUNK) if team.is_rank_zero else ()
                chunks += [rows[: n - start] for rows, start in zip(gathered, starts, strict=False)]
        return kept, pools

    def real_images(self, label: int, n: int) -> Tensor:
        """At most ``n`` real images of a class, in an order drawn by the seed: uint8 (n, C, H, W), n even."""
        rows = np.flatnonzero(self.images.labels == label)
        random = rng.generator("cpu", self.protocol.seed, "metric", 5, label)
        drawn = rows[torch.randperm(len(rows), generator=random)[: min(n, len(rows) // 2 * 2)].numpy()]
        return torch.from_numpy(self.images.images[drawn]).to(self.features.home)


def score_groups(
    classes: ClassPass,
    metrics: Mapping[str, GroupMetric],
    generate: Generate,
    of_class: OfClass | None,
    report: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The values of ``metrics`` by name: a dict by label, or an exception where there is none."""
    values: dict[str, Any] = {name: {} for name in metrics}
    protocol = classes.protocol
    for labelled in (False, True):
        pending = {name: m for name, m in metrics.items() if m.needs_labels == labelled}
        if labelled and pending and of_class is None:
            values |= dict.fromkeys(pending, MetricError("needs class labels, and there are none"))
            continue
        names = classes.images.classes
        groups: list[int | None] = [*labels_of(protocol, len(names))] if labelled else [None]
        for i, label in enumerate(groups):
            if not pending:
                break
            generate_group = of_class(label) if of_class and label is not None else generate
            group = attempt_on_all_ranks(partial(classes.group, label, generate_group, [*pending.values()]))
            for name, metric in [*pending.items()]:
                value = group if isinstance(group, Exception) else group_value(metric, group, protocol)
                if isinstance(value, Exception):
                    where = "" if label is None else f"class {names[label]!r}: "
                    values[name] = MetricError(f"{where}{value}")
                    del pending[name]
                else:
                    values[name][label] = value
            if labelled:
                report("class", i + 1, len(groups))
    for name, metric in metrics.items() if collectives.current().is_rank_zero else ():
        if metric.scores_real and not isinstance(values[name], Exception) and name not in classes.of_real:
            real = attempt(partial(real_mean, classes, metric, [*values[name]]))
            classes.of_real[name] = None if isinstance(real, Exception) else real
    return values


def group_value(metric: GroupMetric, group: Group, protocol: Protocol) -> float | Exception:
    """A group's value of ``metric``, or the exception; computed on rank 0 and broadcast."""
    team = collectives.current()
    result = team.only_on_rank_zero(lambda: attempt(partial(metric, group, protocol)))
    if team.size == 1:
        assert result is not None
        return result
    value_and_reason = (None, str(result)) if isinstance(result, Exception) else (result, "")
    value, reason = team.on_rank_zero(lambda: value_and_reason)
    return MetricError(reason) if value is None else float(value)


def real_mean(classes: ClassPass, metric: GroupMetric, labels: Iterable[int]) -> float | None:
    """Mean of ``metric`` over real images of these classes, as many as generated ones where available."""
    n = metric.n_fake(classes.protocol)
    groups = (Group(label, classes.real_images(label, n), None, None) for label in labels)
    values = [metric(g, classes.protocol) for g in groups if g.images is not None and len(g.images)]
    return math.fsum(values) / len(values) if values else None


def mean_over(values: Mapping[int | None, float] | Exception) -> float:
    """The mean of the groups' values. Raises the exception passed instead, or MetricError if not finite."""
    if isinstance(values, Exception):
        raise values
    mean = math.fsum(values.values()) / len(values)
    if not math.isfinite(mean):
        raise MetricError(f"not finite: {mean}")
    return mean


def details(
    values: Mapping[int, float], classes: list[str], better: str, of_real: float | None
) -> dict[str, Any]:
    """Extremes, median, worst classes and each class's value, as JSON.

    ``of_real``: the mean for real images, or None.
    """
    by_name = {classes[c]: v for c, v in values.items()}
    order = sorted(by_name.items(), key=lambda item: item[1], reverse=better == "lower")
    return {
        "classes": len(by_name),
        "min": min(by_name.values()),
        "median": statistics.median(by_name.values()),
        "max": max(by_name.values()),
        "worst": [[name, value] for name, value in order[:WORST]],
        "per_class": by_name,
        **({} if of_real is None else {"real": of_real}),
    }
