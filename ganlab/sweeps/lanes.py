"""Lanes: several runs in one process, updated in turn, each with the same result as alone.

Training is a function of (seed, step) and every update seeds torch's generators, so interleaving updates
changes nothing. On a GPU each lane has its own stream, so its kernels can fill what others leave idle.
Process-wide settings (precision, determinism, threads, device) must be equal in all lanes.
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

BLOCKS, WARM = 3, 2  # timed blocks of rounds, and warm-up rounds
MAX_LANES = 8
BLOCK_S = 0.3  # minimum seconds of a block
GAIN = 1.1  # minimum speedup for doubling the number of lanes
SPARE = 1.25  # free memory required, in multiples of what the lanes use: evaluations need more for a while


class Lane:
    """One run: its turns, CUDA stream, and output file (None: the process's own stdout and stderr)."""

    def __init__(
        self, name: str, turns: Generator[Run, None, None], device: torch.device, out: TextIO | None
    ) -> None:
        self.name, self.turns, self.device, self.out = name, turns, device, out
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.run: Run | None = None
        self.began = self.paused_at = time.perf_counter()
        self.alone_s: float | None = None  # seconds of an update with no other lane active

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Inside, kernels go to the lane's stream and output to its file."""
        with contextlib.ExitStack() as stack:
            if self.out is not None:
                stack.enter_context(contextlib.redirect_stdout(self.out))
                stack.enter_context(contextlib.redirect_stderr(self.out))
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            yield

    def turn(self) -> bool:
        """Do one update; the first turn builds the run. False: it is finished. Raises what the run raises."""
        evaluated = None if self.run is None else self.run.progress["evaluated"]
        with self.context():
            self.run = next(self.turns, None)
            if self.stream is not None and (self.run is None or self.run.progress["evaluated"] != evaluated):
                torch.cuda.synchronize(self.device)  # other lanes use what it has computed for all
        return self.run is not None


class Lanes:
    """The lanes of a process on ``device``. ``on_end(lane, error)`` is called when one ends."""

    def __init__(self, device: torch.device, on_end: Callable[[Lane, BaseException | None], None]) -> None:
        self.device, self.on_end = device, on_end
        self.active: list[Lane] = []
        self.paused: list[Lane] = []  # started, and waiting to become active

    def __len__(self) -> int:
        return len(self.active) + len(self.paused)

    def add(self, lane: Lane) -> bool:
        """Build a run and make it active; False if it ended at once."""
        if not self._turn(lane):
            return False
        self.active.append(lane)
        return True

    def round(self) -> None:
        """Do one update of each active lane."""
        for lane in self.active.copy():
            self.step(lane)

    def step(self, lane: Lane) -> bool:
        """Do one update of an active lane; False if it has ended, and is no longer active."""
        if lane.run is not None:
            lane.run.record.packed = max(lane.run.record.packed, len(self.active))
        continues = self._turn(lane)
        if not continues:
            self.active.remove(lane)
        return continues

    def pause(self, num_active: int) -> None:
        """Keep ``num_active`` lanes active; the others wait with their state in memory."""
        for lane in self.active[num_active:]:
            lane.paused_at = time.perf_counter()
        self.paused[:0] = self.active[num_active:]
        del self.active[num_active:]

    def resume(self, num_active: int) -> None:
        """Resume paused lanes, until ``num_active`` are active."""
        while self.paused and len(self.active) < num_active:
            lane = self.paused.pop(0)
            if lane.run is not None:
                lane.run.idle_s += time.perf_counter() - lane.paused_at
            self.active.append(lane)

    def close(self) -> None:
        """Abandon all lanes: their folders are unlocked, and their last checkpoints remain."""
        for lane in self.active + self.paused:
            with lane.context():
                lane.turns.close()
        self.active, self.paused = [], []

    def _turn(self, lane: Lane) -> bool:
        error: BaseException | None = None
        try:
            if lane.turn():
                return True
        except Exception as caught:
            error = caught
        with lane.context():
            self.on_end(lane, error)
        if error is not None:  # its traceback keeps the run's tensors alive
            error.__traceback__ = error.__cause__ = error.__context__ = None
        lane.run = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return False


# ---- choosing the number of lanes


class Throughput(NamedTuple):
    """Updates per second of several lanes in total, and the speedup over running them one after another."""

    lanes: int
    updates_per_s: float
    gain: float

    def __str__(self) -> str:
        return f"{self.lanes}: {self.updates_per_s:.3g} updates/s, {self.gain:.2f}x"


class Choice(NamedTuple):
    """The chosen number of lanes, the measurements, and the reason for not choosing more."""

    lanes: int
    measured: list[Throughput]
    reason: str


def choose(
    lanes: Lanes, fill: Callable[[int], None], free: Callable[[], float | None] | None = None
) -> Choice:
    """Choose the number of lanes by timing 1, 2, 4 and 8 on real updates; surplus lanes are then paused.

    ``fill(n)`` adds lanes until n are active or no run is left. ``free()``: free memory in bytes, or None if
    unknown. A round is compared with the same updates one after another, so runs may differ in cost.
    """
    device, free = lanes.device, free or functools.partial(free_memory, lanes.device)
    measured: list[Throughput] = []
    free_at_start, reason = free(), f"{MAX_LANES} is the maximum"
    try:
        while (num_lanes := 2 * measured[-1].lanes if measured else 1) <= MAX_LANES:
            num_active, left = len(lanes.active), free()
            if (
                measured
                and free_at_start is not None
                and left is not None
                and SPARE * (free_at_start - left) > left
            ):
                reason = f"{num_lanes} lanes would not fit into memory"
                break
            fill(num_lanes)
            if len(lanes.active) == num_active:
                reason = "no more runs are waiting"
                break
            updates = [functools.partial(_update, lanes, lane) for lane in lanes.active]
            for lane, update in zip(lanes.active, updates, strict=True):
                lane.alone_s = lane.alone_s or seconds_of(update, device)
            alone = [lane.alone_s or 0.0 for lane in lanes.active]
            new = measure(updates, alone, device) if measured else Throughput(1, 1 / alone[0], 1.0)
            if measured and new.gain < GAIN * measured[-1].gain:
                reason = (
                    f"{new.lanes} lanes give {new.gain:.2f}x, less than {GAIN:g} times the speed of fewer"
                )
                return Choice(measured[-1].lanes, [*measured, new], reason)
            measured.append(new)
    except _LaneEndedError:
        reason = "a run ended during the measurement"
    finally:
        chosen = measured[-1].lanes if measured else 1
        lanes.pause(chosen)
    return Choice(chosen, measured, reason)


class _LaneEndedError(Exception):
    """A lane ended while it was measured."""


def _update(lanes: Lanes, lane: Lane) -> None:
    if lane not in lanes.active or not lanes.step(lane):
        raise _LaneEndedError


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``work``: the median over a few blocks of calls, after a warm-up."""

    def timed(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    if device.type == "cuda":
        timed(engine.WARM + 1)  # until the CUDA graph is recorded
    one = timed(WARM) / WARM
    calls = max(1, round(BLOCK_S / max(one, 1e-6)))
    return statistics.median(timed(calls) / calls for _ in range(BLOCKS))


def measure(
    updates: Sequence[Callable[[], object]], alone_s: Sequence[float], device: torch.device
) -> Throughput:
    """Time a round of ``updates``; ``alone_s``: seconds of each with no other lane active."""

    def one_round() -> None:
        for update in updates:
            update()

    seconds = seconds_of(one_round, device)
    return Throughput(len(updates), len(updates) / seconds, sum(alone_s) / seconds)


def free_memory(device: torch.device) -> float | None:
    """Free memory in bytes, of the GPU or of the machine; None if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return None
