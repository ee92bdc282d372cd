"""What an evaluation found, and under which protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """What one evaluation found. A value is None where there was none; ``warnings`` says why.

    step: generator updates. values: by name, the extractor's suffix included. record: everything beside G
    that can move them; protocol_id: its digest. seconds: wall time, reference statistics included. details:
    of group metrics' scores, by name: a ``protocol`` and ``protocol_id`` of their own, and of those averaged
    over classes extremes, median, the ``worst`` classes and all of them (``per_class``).
    """

    step: int
    values: dict[str, float | None]
    record: dict[str, Any]
    protocol_id: str
    seconds: float
    warnings: list[str] = field(default_factory=list)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def own_ids(self) -> dict[str, str]:
        """The protocol ids of the scores that have their own, by name."""
        return {name: told["protocol_id"] for name, told in self.details.items()}
