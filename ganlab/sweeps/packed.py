"""``python -m ganlab.sweeps.packed LANES``: run several cells of a grid in one process (``per_gpu=``).

It writes events to stdout and reads cells from stdin, one JSON object a line (``scheduler.py`` is the other
side). ``{"event": "want"}`` requests a cell: the reply has ``cell``, ``words`` (the arguments of
``ganlab train``), ``log`` and ``device``, or is null. ``{"event": "ended", "cell": ..., "code": ...}`` has
the exit code that the cell's own process would have had; ``say`` has a ``text`` to print; ``packing`` has
what LANES=auto measured and chose.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import torch

from ganlab.config import compose
from ganlab.errors import EnvError, Stopped
from ganlab.runs.provenance import now
from ganlab.sweeps.lanes import Lane, Lanes, choose
from ganlab.system import failures
from ganlab.system.environment import redact_stream
from ganlab.system.hardware import device_name, find_device
from ganlab.system.signals import StopFlag
from ganlab.training import trainer
from ganlab.training.resources import Resources


class Pack:
    """The cells of this process: requested while a lane is free, updated in turn."""

    def __init__(self, lanes: str, events: TextIO, replies: TextIO, stop: StopFlag) -> None:
        self.num_lanes = 1 if lanes == "auto" else int(lanes)
        self.auto = lanes == "auto"
        self.events, self.replies, self.stop = events, replies, stop
        self.shared, self.more = Resources(packed=True), True
        self.overrides: dict[str, list[str]] = {}
        self.lanes: Lanes | None = None
        self.next_cell: dict[str, Any] | None = None

    def run(self) -> int:
        """Run all cells that the sweep sends. Returns 0, or 128 + N if signal N stopped them."""
        self.request()
        if self.next_cell is None:
            return 128 + self.stop.signum if self.stop.signum else 0
        device = torch.device("cpu")
        with contextlib.suppress(EnvError):  # reported when the cell runs
            device = find_device(str(self.next_cell["device"]))
        lanes = self.lanes = Lanes(device, self.on_end)
        try:
            if self.auto:
                self.choose(lanes)
            while True:
                self.fill(self.num_lanes)
                if not len(lanes):
                    break
                lanes.round()
            return 128 + self.stop.signum if self.stop.signum else 0
        finally:
            lanes.close()

    def choose(self, lanes: Lanes) -> None:
        """Choose the number of lanes by timing the cells themselves, and report it."""
        choice = choose(lanes, self.fill)
        self.num_lanes = choice.lanes
        device, measured = device_name(lanes.device), [m._asdict() for m in choice.measured]
        self.send("packing", device=device, measured=measured, chosen=choice.lanes, why=choice.reason)
        timings = "; ".join(map(str, choice.measured))
        self.send("say", text=f"{choice.lanes} at once on {device} ({timings}): {choice.reason}")

    def fill(self, n: int) -> None:
        """Add lanes until ``n`` are active or no cell is left; after a signal resume all, to save them."""
        assert self.lanes is not None
        self.lanes.resume(len(self.lanes) if self.stop.signum else n)
        while len(self.lanes.active) < n:
            self.request()
            if self.next_cell is None or self.stop.signum:
                return
            self.begin(self.lanes, self.next_cell)

    def request(self) -> None:
        """Set ``next_cell``, None if there is none; after that, request again only once a lane has ended."""
        if self.next_cell is None and self.more and not self.stop.signum:
            self.send("want")
            self.next_cell = json.loads(self.replies.readline() or "null")
            self.more = self.next_cell is not None

    def begin(self, lanes: Lanes, cell: dict[str, Any]) -> None:
        """Add a lane for a cell."""
        name, self.next_cell = str(cell["cell"]), None
        self.overrides[name] = [*map(str, cell["words"])]
        out = open(cell["log"], "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        lanes.add(Lane(name, self.turns(self.overrides[name]), lanes.device, redact_stream(out)))

    def turns(self, overrides: Sequence[str]) -> trainer.Turns:
        """Compose and train a cell; errors of its config are raised at the first turn."""
        composed = compose.compose(overrides)
        e = compose.build(composed)
        self.shared.adopt(e, composed.tree)
        yield from trainer.turns(
            e, composed.saved, composed.choices, composed.overrides, self.stop, self.shared
        )

    def on_end(self, lane: Lane, error: BaseException | None) -> None:
        """Report how a lane ended, in its log and to the sweep."""
        code = 0 if error is None else failures.report_failure(error, ["train", *self.overrides[lane.name]])
        self.send("ended", cell=lane.name, code=code)
        assert self.lanes is not None
        others = len([other for other in self.lanes.active if other is not lane])
        if others and others < self.num_lanes and _out_of_memory(error):
            self.num_lanes = others
            text = f"{lane.name}: out of memory beside {others} others; {others} at once from now on"
            self.send("say", text=text)
        self.more = True
        if lane.out is not None:
            lane.out.close()
            lane.out = None

    def send(self, event: str, **more: Any) -> None:
        """Write an event to the sweep."""
        with contextlib.suppress(OSError, ValueError):  # the runs continue even if the sweep was killed
            self.events.write(json.dumps({"event": event, "at": now(), **more}) + "\n")
            self.events.flush()


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether a run ended because it ran out of memory, possibly because of other lanes."""
    return isinstance(error, Exception) and any(
        isinstance(e, torch.OutOfMemoryError | MemoryError) for e in (error, error.__cause__)
    )


def main(argv: Sequence[str]) -> int:
    """Run the process. Stdout carries the events, so what is printed goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with StopFlag() as stop:
        try:
            return Pack(argv[0], events, sys.stdin, stop).run()
        except Stopped as stopped:  # before the first run started
            return stopped.code
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
