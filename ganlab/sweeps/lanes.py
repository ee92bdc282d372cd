"""Several runs in one process, an update of each in turn: lanes. Each is what it would be alone.

Training is a function of (seed, step) and every update seeds torch's generators, so turns between updates
change nothing. On a GPU each lane has a stream of its own, and its kernels fill what the others' leave idle.
What is the process's (precision, determinism, threads, device) must be equal in all lanes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from ganlab.training import engine
from ganlab.training.trainer import Run

BLOCKS, WARM = 3, 2  # timed blocks of rounds, and rounds before them
MOST = 8  # lanes that are tried
BLOCK_S = 0.3  # seconds of a block, at least
GAIN = 1.1  # twice as many lanes must be worth this much, or they are not taken
SPARE = 1.25  # a lane is let in if so many times its memory is free: evaluations need some for a while


class Lane:
    """One run: its turns, its stream, and the file that hears what it says (None: the process's streams)."""

    def __init__(
        self, name: str, turns: Generator[Run, None, None], device: torch.device, out: TextIO | None
    ) -> None:
        self.name, self.turns, self.device, self.out = name, turns, device, out
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.run: Run | None = None
        self.began = self.rested = time.perf_counter()
        self.alone_s: float | None = None  # seconds of an update with the device to itself

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """On the lane's stream, its words going where they belong."""
        with contextlib.ExitStack() as stack:
            if self.out is not None:
                stack.enter_context(contextlib.redirect_stdout(self.out))
                stack.enter_context(contextlib.redirect_stderr(self.out))
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            yield

    def turn(self) -> bool:
        """One update (the first turn builds the run). False: it is finished. Raises what the run raises."""
        seen = None if self.run is None else self.run.progress["evaluated"]
        with self.inside():
            self.run = next(self.turns, None)
            if self.stream is not None and (self.run is None or self.run.progress["evaluated"] != seen):
                torch.cuda.synchronize(self.device)  # what it has made for all must be there for all
        return self.run is not None


class Lanes:
    """The lanes of a process on ``device``. ``over`` hears, inside it, of each that ends and its error."""

    def __init__(self, device: torch.device, over: Callable[[Lane, BaseException | None], None]) -> None:
        self.device, self.over = device, over
        self.active: list[Lane] = []
        self.resting: list[Lane] = []  # begun, and waiting for a place

    def __len__(self) -> int:
        return len(self.active) + len(self.resting)

    def add(self, lane: Lane) -> bool:
        """Build a run and let it take part; False if it was over at once."""
        if not self._turn(lane):
            return False
        self.active.append(lane)
        return True

    def round(self) -> None:
        """One update of each active lane."""
        for lane in self.active.copy():
            self.step(lane)

    def step(self, lane: Lane) -> bool:
        """One update of an active lane; False if it is over, and no longer among them."""
        if lane.run is not None:
            lane.run.record.packed = max(lane.run.record.packed, len(self.active))
        going = self._turn(lane)
        if not going:
            self.active.remove(lane)
        return going

    def rest(self, places: int) -> None:
        """Let only ``places`` lanes go on; the others wait with their state in memory."""
        for lane in self.active[places:]:
            lane.rested = time.perf_counter()
        self.resting[:0] = self.active[places:]
        del self.active[places:]

    def wake(self, places: int) -> None:
        """Let waiting lanes go on, up to ``places`` active ones."""
        while self.resting and len(self.active) < places:
            lane = self.resting.pop(0)
            if lane.run is not None:
                lane.run.idle_s += time.perf_counter() - lane.rested
            self.active.append(lane)

    def close(self) -> None:
        """Give up all lanes: their folders are free, their last checkpoints stand."""
        for lane in self.active + self.resting:
            with lane.inside():
                lane.turns.close()
        self.active, self.resting = [], []

    def _turn(self, lane: Lane) -> bool:
        error: BaseException | None = None
        try:
            if lane.turn():
                return True
        except Exception as caught:
            error = caught
        with lane.inside():
            self.over(lane, error)
        if error is not None:  # its traceback holds the run's tensors
            error.__traceback__ = error.__cause__ = error.__context__ = None
        lane.run = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return False


# ---- how many at once


class Measured(NamedTuple):
    """So many lanes: updates a second of all together, and how many times one after the other that is."""

    lanes: int
    updates_per_s: float
    gain: float

    def __str__(self) -> str:
        return f"{self.lanes}: {self.updates_per_s:.3g} updates/s, {self.gain:.2f}x"


class Choice(NamedTuple):
    """How many lanes, by which measurements, and why no more."""

    lanes: int
    measured: list[Measured]
    why: str


def choose(
    lanes: Lanes, fill: Callable[[int], None], free: Callable[[], float | None] | None = None
) -> Choice:
    """How many lanes pay: 1, 2, 4, 8 are measured on updates that count; those over the choice then rest.

    ``fill(n)`` adds lanes until n are active, or no run is left. ``free()``: bytes of memory that are free,
    None where nobody knows. A round is compared with the same updates one after the other, so it does not
    matter that runs differ in cost.
    """
    device, free = lanes.device, free or functools.partial(free_memory, lanes.device)
    measured: list[Measured] = []
    at_first, why = free(), f"{MOST} are the most that are tried"
    try:
        while (wanted := 2 * measured[-1].lanes if measured else 1) <= MOST:
            before, left = len(lanes.active), free()
            if measured and at_first is not None and left is not None and SPARE * (at_first - left) > left:
                why = f"{wanted} lanes would not fit into the memory"
                break
            fill(wanted)
            if len(lanes.active) == before:
                why = "no more runs are waiting"
                break
            updates = [functools.partial(_must_go_on, lanes, lane) for lane in lanes.active]
            for lane, update in zip(lanes.active, updates, strict=True):
                lane.alone_s = lane.alone_s or seconds_of(update, device)
            alone = [lane.alone_s or 0.0 for lane in lanes.active]
            found = measure(updates, alone, device) if measured else Measured(1, 1 / alone[0], 1.0)
            if measured and found.gain < GAIN * measured[-1].gain:
                why = f"{found.lanes} lanes give {found.gain:.2f}x, less than {GAIN:g} times what fewer give"
                return Choice(measured[-1].lanes, [*measured, found], why)
            measured.append(found)
    except _OverError:
        why = "a run ended meanwhile"
    finally:
        chosen = measured[-1].lanes if measured else 1
        lanes.rest(chosen)
    return Choice(chosen, measured, why)


class _OverError(Exception):
    """A lane ended while it was measured."""


def _must_go_on(lanes: Lanes, lane: Lane) -> None:
    if lane not in lanes.active or not lanes.step(lane):
        raise _OverError


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``work``: the median of a few blocks of calls, after some that are not timed."""

    def timed(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    if device.type == "cuda":
        timed(engine.WARM + 1)  # until updates are recorded
    one = timed(WARM) / WARM
    calls = max(1, round(BLOCK_S / max(one, 1e-6)))
    return statistics.median(timed(calls) / calls for _ in range(BLOCKS))


def measure(
    updates: Sequence[Callable[[], object]], alone_s: Sequence[float], device: torch.device
) -> Measured:
    """Time a round of ``updates``; ``alone_s``: seconds of each with the device to itself."""

    def one_round() -> None:
        for update in updates:
            update()

    seconds = seconds_of(one_round, device)
    return Measured(len(updates), len(updates) / seconds, sum(alone_s) / seconds)


def free_memory(device: torch.device) -> float | None:
    """Free memory in bytes, of the GPU or of the machine; None where it can't be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return None
