"""What a run tells of itself: running means of its losses, score entries, and one-line summaries."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import Diverged, EnvError
from ganlab.scores import Scores, is_better

HOST_ALLOCATOR = "DefaultCPUAllocator"  # torch says no more than a RuntimeError with its name
NO_HOST_MEMORY = "batch_size", "out of host memory", "lower it, data_memory_gb or architecture.width"
RUNAWAY = 1e6  # a loss beyond it is told: finite, and yet no training
PRIORITY = ("fid", "kid", "is")  # which score picks the best checkpoint, where a run has several


class Ring:
    """Named scalars of the updates since the last look, in one buffer on the device: (rows, names), float32.

    ``add`` and ``added`` of an update are separate because a recorded update repeats ``add`` without Python;
    looking is the only host sync. ``start``: updates before the first row.
    """

    def __init__(self, rows: int, device: torch.device, start: int = 0) -> None:
        self.size, self.device, self.start = rows, device, start
        self.names: tuple[str, ...] = ()
        self.rows = torch.empty(0, 0, device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.count = 0  # rows since the last look
        self.seen: list[list[float]] = []  # rows that came to the host already

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """On the device: the terms of an update into the next row; the same names every time."""
        if not self.names:
            self.names = tuple(terms)
            self.rows = torch.zeros(self.size, len(terms), device=self.device)
        self.rows.index_copy_(0, self.cursor, torch.stack([terms[n].float() for n in self.names])[None])
        self.cursor.add_(1)

    def added(self) -> None:
        """On the host: there is a row more. A full buffer is looked at."""
        self.count += 1
        if self.count == self.size:
            self._look()

    def means(self, step: int) -> dict[str, float]:
        """Means since the last call; starts anew. Raises Diverged naming the first term and update."""
        self._look()
        rows, self.seen, self.start = self.seen, [], step
        columns = zip(*rows, strict=True)
        return (
            {name: math.fsum(c) / len(c) for name, c in zip(self.names, columns, strict=True)} if rows else {}
        )

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, so that a resumed run logs the same means. Raises Diverged."""
        self._look()
        return {"start": self.start, "names": list(self.names), "rows": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start = int(state["start"])
        if "sums" in state:  # of a checkpoint that kept sums alone
            n, names = int(state["count"]), list(state["sums"])
            self.seen = [[state["sums"][name] / n for name in names] for _ in range(n)]
        else:
            names, self.seen = state["names"], [list(row) for row in state["rows"]]
        if self.seen:
            self.names = tuple(names)
            self.rows = torch.zeros(self.size, len(names), device=self.device)

    def _look(self) -> None:
        if not self.count:
            return
        new, self.count = self.rows[: self.count].tolist(), 0
        self.cursor.zero_()
        for row in new:
            self.seen.append(row)
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    what = f"not finite at step {self.start + len(self.seen)}"
                    raise Diverged(f"loss {name}", what, "its last good checkpoint and its scores are kept")


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
        **({"among_real": scores.among_real} if scores.among_real else {}),
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
    return before is None or is_better(value, before, lead[1])


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
    text += f" (protocol {last['protocol'].get('protocol')} {last['protocol_id']})"
    share = result.get("eval_share")
    return text if share is None else f"{text}; evaluation {share:.1%} of the time"


def runaway(means: Mapping[str, float]) -> dict[str, float]:
    """Losses that have left all bounds without leaving the finite numbers."""
    return {name: value for name, value in means.items() if abs(value) > RUNAWAY}


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Turn running out of memory into one line. The batch is never changed silently: that is another run."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f"the device has no memory for {batch_size}: {str(error).split('. ')[0]}"
        raise EnvError("batch_size", what, "lower it, architecture.width or data_memory_gb") from error
    except MemoryError as error:
        raise EnvError(*NO_HOST_MEMORY) from error
    except RuntimeError as error:
        if HOST_ALLOCATOR in str(error):
            raise EnvError(*NO_HOST_MEMORY) from error
        raise


def require_scores(progress: Mapping[str, Any]) -> None:
    """Raise ValueError unless the scores told so far are what ``record.entry`` makes."""
    for key in ("last", "best"):
        told = progress.get(key)
        if told is not None and not (type(told["step"]) is int and isinstance(told["values"], dict)):
            raise ValueError(f"progress.{key} is no evaluation")
