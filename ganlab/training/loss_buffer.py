"""Buffer losses on the device between log lines; detect losses out of bounds and out-of-memory errors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import Diverged, EnvError

HOST_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a plain RuntimeError with this name

NO_HOST_MEMORY = "batch_size", "out of host memory", "lower it, data_memory_gb or architecture.width"

RUNAWAY = 1e6  # a finite loss beyond it is reported: training has failed


class LossBuffer:
    """Named scalars of the updates since the last read, in one device buffer: (rows, names), float32.

    ``add`` and ``added`` are separate because a recorded update replays ``add`` without Python; reading is
    the only host sync. ``start``: updates before the first row.
    """

    def __init__(self, rows: int, device: torch.device, start: int = 0) -> None:
        self.size, self.device, self.start = rows, device, start
        self.names: tuple[str, ...] = ()
        self.rows = torch.empty(0, 0, device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.count = 0  # rows since the last read
        self.seen: list[list[float]] = []  # rows that are on the host already

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """On the device: write the terms of an update, always of the same names, into the next row."""
        if not self.names:
            self.names = tuple(terms)
            self.rows = torch.zeros(self.size, len(terms), device=self.device)
        self.rows.index_copy_(0, self.cursor, torch.stack([terms[n].float() for n in self.names])[None])
        self.cursor.add_(1)

    def added(self) -> None:
        """On the host: count one more row. A full buffer is read."""
        self.count += 1
        if self.count == self.size:
            self._read()

    def means(self, step: int) -> dict[str, float]:
        """Means since the last call; resets. Raises Diverged, naming the first such loss and update."""
        self._read()
        rows, self.seen, self.start = self.seen, [], step
        columns = zip(*rows, strict=True)
        return (
            {name: math.fsum(c) / len(c) for name, c in zip(self.names, columns, strict=True)} if rows else {}
        )

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint, so that a resumed run logs the same means. Raises Diverged."""
        self._read()
        return {"start": self.start, "names": list(self.names), "rows": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.start = int(state["start"])
        if "sums" in state:  # an old checkpoint, which holds sums
            n, names = int(state["count"]), list(state["sums"])
            self.seen = [[state["sums"][name] / n for name in names] for _ in range(n)]
        else:
            names, self.seen = state["names"], [list(row) for row in state["rows"]]
        if self.seen:
            self.names = tuple(names)
            self.rows = torch.zeros(self.size, len(names), device=self.device)

    def _read(self) -> None:
        if not self.count:
            return
        new, self.count = self.rows[: self.count].tolist(), 0
        self.cursor.zero_()
        for row in new:
            self.seen.append(row)
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    what = f"not finite at step {self.start + len(self.seen)}"
                    raise Diverged(f"loss {name}", what, "the last good checkpoint and the scores are kept")


def num_parameters(net: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in net.parameters())


def runaway(means: Mapping[str, float]) -> dict[str, float]:
    """Losses that are finite but out of bounds."""
    return {name: value for name, value in means.items() if abs(value) > RUNAWAY}


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Turn out-of-memory errors into EnvError. The batch size is never reduced: that changes the run."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = f"out of device memory with {batch_size}: {str(error).split('. ')[0]}"
        raise EnvError("batch_size", what, "lower it, architecture.width or data_memory_gb") from error
    except MemoryError as error:
        raise EnvError(*NO_HOST_MEMORY) from error
    except RuntimeError as error:
        if HOST_ALLOCATOR in str(error):
            raise EnvError(*NO_HOST_MEMORY) from error
        raise
