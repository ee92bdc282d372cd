"""Cases and figures, real processes that can be killed, and what must hold afterwards.

A module of this package has ``FIGURES``; nothing registers it. ``tests/test_faults.py`` runs a few of
their cases, ``scripts/reliability.py`` all, which it counts into RELIABILITY.md.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.runs.checkpoint import Checkpoints, digest
from ganlab.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
LINE = 240  # characters of an error's line, at most
HOST = frozenset({"progress", "threads", "identity"})  # of state.json: clocks and machine, not training
SIGNALS = tuple(getattr(signal, f"SIG{n}") for n in ("INT", "TERM", "HUP", "USR1", "USR2", "ALRM", "PIPE"))
Numbers = Mapping[str, float]


class Failed(AssertionError):
    """``count`` of a case's checks failed."""

    def __init__(self, count: int, why: str) -> None:
        super().__init__(why)
        self.count = count


class Case(NamedTuple):
    """One injection: ``check`` gets an empty folder, which is the cwd too, and raises if it fails.

    It may return numbers for the figure's summary. ``n``: how many checks it stands for.
    """

    name: str
    check: Callable[[Path], Numbers | None]
    n: int = 1


@dataclass(frozen=True)
class Figure:
    """A row of RELIABILITY.md: a promise and the cases that try it.

    cases(): cheap to call, the same every time. summary: a few words from the numbers of all cases.
    alone: it measures time, so nothing may run beside it. needs(): why it can't run here, or nothing.
    """

    key: str
    promise: str
    cases: Callable[[], list[Case]]
    summary: Callable[[Sequence[Numbers]], str] | None = None
    alone: bool = False
    needs: Callable[[], str] = str


def figures() -> dict[str, Figure]:
    """All figures of the package by key, in the modules' order. Raises ValueError for a key used twice."""
    by_key: dict[str, Figure] = {}
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "base":
            for figure in getattr(importlib.import_module(f"{package}.{module.name}"), "FIGURES", ()):
                if figure.key in by_key:
                    raise ValueError(f"two figures are called {figure.key}")
                by_key[figure.key] = figure
    return by_key


# ---- real processes


class Done(NamedTuple):
    """How a process ended. ``code``: -N if signal N killed it."""

    code: int
    out: str
    err: str
    seconds: float


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a ganlab of this checkout, on one thread."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return {k: v for k, v in os.environ.items() if k != "GANLAB_CONFIGS"} | own | dict(env or {})


def ganlab(*words: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> Done:
    """A real ``python -m ganlab`` with these words: seconds, for the imports alone."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ganlab", *words],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    out, err = (b.decode("utf-8", "replace") for b in (done.stdout, done.stderr))
    return Done(done.returncode, out, err, time.monotonic() - began)


def run_here(*words: str) -> Done:
    """``ganlab`` with these words in this process; its seconds are of CPU time."""
    from ganlab.cli import main

    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(list(words))
    return Done(code, out.getvalue(), err.getvalue(), time.process_time() - began)


class Forked:
    """``ganlab`` with these words in a forked child of this process, where torch is imported already.

    A process of its own, with its own session, signals and descriptors: a kill is a real kill.
    ``before()`` runs in it first: audit hooks, limits, patches. Unless ``real_features`` the feature network
    gives pixel means in the place of its features: scores cost nothing, and all around them stays.
    """

    def __init__(
        self,
        *words: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
        real_features: bool = False,
    ) -> None:
        import torchvision.utils  # noqa: F401 - slow, and once is enough

        from ganlab.cli import main
        from ganlab.config import compose  # noqa: F401
        from ganlab.extractors.cifar import CifarExtractor
        from ganlab.training import trainer  # noqa: F401

        Forked.made += 1
        self._outputs = [
            cwd.parent / f".{cwd.name}-{os.getpid()}-{Forked.made}.{name}" for name in ("out", "err")
        ]
        self._began, self._done = time.monotonic(), None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                if not real_features:
                    CifarExtractor.__call__ = pixel_means  # type: ignore[method-assign]
                self._child(cwd, env, before)
                code = main.main(list(words))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code & 255)

    made = 0
    _done: Done | None

    def _child(self, cwd: Path, env: Mapping[str, str] | None, before: Callable[[], object] | None) -> None:
        os.setsid()
        for signum in SIGNALS:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python starts
        for number, path in enumerate(self._outputs, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, number in (("stdout", 1), ("stderr", 2)):  # pytest has put its own there
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        os.chdir(cwd)
        own = environment(env)
        os.environ.clear()
        os.environ.update(own)
        if before:
            before()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal, if the process is still there."""
        if self._done is None:
            os.kill(self.pid, signum)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._done is None and not self._reap(os.WNOHANG)

    def wait(self, timeout: float = 60) -> Done:
        """How it ended. Raises AssertionError if it has not within ``timeout`` seconds; it is killed then."""
        deadline = self._began + timeout if self._done is None else 0
        deadline = max(deadline, time.monotonic() + timeout)
        while self.running():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self._reap(0)
                raise AssertionError(f"still running after {timeout} s: {self._done}")
            time.sleep(0.002)
        assert self._done is not None
        return self._done

    def _reap(self, flags: int) -> bool:
        pid, status = os.waitpid(self.pid, flags)
        if not pid:
            return False
        seconds = time.monotonic() - self._began
        out, err = (p.read_text("utf-8", "replace") if p.exists() else "" for p in self._outputs)
        for path in self._outputs:
            path.unlink(missing_ok=True)
        self._done = Done(os.waitstatus_to_exitcode(status), out, err, seconds)
        return True


def pixel_means(_: object, images: Any) -> Any:
    """Of uint8 images (B, 3, H, W) 256 features (B, 256) and 10 logits (B, 10), in no time."""
    import torch

    from ganlab.types import Features

    x = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)
    return Features(torch.cat([x, x[:, :64].square()], 1), 20 * x[:, :150].reshape(-1, 10, 15).mean(2))


