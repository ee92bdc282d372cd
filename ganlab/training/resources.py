"""Objects that a run needs more than once: images, feature extractor, reference statistics."""

from __future__ import annotations

from typing import Any

import torch

from ganlab.data.base import SampleSet
from ganlab.evaluation.evaluator import Evaluator
from ganlab.experiment import Experiment
from ganlab.metrics.protocol import Protocol
from ganlab.system.paths import cache_dir
from ganlab.training.validation import split_of


class Resources:
    """Cache of a run's images and evaluators."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}
        self._images: dict[tuple[int, str], SampleSet] = {}
        self._evaluators: dict[tuple[Any, ...], Evaluator] = {}

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
