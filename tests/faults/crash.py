"""kill -9 at any moment: what was committed is there, and the run ends as if nothing had happened."""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

from .base import Case, Figure, environment, inside, nothing_lost, state_digest, tiny, until
from .runs import (
    OFTEN,
    RECIPES,
    assert_identical,
    begin,
    committed,
    finish,
    last_step,
    newest,
    outcome,
    whole,
)

KILLS = 10  # of a case


def killed_at_random(recipe: str, seed: int, kills: int, place: Path) -> None:
    """``kills`` real kills of runs of one recipe, each at a moment drawn uniformly from a run's time."""
    words, draw = (*RECIPES[recipe], *OFTEN), random.Random(seed)
    takes, left = whole(*words)[1], kills
    for number in count():
        folder = place / str(number)
        folder.mkdir()
        with inside(folder):
            while left:
                process = begin(folder, *words)
                time.sleep(draw.random() * takes)
                process.kill(signal.SIGKILL)
                done = process.wait()
                if done.code == 0:
                    break
                assert done.code == -signal.SIGKILL, done.err[-300:]
                left -= 1
                saved = committed(folder / "run")
                if saved and (folder / "run" / "metrics.jsonl").exists():
                    whole_lines = (folder / "run" / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
                    last = max((json.loads(line)["step"] for line in whole_lines), default=0)
                    assert last - saved[-1] <= 3, f"step {last} was reached and only {saved[-1]} is saved"
            finish(folder, *words)
            assert_identical(folder, *words)
        shutil.rmtree(folder)
        if not left:
            return


def killed_for_real(place: Path) -> None:
    """As a user has it: ``python -m ganlab train``, kill -9, the same command."""
    words = tiny(*RECIPES["sn+ema"], *OFTEN)
    command = [sys.executable, "-m", "ganlab", *words]
    with subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        run = place / "run"
        deadline = time.monotonic() + 120
        while newest(run) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    again = subprocess.run(
        command, cwd=place, env=environment(), capture_output=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr[-300:]
    metrics = outcome(run)["metrics"]
    other = place / "other"
    other.mkdir()
    subprocess.run(command, cwd=other, env=environment(), capture_output=True, timeout=300, check=True)
    assert state_digest(run) == state_digest(other / "run")
    assert metrics == outcome(other / "run")["metrics"]
    nothing_lost(run)


def crash_loop(kills: int, place: Path) -> None:
    """Killed again and again one and a half intervals after each start: it gets on, and the disk does not."""
    words = ("normalization=[sn]", "save_every=2", "keep_checkpoints=2", f"steps={3 * kills + 4}")
    run, before, sizes = place / "run", -1, []
    for _ in range(kills):
        start = max(before, 0)
        process = begin(place, *words)
        until(lambda: newest(run) >= start + 2 and last_step(run) > start + 2, process)  # noqa: B023
        process.kill(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL, "it was over before it was killed"
        saved = committed(run)[-1]
        assert saved > before, f"step {saved} after step {before}"
        before = saved
        sizes.append(sum(p.stat().st_size for p in (run / "checkpoints").rglob("*") if p.is_file()))
    assert max(sizes[2:]) <= 4 / 3 * max(sizes[1], sizes[2]), f"the disk fills: {sizes}"
    finish(place, *words)
    assert_identical(place, *words)


def kill9() -> list[Case]:
    cases = [
        Case(f"{recipe} {draw}", functools.partial(killed_at_random, recipe, 100 * i + draw, KILLS), KILLS)
        for draw in range(4)
        for i, recipe in enumerate(RECIPES)
    ]
    return [*cases, Case("python -m ganlab, killed after a checkpoint", killed_for_real)]


def loops() -> list[Case]:
    return [Case("killed 1.5 intervals after each start", functools.partial(crash_loop, 20), 20)]


FIGURES = [
    Figure("kill9", "kill -9 at random moments: nothing lost, resume bit-identical", kill9),
    Figure(
        "crash_loop", "Killed 1.5 save intervals after each start: it gets on, the disk does not fill", loops
    ),
]
