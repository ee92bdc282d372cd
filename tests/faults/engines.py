"""Sweeps on real cluster engines: what the trials of SLURM and of Ray share.

An engine runs in processes of ours on this machine. What a trial does and sees goes into a transcript under
``benchmarks/reliability``, without names of this machine.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ganlab.sweeps import ledger

from .base import ROOT, Failed, Numbers, nothing_lost, tiny

WAIT = 1200.0  # seconds for anything to happen, on a busy machine
GRID = "title: trial\nblocks:\n- overrides: [{words}]\n  axes: {{seed: [{seeds}]}}\n"


class Engine:
    """A cluster. ``env``: of its commands. ``hidden``: pattern -> what the transcript says instead."""

    def __init__(self, place: Path, env: Mapping[str, str], hidden: Mapping[str, str] = {}) -> None:
        self.place, self.env, self.lines = place, dict(env), list[str]()
        folders = {str(place): ".", str(ROOT): "ganlab", sys.executable: "python"}
        self.hidden = {re.escape(k): v for k, v in folders.items()} | dict(hidden)

    @contextmanager
    def daemon(self, command: Sequence[str]) -> Iterator[Path]:
        """Inside, a daemon runs in the foreground of a process of ours; yields the file of its output."""
        log = self.place / f"{Path(command[0]).name}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*command], env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def up(self) -> AbstractContextManager[None]:
        """Inside, the cluster runs."""
        raise NotImplementedError

    def clear(self) -> None:
        """End what a trial has left."""

    def say(self, text: str) -> None:
        """Add to the transcript."""
        for pattern, replacement in self.hidden.items():
            text = re.sub(pattern, replacement, text)
        self.lines += [line.rstrip() for line in text.splitlines()]
        print(text, flush=True)

    def output(self, *words: str, cwd: Path | None = None) -> str:
        """What a command prints."""
        done = subprocess.run(
            words, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        return (done.stdout + done.stderr).strip()

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """As ``output``, and both in the transcript."""
        output = self.output(*words, cwd=cwd)
        self.say(f"$ {' '.join(words)}\n{output}")
        return output

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, f"no {what} after {WAIT:.0f} s"
            time.sleep(0.2)


class Trial:
    """A grid of ``seeds`` (``conf/grid/trial.yaml``) to run on an engine into the folder ``out``."""

    def __init__(self, engine: Engine, place: Path, steps: int, seeds: str = "0") -> None:
        self.engine, self.place, self.steps, self.seeds = engine, place, steps, seeds
        words = tiny(f"steps={steps}", "save_every=5" if steps <= 400 else "save_every=100000")
        self.words = [w for w in words[1:] if not w.startswith("run_dir=")]
        (place / "conf" / "grid").mkdir(parents=True)
        grid = GRID.format(words=", ".join(f'"{w}"' for w in self.words), seeds=seeds)
        (place / "conf" / "grid" / "trial.yaml").write_text(grid)

    @contextmanager
    def sweep(self, *words: str, multirun: bool = False) -> Iterator[subprocess.Popen[str]]:
        """``ganlab sweep`` of the grid, or ``train -m`` of the same runs, with these words, meanwhile."""
        line = ["sweep", "--config-dir", "conf", "grid=trial", "out=out"]
        if multirun:
            line = ["train", "-m", *self.words, f"seed={self.seeds}", "run_dir=out/s${seed}"]
        short = [w for w in line if w not in self.words]
        self.engine.say(" ".join(["$ ganlab", *short, *words]))
        process = subprocess.Popen(
            [sys.executable, "-m", "ganlab", *line, *words],
            cwd=self.place,
            env=self.engine.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
            output = process.communicate(timeout=WAIT)[0]
            pattern = r"train -m|trial:|\[\d+/|s\d|\d{3} |cell |stopped|Traceback|\w*Error|ganlab: "
            kept = [s for s in output.splitlines() if re.match(pattern, s)]
            self.engine.say("\n".join([*kept, f"exit code {process.returncode}"]))
        finally:
            process.kill()
            process.wait()

    def at_work(self, step: int = 2) -> dict[str, int]:
        """Cell -> pid of the cells that have done so many updates."""
        pids = {}
        for path in self.place.glob("out/*/.lock"):
            metrics = path.with_name("metrics.jsonl")
            pid = path.read_text().partition("@")[0]
            if pid.isdigit() and metrics.exists() and f'"step": {step}' in metrics.read_text():
                pids[path.parent.name] = int(pid)
        return pids

    def until_at_work(self, step: int = 2) -> tuple[str, int]:
        """Wait until a cell trains; its name and pid."""
        self.engine.until(lambda: self.at_work(step), "cell at work")
        return next(iter(self.at_work(step).items()))

    def results(self) -> list[dict[str, object]]:
        """The results of its cells."""
        return [json.loads(path.read_text()) for path in sorted(self.place.glob("out/*/result.json"))]

    def status(self) -> set[str]:
        """Of the cells, said too; what they hold is whole."""
        for path, result in zip(sorted(self.place.glob("out/*/result.json")), self.results(), strict=True):
            nothing_lost(path.parent)
            part = "all" if result["step"] == self.steps else "some, saved"
            self.engine.say(f"cell {path.parent.name}: {result['status']}; steps done: {part}")
        return {str(result["status"]) for result in self.results()}

    def starts(self) -> list[str]:
        """The cell of each try that has started."""
        places = [*self.place.glob("out/.sweep"), *self.place.glob("outputs/.sweeps/*")]
        records = [r for folder in places for r in ledger.read_records(folder)]
        return [str(r["cell"]) for r in records if r["event"] == "started"]


def run_trials(
    engine: Engine,
    trials: Mapping[str, Callable[[Trial], None]],
    make: Callable[[str, Path], Trial],
    transcript: Path | None,
) -> Numbers:
    """All trials, one after the other. Raises Failed with those that failed; writes the transcript."""
    failures = list[str]()
    with engine.up():
        for number, (name, check) in enumerate(trials.items()):
            function = check.func if isinstance(check, functools.partial) else check
            engine.say(f"\n{name}\n# {inspect.getdoc(function)}")
            try:
                check(make(name, engine.place / f"trial-{number}"))
            except Exception as error:
                failures.append(f"{name}: {error!s:.300}")
                engine.say(f"FAILED: {error!s:.300}")
            finally:
                engine.clear()
    if transcript:
        transcript.write_text("\n".join(engine.lines) + "\n")
    if failures:
        raise Failed(len(failures), "; ".join(failures))
    return {}
