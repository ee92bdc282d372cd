"""Control benchmark subprocesses: start them, send requests to one or all, and stop them."""

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

COMMAND = [sys.executable, "-P", "-m", "ganlab.bench.child"]  # -P: do not import from the working folder
ERRORS_BY_CODE = {kind.code: kind for kind in (ConfigError, EnvError)}


class Child:
    """A benchmark subprocess (``child.py``) that handles one request at a time. ``name``: for errors."""

    def __init__(self, name: str, threads: int, config_dirs: Sequence[str] = ()) -> None:
        self.name = name
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": python_path(os.environ)}
        if config_dirs:
            env["GANLAB_CONFIGS"] = os.pathsep.join([*config_dirs, env.get("GANLAB_CONFIGS", "")])
        self.start_time = time.time()
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=env
        )

    def send(self, do: str, **fields: Any) -> None:
        """Send a request; ``receive`` returns its reply. Children with pending requests run concurrently."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # ``receive`` reports its end
            self.process.stdin.write(json.dumps({"do": do, "asked": self.start_time, **fields}) + "\n")
            self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Return the reply. Raises the error it reports, or EnvError if the process has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            problem = f"killed by signal {-code}" if code < 0 else f"exited with code {code}"
            raise EnvError(self.name, problem, "if it ran out of memory, lower batch_size or width")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ERRORS_BY_CODE.get(answer["code"], GanlabError)(Mistake(*m) for m in answer["error"])
        return answer

    def request(self, do: str, **fields: Any) -> dict[str, Any]:
        self.send(do, **fields)
        return self.receive()

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


def request_all(children: Iterable[Child], do: str, **fields: Any) -> tuple[float, list[dict[str, Any]]]:
    """Send a request to all children; return the seconds until the last reply, and the replies."""
    waiting, began = list(children), time.perf_counter()
    for child in waiting:
        child.send(do, **fields)
    answers = [child.receive() for child in waiting]
    return time.perf_counter() - began, answers
