"""Objects that the runs of one process share: images, feature extractor, reference statistics.

Runs that are co-scheduled in one process share one ``Resources``: parts with equal configs are one object,
loaded, moved to the device and computed once. A single run has its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ganlab.data.base import SampleSet
from ganlab.evaluation.evaluator import Evaluator
from ganlab.experiment import Experiment
from ganlab.metrics.protocol import Protocol
from ganlab.system.paths import cache_dir
from ganlab.training.validation import split_of


class Resources:
    """Cache of objects by their config. ``packed``: several runs are active, and none may change process-wide
    settings."""

    def __init__(self, packed: bool = False) -> None:
        self.packed = packed
        self._parts: dict[str, Any] = {}
        self._images: dict[tuple[int, str], SampleSet] = {}
        self._evaluators: dict[tuple[Any, ...], Evaluator] = {}

    def adopt(self, e: Experiment, tree: Mapping[str, Any]) -> None:
        """Give ``e`` the dataset and scoring objects of an earlier run with the same config (``tree``).

        Both live as long as this object, so their ids stay unique.
        """
        e.dataset = self._parts.setdefault(_key("dataset", tree), e.dataset)
        e.metric = self._parts.setdefault(_key("metric", tree), e.metric)

    def images(self, e: Experiment) -> SampleSet:
        """The training images, loaded once per dataset. Raises DataError or EnvError."""
        return self._split(e, e.dataset.split)

    def held_out(self, e: Experiment) -> SampleSet | None:
        """The images of ``validation``, or None if it is off. Raises as ``images`` does, and ConfigError."""
        split = split_of(e)
        return None if split is None else self._split(e, split)

    def _split(self, e: Experiment, split: str) -> SampleSet:
        self._parts.setdefault(f"dataset {id(e.dataset)}", e.dataset)
        key = id(e.dataset), split
        if key not in self._images:
            self._images[key] = e.dataset.load(split=split)
        return self._images[key]

    def evaluator(self, e: Experiment, protocol: Protocol, device: torch.device) -> Evaluator:
        """The evaluator of a run under ``protocol``; it loads nothing yet."""
        self._parts.setdefault(f"dataset {id(e.dataset)}", e.dataset)
        self._parts.setdefault(f"metric {id(e.metric)}", e.metric)
        key = (id(e.metric), id(e.dataset), protocol is e.metric.protocol, device)
        if key not in self._evaluators:
            evaluator = Evaluator(
                e.metric.extractor, e.metric.scores, protocol, e.dataset, device, cache_dir()
            )
            self._evaluators[key] = evaluator
        return self._evaluators[key]


def _key(part: str, tree: Mapping[str, Any]) -> str:
    return f"{part}: {json.dumps(tree[part], sort_keys=True, default=str)}"
