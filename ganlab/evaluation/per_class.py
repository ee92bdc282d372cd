"""Scores of one class after another: images on demand, statistics cached, one class held at a time.

1,000 classes of ImageNet are 10 GB of Inception features and 5 million generated images; here they pass by.
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
    """How many reference images there are of each class that is scored, by name.

    Raises MetricError if they have no labels, or other classes than ``dataset``'s training images.
    """
    if images.labels is None:
        raise MetricError(f"{images.name} has no class labels in split {images.split!r}")
    if protocol.real_split != OWN_SPLIT and dataset.load().classes != images.classes:
        raise MetricError(f"split {images.split!r} has other classes than the training images")
    found = np.bincount(images.labels, minlength=len(images.classes))
    return {images.classes[c]: int(found[c]) for c in labels_of(protocol, len(images.classes))}


@dataclass
class ClassPass:
    """What the real side and the feature network give, one class at a time.

    extract: real images, uint8 (B, C, H, W), to pooled features. features: of generated images. of_real: by
    metric, its value of real images, once known.
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
        """One class, or all images as one group, with what the neediest of ``metrics`` wants.

        Of many ranks each makes every ``size``-th chunk, and the first gets all of them.
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
                pools.extend(found.pool for found in self.features(images[: n_pool - start], self.poll))
        settle(generate)
        needs_real = (
            label is not None and any(m.needs_real for m in metrics) and collectives.current().is_rank_zero
        )
        real = agree_on_value(lambda: self.real(label) if needs_real and label is not None else None)
        return Group(label, torch.cat(kept) if kept else None, torch.cat(pools) if pools else None, real)

    def _of_ranks(
        self, make: Callable[[int], Tensor], generate: Generate, n_images: int, n_pool: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Chunks of images and of pooled features in order, on the first rank; nothing on the others."""
        team, features = collectives.current(), self.features
        shape, kept, pools = self.images.shape, list[Tensor](), list[Tensor]()

        def made(start: int) -> tuple[Tensor, Tensor]:
            images = torch.zeros(CHUNK, *shape, dtype=torch.uint8, device=features.home)
            pool = torch.zeros(CHUNK, features.extractor.feature_dim, device=features.home)
            if start < max(n_images, n_pool):
                images.copy_(new := make(start))
                if start < n_pool:
                    found = [f.pool for f in features(new[: n_pool - start], self.poll)]
                    torch.cat(found, out=pool[: min(CHUNK, n_pool - start)])
                settle(generate)
            return images, pool

        for first in range(0, max(n_images, n_pool), CHUNK * team.size):
            images, pool = agree_on_value(partial(made, first + team.rank * CHUNK))
            for n, chunks, all_ranks in ((n_images, kept, images), (n_pool, pools, pool)):
                if first >= n:
                    continue
                found = team.all_gather(all_ranks)
                starts = range(first, n, CHUNK) if team.is_rank_zero else ()
                chunks += [rows[: n - start] for rows, start in zip(found, starts, strict=False)]
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
    tell: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The values of ``metrics`` by their names: for each a dict by label, or the reason why there is none."""
    found: dict[str, Any] = {name: {} for name in metrics}
    protocol = classes.protocol
    for labelled in (False, True):
        going = {name: m for name, m in metrics.items() if m.needs_labels == labelled}
        if labelled and going and of_class is None:
            found |= dict.fromkeys(going, MetricError("needs class labels, and there are none"))
            continue
        names = classes.images.classes
        groups: list[int | None] = [*labels_of(protocol, len(names))] if labelled else [None]
        for i, label in enumerate(groups):
            if not going:
                break
            made = of_class(label) if of_class and label is not None else generate
            group = attempt_on_all_ranks(partial(classes.group, label, made, [*going.values()]))
            for name, metric in [*going.items()]:
                value = group if isinstance(group, Exception) else group_value(metric, group, protocol)
                if isinstance(value, Exception):
                    where = "" if label is None else f"class {names[label]!r}: "
                    found[name] = MetricError(f"{where}{value}")
                    del going[name]
                else:
                    found[name][label] = value
            if labelled:
                tell("class", i + 1, len(groups))
    for name, metric in metrics.items() if collectives.current().is_rank_zero else ():
        if metric.tells_real and not isinstance(found[name], Exception) and name not in classes.of_real:
            real = attempt(partial(real_mean, classes, metric, [*found[name]]))
            classes.of_real[name] = None if isinstance(real, Exception) else real
    return found


def group_value(metric: GroupMetric, group: Group, protocol: Protocol) -> float | Exception:
    """What ``metric`` says of a group, or why nothing: of many ranks the first asks it, and all are told."""
    team = collectives.current()
    found = team.only_on_rank_zero(lambda: attempt(partial(metric, group, protocol)))
    if team.size == 1:
        assert found is not None
        return found
    known = (None, str(found)) if isinstance(found, Exception) else (found, "")
    value, reason = team.on_rank_zero(lambda: known)
    return MetricError(reason) if value is None else float(value)


def real_mean(classes: ClassPass, metric: GroupMetric, labels: Iterable[int]) -> float | None:
    """What ``metric`` says of real images of these classes, as many as of generated ones, where there are."""
    n = metric.n_fake(classes.protocol)
    groups = (Group(label, classes.real_images(label, n), None, None) for label in labels)
    values = [metric(g, classes.protocol) for g in groups if g.images is not None and len(g.images)]
    return math.fsum(values) / len(values) if values else None


def mean_over(found: Mapping[int | None, float] | Exception) -> float:
    """The mean of the groups' values. Raises the reason where there are none, MetricError if not finite."""
    if isinstance(found, Exception):
        raise found
    mean = math.fsum(found.values()) / len(found)
    if not math.isfinite(mean):
        raise MetricError(f"it came out as {mean}")
    return mean


def details(
    values: Mapping[int, float], classes: list[str], better: str, of_real: float | None
) -> dict[str, Any]:
    """What a mean over classes hides: extremes, median, the worst classes, and each class's value.

    ``of_real``: the mean of real images, or None; it goes along.
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