def until(what: Callable[[], object], process: Forked | None = None, timeout: float = 60) -> None:
    """Wait until something holds or ``process`` has ended; AssertionError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not what() and (process is None or process.running()):
        assert time.monotonic() < deadline, f"nothing happened in {timeout} s"
        time.sleep(0.002)


# ---- runs


def tiny(*more: str) -> list[str]:
    """Words of ``ganlab`` for a run of under a second in the folder ``run``; ``more`` come last and win."""
    defaults = {
        "dataset": "digits",
        "dataset.resolution": "16",
        "architecture.width": "0.05",
        "architecture.z_dim": "8",
        "loss": "hinge",
        "steps": "12",
        "batch_size": "8",
        "d_steps": "1",
        "metric": "[is]",
        "metric.extractor": "cifar",
        "metric.protocol": "smoke",
        "metric.progress": "null",
        "eval_every": "0",
        "save_every": "4",
        "log_every": "1",
        "sample_every": "0",
        "device": "cpu",
        "threads": "1",
        "run_dir": "run",
    }
    for word in more:
        defaults.pop(word.partition("=")[0], None)
    return ["train", *(f"{k}={v}" for k, v in defaults.items()), *more]


def state_digest(run: Path) -> str:
    """Of a run's newest checkpoint: all that training goes on from, without clocks and host."""
    folder = RunFolder(run)
    step, tensors, state = Checkpoints(folder.checkpoints, folder.run_id).load(quarantine=False)
    clocks = ("train_s", "eval_s", "wall_s", "began", "sessions")
    progress = {k: v for k, v in state.get("progress", {}).items() if k not in clocks}
    progress = json.loads(re.sub(r'"(seconds|wall_s|train_s)": [-0-9.e]+', r'"\1": 0', json.dumps(progress)))
    return f"{step} {digest(tensors, {k: v for k, v in state.items() if k not in HOST} | {'p': progress})}"


def nothing_lost(run: Path) -> None:
    """Every committed checkpoint verifies, the metrics are whole and in order, nothing is half there."""
    folder = RunFolder(run)
    if folder.checkpoints.is_dir():
        kept = Checkpoints(folder.checkpoints, folder.run_id)
        for step in kept.steps():
            kept.load(step)
    if folder.metrics.is_file():
        last: dict[str, int] = {}
        for line in folder.metrics.read_text("utf-8").splitlines():
            record = json.loads(line)
            assert record["step"] > last.get(record["kind"], -1), f"step {record['step']} twice"
            last[record["kind"]] = record["step"]
    left = [p.name for p in run.rglob(".*") if re.search(r"^\.(tmp|trash)-|\.tmp$", p.name)]
    assert not left, f"left behind: {left}"


def one_line(done: Done, code: int, where: str = "", fix: str = "") -> None:
    """It ended with ``code`` and one error line a mistake, one of which has both patterns."""
    lines = done.err.strip().splitlines()
    assert done.code == code, f"exit code {done.code}, not {code}: {lines[-3:]}"
    assert "Traceback" not in done.err + done.out, done.err[-400:]
    errors = [line for line in lines if not line.startswith("ganlab: warning: ")]
    bad = [line for line in errors if not line.startswith("ganlab: error: ") or len(line) > LINE]
    assert errors, "it printed nothing"
    assert not bad, f"not an error line: {bad[0][:300]}"
    matches = [line for line in errors if re.search(where, line) and re.search(fix, line)]
    assert matches, f"no line names {where!r} and {fix!r}: {errors[0]}"


def records(run: Path, timed: Sequence[str] = ("wall_s", "it_per_s")) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without its clocks."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """The cwd for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
