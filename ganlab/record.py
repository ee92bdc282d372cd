"""What a run tells of itself: running means of its losses, score entries, and one-line summaries."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import Diverged, EnvError
from ganlab.scores import Scores

PRIORITY = ("fid", "kid", "is")  # which score picks the best checkpoint, where a run has several


class Tally:
    """Sums of named scalars on the device; one host sync when they are read.

    A term that was not finite at any step makes its sum so: ``means`` then raises ``Diverged``.
    """

    def __init__(self, start: int) -> None:
        self.start, self.sums, self.count = start, {}, 0  # type: tuple[int, dict[str, Tensor], int]

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += 1

    def read(self, step: int) -> dict[str, float]:
        """The sums. Raises Diverged naming the first term that is not finite, and the steps."""
        if not self.sums:
            return {}
        sums = dict(zip(self.sums, torch.stack(list(self.sums.values())).tolist(), strict=True))
        for name, value in sums.items():
            if not math.isfinite(value):
                what = f"not finite between steps {self.start + 1} and {step}"
                raise Diverged(f"loss {name}", what, "its last good checkpoint and its scores are kept")
        return sums

    def means(self, step: int) -> dict[str, float]:
        """Means since the last call; starts anew. Raises Diverged."""
        means = {name: value / self.count for name, value in self.read(step).items()}
        self.start, self.sums, self.count = step, {}, 0
        return means

    def state_dict(self, step: int) -> dict[str, Any]:
        """For the checkpoint, so that a resumed run logs the same means. Raises Diverged."""
        return {"start": self.start, "count": self.count, "sums": self.read(step)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.start, self.count = int(state["start"]), int(state["count"])
        self.sums = {name: torch.tensor(value, device=device) for name, value in state["sums"].items()}


def size(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in net.parameters())


def entry(scores: Scores, every_class: bool = False) -> dict[str, Any]:
    """How ``result.json`` holds scores: step, values, the full protocol and its id.

    Scores of groups have ``details`` too, their own protocol and id among them; those averaged over classes
    tell extremes, median and the worst, and with ``every_class`` each class's value.
    """
    details = {
        name: {k: v for k, v in told.items() if every_class or k != "per_class"}
        for name, told in scores.details.items()
    }
    return {
        "step": scores.step,
        "values": scores.values,
        "protocol": scores.record,
        "protocol_id": scores.protocol_id,
        "seconds": round(scores.seconds, 3),
        **({"details": details} if details else {}),
    }


def leading(better: Mapping[str, str]) -> tuple[str, str] | None:
    """(name, direction) of the score that picks the best checkpoint; None where there is no score."""
    order = sorted(better, key=lambda n: next((i for i, p in enumerate(PRIORITY) if n.split("_")[0] == p), 9))
    return (order[0], better[order[0]]) if order else None


def improves(
    new: Mapping[str, float | None], old: Mapping[str, float | None] | None, better: Mapping[str, str]
) -> bool:
    """Whether ``new`` beats ``old`` by the leading score. None never wins, and never hides a later best."""
    lead = leading(better)
    if lead is None or (value := new.get(lead[0])) is None:
        return False
    before = old.get(lead[0]) if old else None
    return before is None or (value < before if lead[1] == "lower" else value > before)


def brief(values: Mapping[str, float | None]) -> str:
    """``fid_cifar 12.3, is_cifar 7.41 +- 0.05`` on one line."""
    told = []
    for name, value in values.items():
        if "_std" in name:
            continue
        stem, _, suffix = name.partition("_")
        spread = values.get(f"{stem}_std" + (f"_{suffix}" if suffix else ""))
        told.append(
            f"{name} "
            + ("none" if value is None else f"{value:.4g}")
            + (f" +- {spread:.2g}" if spread else "")
        )
    return ", ".join(told)


def told(result: Mapping[str, Any]) -> str:
    """The scores of a result, last and best, on one line."""
    scores = result.get("scores", {})
    last, best = scores.get("last"), scores.get("best")
    if not last:
        return "no scores"
    text = f"step {last['step']}: {brief(last['values'])}"
    if best and best["step"] != last["step"]:
        text += f"; best at step {best['step']}: {brief(best['values'])}"
    return f"{text} (protocol {last['protocol'].get('protocol')} {last['protocol_id']})"


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Turn running out of memory into one line. The batch is never changed silently: that is another run."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f"the device has no memory for {batch_size}: {str(error).split('. ')[0]}"
        raise EnvError("batch_size", what, "lower it, architecture.width or data_memory_gb") from error
    except MemoryError as error:
        raise EnvError("batch_size", "out of host memory", "lower it, or data_memory_gb") from error
