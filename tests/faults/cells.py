"""Cells of sweeps that cost no start: ``ganlab train`` as forks of the sweep's process. And their sabotage.

A forked cell is a process of its own as ``subprocess`` would start it: own session, only its own descriptors,
default signals. What goes wrong in it depends on its seed, and happens as it commits its checkpoint of step
``AT``: an audit hook sees the rename, so the product has no hook of the tests'.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import sklearn.datasets  # noqa: F401 - slow, and once is enough
import torch._inductor  # noqa: F401

from ganlab.cli import main
from ganlab.sweeps import process, scheduler

AT = "step-000000004"
WAYS = ("raise", "exit", "abort", "segfault", "kill", "memory", "hang")
FIRST = 100  # the seed of the first way


class ForkedCell:
    """The part of ``subprocess.Popen`` that ``jobs`` uses, for ``python -m ganlab train``."""

    sabotaged = True

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | Path,
        stdout: IO[bytes],
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        **_: Any,
    ) -> None:
        self.returncode: int | None = None
        words = list(command[command.index("ganlab") + 1 :])
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self._become(Path(cwd), stdout.fileno(), env, pass_fds)
                if self.sabotaged:
                    sabotage(words)
                code = main.main(words)
                sys.stdout.flush()
            finally:
                os._exit(code & 255)

    def _become(self, cwd: Path, out: int, env: Mapping[str, str], keep: Sequence[int]) -> None:
        os.setsid()
        for number in {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (1, 2):
            os.dup2(out, number)
        low = 3
        for number in sorted({*keep}):
            os.closerange(low, number)
            low = number + 1
        os.closerange(low, 1024)
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(number, "w", buffering=1, errors="backslashreplace", closefd=False))  # noqa: SIM115
        faulthandler.enable()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)

    def send_signal(self, signum: int) -> None:
        """As Popen's."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    def wait(self) -> int:
        """As Popen's."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    poll = None  # the watch asks by waitid


def fork_cells(sabotaged: bool = False) -> None:
    """From now on this process's sweeps fork their cells, look often, and wait briefly for a hanging one."""
    ForkedCell.sabotaged = sabotaged

    def popen(command: Sequence[str], **more: Any) -> Any:
        forked = list(command[: len(process.COMMAND)]) == process.COMMAND
        return ForkedCell(command, **more) if forked else subprocess.Popen(command, **more)

    names = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "STDOUT")}
    process.subprocess = SimpleNamespace(Popen=popen, **names)  # type: ignore[attr-defined]
    process.POLL, scheduler.WAIT = 0.02, 0.05
    scheduler.IN_USE_RETRY_S = 0.5  # type: ignore[attr-defined]
    process.GRACE, process.LAST_GRACE = 0.5, 0.5


def sabotage(words: Sequence[str]) -> None:
    """Do what the seed among ``words`` means when the checkpoint of step ``AT`` is committed, once."""
    seeds = [int(w.rpartition("=")[2]) for w in words if w.lstrip("+").startswith("seed=")]
    if not seeds or not FIRST <= seeds[-1] < FIRST + len(WAYS):
        return
    act, done = globals()[f"_{WAYS[seeds[-1] - FIRST]}"], list[int]()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(args[1]).endswith(AT) and not done:
            done.append(1)
            act()

    sys.addaudithook(hook)


def _raise() -> None:
    raise RuntimeError("injected")


def _exit() -> None:
    sys.exit(3)


def _abort() -> None:
    os.abort()


def _segfault() -> None:
    ctypes.string_at(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _memory() -> None:
    bytearray(1 << 46)  # 64 TiB: MemoryError


def _hang() -> None:
    while True:  # a signal's handler may run; nothing asks for it
        time.sleep(1)


Way = Callable[[], None]
