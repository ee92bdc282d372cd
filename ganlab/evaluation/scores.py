"""The result of an evaluation and its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SUSPICIOUS = "the score of other real samples: G may have memorized the training data, or the metric is wrong"


def is_better(value: float, other: float, direction: str) -> bool:
    """Whether a score beats another; ``direction``: ``lower``, ``higher``, or empty where neither is good."""
    return value < other if direction == "lower" else direction == "higher" and value > other


def suspicions(
    values: Mapping[str, float | None], among_real: Mapping[str, float], better: Mapping[str, str]
) -> list[str]:
    """A warning for each score that is better than that of other real samples."""
    return [
        f"{name}: {value:.4g} is better than {bound:.4g}, {SUSPICIOUS}"
        for name, bound in among_real.items()
        if (value := values.get(name)) is not None and is_better(value, bound, better[name])
    ]


@dataclass(frozen=True)
class Scores:
    """The result of one evaluation. Missing values are None; ``warnings`` explains them.

    step: generator updates. values: by name, the extractor's suffix included. record: everything beside G
    that can move them; protocol_id: its digest. seconds: wall time, reference statistics included. details:
    of group metrics' scores, by name: a ``protocol`` and ``protocol_id`` of their own, and of those averaged
    over classes extremes, median, the ``worst`` classes and all of them (``per_class``). among_real: what
    other real samples would score, by name, where estimated.
    """

    step: int
    values: dict[str, float | None]
    record: dict[str, Any]
    protocol_id: str
    seconds: float
    warnings: list[str] = field(default_factory=list)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    among_real: dict[str, float] = field(default_factory=dict)

    @property
    def own_ids(self) -> dict[str, str]:
        """The protocol ids of the scores that have their own, by name."""
        return {name: entry["protocol_id"] for name, entry in self.details.items()}
