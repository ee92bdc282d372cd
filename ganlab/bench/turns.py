"""Handing out turns: children that are started, asked one or all at once, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from ganlab.errors import ConfigError, EnvError, GanlabError, Mistake
from ganlab.system.paths import python_path

COMMAND = [sys.executable, "-P", "-m", "ganlab.bench.child"]  # -P: no library of the working folder's
FAILED = {kind.code: kind for kind in (ConfigError, EnvError)}


class Child:
    """A process that answers questions (``child.py``), one at a time. ``name`` is for what it is told by."""

    def __init__(self, name: str, threads: int, config_dirs: Sequence[str] = ()) -> None:
        self.name = name
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": python_path(os.environ)}
        if config_dirs:
            env["GANLAB_CONFIGS"] = os.pathsep.join([*config_dirs, env.get("GANLAB_CONFIGS", "")])
        self.asked_at = time.time()
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=env
        )

    def say(self, do: str, **more: Any) -> None:
        """Ask; ``hear`` gives the answer. Several children asked before one is heard work side by side."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # heard as its end
            self.process.stdin.write(json.dumps({"do": do, "asked": self.asked_at, **more}) + "\n")
            self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The answer. Raises the error that it tells, or EnvError if it is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            what = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise EnvError(self.name, what, "if memory ran out, lower batch_size or width")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise FAILED.get(answer["code"], GanlabError)(Mistake(*m) for m in answer["error"])
        return answer

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        self.say(do, **more)
        return self.hear()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(2 if kind is None else 0.1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def together(children: Iterable[Child], do: str, **more: Any) -> tuple[float, list[dict[str, Any]]]:
    """Ask all at once; the seconds until the last has answered, and the answers."""
    asked, began = list(children), time.perf_counter()
    for child in asked:
        child.say(do, **more)
    answers = [child.hear() for child in asked]
    return time.perf_counter() - began, answers
