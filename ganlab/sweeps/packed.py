"""``python -m ganlab.sweeps.packed LANES``: several cells of a grid in one process (``per_gpu``).

It asks on stdout, and is told on stdin, one JSON object a line (``work.py`` is the other side). To
``{"event": "want"}`` comes a cell (``cell``, ``words`` of ``ganlab train``, ``log``, ``device``) or null. It
says ``{"event": "ended", "cell": ..., "code": ...}`` with the exit code that a process of its own would have
had, ``say`` with a ``text``, and ``packing`` with what LANES=auto measured and chose.
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
from ganlab.system.environment import screen
from ganlab.system.hardware import device_name, find_device
from ganlab.system.signals import StopFlag
from ganlab.training import trainer
from ganlab.training.resources import Resources


class Pack:
    """The cells of this process: asked for while there is a place, played in turns."""

    def __init__(self, lanes: str, asks: TextIO, told: TextIO, stop: StopFlag) -> None:
        self.places = 1 if lanes == "auto" else int(lanes)
        self.auto = lanes == "auto"
        self.asks, self.told, self.stop = asks, told, stop
        self.shared, self.more = Resources(packed=True), True
        self.words: dict[str, list[str]] = {}
        self.lanes: Lanes | None = None
        self.order: dict[str, Any] | None = None

    def play(self) -> int:
        """All cells that the sweep has for us. Returns 0, or 128 + N after signal N, all being saved."""
        self.ask()
        if self.order is None:
            return 128 + self.stop.signum if self.stop.signum else 0
        device = torch.device("cpu")
        with contextlib.suppress(EnvError):  # the cell itself will tell
            device = find_device(str(self.order["device"]))
        lanes = self.lanes = Lanes(device, self.over)
        try:
            if self.auto:
                self.choose(lanes)
            while True:
                self.fill(self.places)
                if not len(lanes):
                    break
                lanes.round()
            return 128 + self.stop.signum if self.stop.signum else 0
        finally:
            lanes.close()

    def choose(self, lanes: Lanes) -> None:
        """Measure how many at once, on the cells themselves, and tell it."""
        found = choose(lanes, self.fill)
        self.places = found.lanes
        device, measured = device_name(lanes.device), [m._asdict() for m in found.measured]
        self.say("packing", device=device, measured=measured, chosen=found.lanes, why=found.why)
        tried = "; ".join(map(str, found.measured))
        self.say("say", text=f"{found.lanes} at once on {device} ({tried}): {found.why}")

    def fill(self, n: int) -> None:
        """Lanes until ``n`` are active, or none is left; after a signal all go on, to be saved."""
        assert self.lanes is not None
        self.lanes.wake(len(self.lanes) if self.stop.signum else n)
        while len(self.lanes.active) < n:
            self.ask()
            if self.order is None or self.stop.signum:
                return
            self.begin(self.lanes, self.order)

    def ask(self) -> None:
        """The next cell in ``order``, or None; after a None only when a lane has ended."""
        if self.order is None and self.more and not self.stop.signum:
            self.say("want")
            self.order = json.loads(self.told.readline() or "null")
            self.more = self.order is not None

    def begin(self, lanes: Lanes, order: dict[str, Any]) -> None:
        """Add the lane of a cell."""
        name, self.order = str(order["cell"]), None
        self.words[name] = [*map(str, order["words"])]
        out = open(order["log"], "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        lanes.add(Lane(name, self.turns(self.words[name]), lanes.device, screen(out)))

    def turns(self, words: Sequence[str]) -> trainer.Turns:
        """A cell from its words on: its mistakes are its own."""
        composed = compose.compose(words)
        e = compose.build(composed)
        self.shared.adopt(e, composed.tree)
        yield from trainer.turns(
            e, composed.saved, composed.choices, composed.overrides, self.stop, self.shared
        )

    def over(self, lane: Lane, error: BaseException | None) -> None:
        """Tell how a lane ended, in its log and to the sweep; ask for another one."""
        code = 0 if error is None else failures.report_failure(error, ["train", *self.words[lane.name]])
        self.say("ended", cell=lane.name, code=code)
        assert self.lanes is not None
        others = len([other for other in self.lanes.active if other is not lane])
        if others and others < self.places and _out_of_memory(error):
            self.places = others
            self.say(
                "say", text=f"{lane.name}: out of memory among {others} others; {others} at once from now"
            )
        self.more = True
        if lane.out is not None:
            lane.out.close()
            lane.out = None

    def say(self, event: str, **more: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # a sweep that was killed: the runs go on
            self.asks.write(json.dumps({"event": event, "at": now(), **more}) + "\n")
            self.asks.flush()


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether a run ended for lack of memory, which others may have taken."""
    return isinstance(error, Exception) and any(
        isinstance(e, torch.OutOfMemoryError | MemoryError) for e in (error, error.__cause__)
    )


def main(argv: Sequence[str]) -> int:
    """The process: what is printed goes to stderr, stdout is the line to the sweep."""
    asks = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with StopFlag() as stop:
        try:
            return Pack(argv[0], asks, sys.stdin, stop).play()
        except Stopped as stopped:  # before the first run began
            return stopped.code
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
