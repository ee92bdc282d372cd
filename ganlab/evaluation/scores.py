"""What an evaluation found, and under which protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SUSPICIOUS = "what other real samples would have: G has learned its data by heart, or the measure is wrong"


def is_better(value: float, other: float, direction: str) -> bool:
    """Whether a score beats another; ``direction``: ``lower``, ``higher``, or empty where neither is good."""
    return value < other if direction == "lower" else direction == "higher" and value > other


def suspicions(
    values: Mapping[str, float | None], among_real: Mapping[str, float], better: Mapping[str, str]
) -> list[str]:
    """A line for each score that is better than what other real samples would have, both by name."""
    return [
        f"{name}: {value:.4g} is better than {bound:.4g}, {SUSPICIOUS}"
        for name, bound in among_real.items()
        if (value := values.get(name)) is not None and is_better(value, bound, better[name])
    ]


@dataclass(frozen=True)
class Scores:
    """What one evaluation found. A value is None where there was none; ``warnings`` says why.

    step: generator updates. values: by name, the extractor's suffix included. record: everything beside G
    that can move them; protocol_id: its digest. seconds: wall time, reference statistics included. details:
    of group metrics' scores, by name: a ``protocol`` and ``protocol_id`` of their own, and of those averaged
    over classes extremes, median, the ``worst`` classes and all of them (``per_class``). among_real: what
    other real samples would score, by name, where that is known.
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
        return {name: told["protocol_id"] for name, told in self.details.items()}
