"""Long runs: memory, descriptors, threads and the time of a step stay what they were."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from .base import Case, Figure, Forked, Numbers, tiny

SAMPLES = 100  # evenly over the run
WARM = 10  # per cent of the run after which nothing may grow any more


def watched(steps: int, note: Path) -> Callable[[], None]:
    """Runs in the child: every hundredth of the run writes down memory, descriptors, threads and CPU time."""

    def patch() -> None:
        from ganlab.training.engine import Engine

        page, update, every = os.sysconf("SC_PAGE_SIZE"), Engine.update, max(steps // SAMPLES, 1)
        file = open(note, "a")  # noqa: SIM115 - as long as the process

        def updated(self: Engine, step: int) -> None:
            update(self, step)
            if step and step % every == 0:
                rss = int(Path("/proc/self/statm").read_text().split()[1]) * page
                counts = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
                print(step, rss, *counts, time.process_time(), file=file, flush=True)

        Engine.update = updated  # type: ignore[method-assign]

    return patch


def soak(steps: int) -> Callable[[Path], Numbers]:
    """A run of ``steps`` updates with logs, checkpoints, grids and evaluations all the way."""

    def check(place: Path) -> Numbers:
        note = place / "note"
        words = tiny(
            f"steps={steps}",
            f"save_every={steps // 40}",
            f"eval_every={steps // 20}",
            f"sample_every={steps // 20}",
            f"log_every={max(steps // 200, 1)}",
            "metric=[is,fid]",
            "architecture.width=0.02",
            "ema=0.99",
        )
        done = Forked(*words, cwd=place, before=watched(steps, note)).wait(3000)
        assert done.code == 0, done.err[-300:]
        rows = [[float(v) for v in line.split()] for line in note.read_text().splitlines()]
        assert len(rows) >= SAMPLES - 2, f"{len(rows)} samples"
        rows = rows[len(rows) * WARM // 100 :]
        growth = 100 * (rows[-1][1] / rows[0][1] - 1)
        times = [(b[4] - a[4]) / (b[0] - a[0]) for a, b in pairwise(rows)]
        third = len(times) // 3
        drift = 100 * (median(times[-third:]) / median(times[:third]) - 1)
        # the least of a third: a sample may meet a file that is open for a moment, or a thread that ends
        fds, threads = (
            [min(row[i] for row in part) for part in (rows[:third], rows[-third:])] for i in (2, 3)
        )
        numbers = {
            "updates": steps,
            "growth": growth,
            "fds": fds[1] - fds[0],
            "threads": threads[1] - threads[0],
            "drift": drift,
            "mb": rows[-1][1] / 1e6,
        }
        assert numbers["fds"] == 0, f"descriptors: {fds[0]:.0f} -> {fds[1]:.0f}"
        assert numbers["threads"] == 0, f"threads: {threads[0]:.0f} -> {threads[1]:.0f}"
        assert growth < (1 if steps >= 20_000 else 5), f"memory grew by {growth:.2f} %"
        return numbers

    return check


def summary(numbers: Sequence[Numbers]) -> str:
    n = numbers[0]
    return (
        f"memory {n['growth']:+.2f} % in {n['updates']:,.0f} updates, CPU time of a step {n['drift']:+.1f} %"
    )


def cases() -> list[Case]:
    return [Case("20000 updates", soak(20_000))]


FIGURES = [Figure("soak", "A long run: no memory, descriptor or thread grows", cases, summary, alone=True)]
