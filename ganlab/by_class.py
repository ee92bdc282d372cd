"""Scores of one class after another: images on demand, statistics cached, one class held at a time.

1,000 classes of ImageNet are 10 GB of Inception features and 5 million generated images; here they pass by.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.fakes import CHUNK, Generate, OfClass, chunk
from ganlab.metrics.base import ClassReference, Group, GroupMetric, MetricError, Protocol
from ganlab.metrics.protocol import OWN_SPLIT
from ganlab.reference import Cache, Extract, class_key, class_reference, compute_class, rows_of
from ganlab.types import Features

if TYPE_CHECKING:
    from ganlab.data.base import Dataset, ImageSet

WORST = 10  # classes named in a summary
Try = Callable[[Callable[[], Any]], Any]


def labels_of(protocol: Protocol, num_classes: int) -> list[int]:
    """The classes that are scored: all, or ``intra_classes`` of them, drawn by the protocol's seed."""
    n = min(protocol.intra_classes or num_classes, num_classes)
    return [int(c) for c in rows_of(n, num_classes, protocol.seed, 4)]


def class_counts(images: ImageSet, dataset: Dataset, protocol: Protocol) -> dict[str, int]:
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

    features: images, uint8 (B, C, H, W), to their features, piece by piece. identity: the extractor's.
    """

    images: ImageSet
    protocol: Protocol
    cache: Cache
    identity: Callable[[], dict[str, Any]]
    extract: Extract
    features: Callable[[Tensor], Iterator[Features]]
    device: torch.device
    poll: Callable[[], None] | None = None

    def real(self, label: int) -> ClassReference:
        """Statistics of the real images of a class: cached, or from a feature pass. Raises MetricError."""
        assert self.images.labels is not None
        key = class_key(self.images, label, self.identity())
        folder = {k: v for k, v in key.items() if k != "label"}
        text = hashlib.sha256(json.dumps(folder, sort_keys=True).encode()).hexdigest()[:16]
        cache = Cache(self.cache.folder / f"classes-{text}", self.cache.warn)
        with cache.turn(key, self.poll):
            tensors = cache.read(key)
            if tensors is None:
                rows = torch.from_numpy(np.flatnonzero(self.images.labels == label))
                tensors = compute_class(self.images, rows, max(self.protocol.batch_size, 500), self.extract)
                cache.write(key, tensors)
        return class_reference(tensors)

    def group(self, label: int | None, generate: Generate, metrics: list[GroupMetric]) -> Group:
        """One class, or all images as one group, with what the neediest of ``metrics`` wants."""
        protocol = self.protocol
        n_images = max((m.n_fake(protocol) for m in metrics if m.needs_images), default=0)
        n_pool = max((m.n_fake(protocol) for m in metrics if m.uses_features), default=0)
        kept: list[Tensor] = []
        pools: list[Tensor] = []
        for start in range(0, max(n_images, n_pool), CHUNK):
            counters = (start,) if label is None else (start, label)
            random = rng.generator(self.device, protocol.seed, "evaluate", *counters)
            images = chunk(generate, start, random)
            if start < n_images:
                kept.append(images[: n_images - start])
            if start < n_pool:
                pools.extend(found.pool for found in self.features(images[: n_pool - start]))
        needs_real = label is not None and any(m.needs_real for m in metrics)
        return Group(
            label,
            torch.cat(kept) if kept else None,
            torch.cat(pools) if pools else None,
            self.real(label) if needs_real and label is not None else None,
        )


def score_groups(
    classes: ClassPass,
    metrics: Mapping[str, GroupMetric],
    generate: Generate,
    of_class: OfClass | None,
    attempt: Try,
    tell: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The values of ``metrics`` by their names: for each a dict by label, or the reason why there is none.

    ``attempt`` calls a function and gives its result or the error that means "no value".
    """
    found: dict[str, Any] = {name: {} for name in metrics}
    for labelled in (False, True):
        going = {name: m for name, m in metrics.items() if m.needs_labels == labelled}
        if labelled and going and of_class is None:
            found |= dict.fromkeys(going, MetricError("needs class labels, and there are none"))
            continue
        names = classes.images.classes
        groups: list[int | None] = [*labels_of(classes.protocol, len(names))] if labelled else [None]
        for i, label in enumerate(groups):
            if not going:
                break
            made = of_class(label) if of_class and label is not None else generate
            group = attempt(partial(classes.group, label, made, [*going.values()]))
            for name, metric in [*going.items()]:
                none = isinstance(group, Exception)
                value = group if none else attempt(partial(metric, group, classes.protocol))
                if isinstance(value, Exception):
                    where = "" if label is None else f"class {names[label]!r}: "
                    found[name] = MetricError(f"{where}{value}")
                    del going[name]
                else:
                    found[name][label] = value
            tell("class", i + 1, len(groups))
    return found


def mean_over(found: Mapping[int | None, float] | Exception) -> float:
    """The mean of the groups' values. Raises the reason where there are none, MetricError if not finite."""
    if isinstance(found, Exception):
        raise found
    mean = math.fsum(found.values()) / len(found)
    if not math.isfinite(mean):
        raise MetricError(f"it came out as {mean}")
    return mean


def details(values: Mapping[int, float], classes: list[str], better: str) -> dict[str, Any]:
    """What a mean over classes hides: extremes, median, the worst classes, and each class's value."""
    by_name = {classes[c]: v for c, v in values.items()}
    order = sorted(by_name.items(), key=lambda item: item[1], reverse=better == "lower")
    return {
        "classes": len(by_name),
        "min": min(by_name.values()),
        "median": statistics.median(by_name.values()),
        "max": max(by_name.values()),
        "worst": [[name, value] for name, value in order[:WORST]],
        "per_class": by_name,
    }
