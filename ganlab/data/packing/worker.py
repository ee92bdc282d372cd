"""Worker processes connected by a pipe, for work that may crash or needs a core of its own.

Not ``multiprocessing``: its children re-import the user's script and outlive a killed parent. These import
only ``ganlab`` and exit when the pipe closes. Pixels pass through shared memory; a pipe would copy each five
times.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from ganlab.errors import EnvError
from ganlab.system.paths import python_path

P = ParamSpec("P")
T = TypeVar("T")
CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
AGAIN = "rerun the same command to resume; if it happens again, check the machine's memory and limits"
TIMEOUT_S = 120.0  # without an answer; ``GANLAB_DATA_TIMEOUT`` sets another
STUCK = "check its disk or network; rerun to resume; GANLAB_DATA_TIMEOUT=SECONDS waits longer"


# Keep freed decoder memory in the process: pages returned to the system would be zeroed again. Cuts the
# decoding time of WebP by a quarter.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 26), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}

_memory: list[mmap.mmap] = []  # in a worker: memory shared with the parent


class ChildCrashed(Exception):
    """The worker died of a signal such as SIGSEGV: its input crashed the decoding library."""


class ChildLost(EnvError):
    """The worker was killed from outside (for example by the OOM killer); its work can be retried."""


def timeout() -> float:
    """Seconds to wait for a worker's answer. Raises EnvError if ``GANLAB_DATA_TIMEOUT`` is invalid."""
    text = os.environ.get("GANLAB_DATA_TIMEOUT", "")
    try:
        seconds = float(text or TIMEOUT_S)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise EnvError("GANLAB_DATA_TIMEOUT", f"{text!r} is not a number of seconds", "write such as 300")
    return seconds


class Worker:
    """One worker process; ``call`` runs a module-level function in it. Not thread-safe.

    memory: ``shared`` bytes shared with the worker (``shared_memory``).
    """

    def __init__(self, shared: int = 0) -> None:
        self._timeout = timeout()
        self._pipe, theirs = Pipe()
        environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": python_path(os.environ)}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        # -P: a random.py of the user's in the working folder is not Python's
        main = "from ganlab.data.packing.worker import serve; serve()"
        try:
            with theirs, _anonymous(shared or 1) as file:
                self.memory = mmap.mmap(file, shared or 1)
                command = [sys.executable, "-P", "-c", main, str(theirs.fileno()), str(file)]
                self._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno(), file], stdin=subprocess.DEVNULL, env=environment
                )
        except OSError as error:
            self._pipe.close()
            raise EnvError("processes", f"cannot start a worker ({error.strerror})", AGAIN) from None
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. Raises what it raises, ChildCrashed, ChildLost, or EnvError if it hangs."""
        self.start(function, *args, **kwargs)
        answer: T = self.result()
        return answer

    def start(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin a call whose ``result`` is fetched later."""
        with contextlib.suppress(OSError):  # ``result`` reports a dead worker
            self._pipe.send((function, args, kwargs))

    def result(self) -> Any:
        """Wait for the result of ``start``."""
        fine, value = self._answer()
        if not fine:
            raise value
        return value

    def kill(self) -> None:
        """Kill the process; a thread waiting for its answer gets ChildLost."""
        self._process.kill()

    def close(self) -> None:
        """End the process immediately."""
        self._pipe.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a dead disk's reader can't even be killed
            self._process.wait(5)

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(self._timeout):
                what = f"no response for {self._timeout:g} seconds"
                raise EnvError("data worker", what, STUCK)
            return self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            if -code in CRASHES:
                raise ChildCrashed(name) from None
            raise ChildLost("data worker", f"ended ({name})", AGAIN) from None


def shared_memory() -> mmap.mmap:
    """In a worker process: the ``memory`` of its ``Worker``."""
    return _memory[0]


def serve() -> None:
    """Main loop of a worker process: answer calls until the pipe closes, as when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    _memory.append(mmap.mmap(int(sys.argv[2]), 0))
    os.close(int(sys.argv[2]))
    with contextlib.suppress(EOFError, OSError):
        pipe.send((True, None))
        while True:
            function, args, kwargs = pipe.recv()
            try:
                answer = (True, function(*args, **kwargs))
            except Exception as error:
                answer = (False, error)
            pipe.send(answer)


@contextlib.contextmanager
def _anonymous(size: int) -> Iterator[int]:
    """Descriptor of an anonymous file, freed with its last user; in memory on Linux."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("ganlab", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as named:
            file = os.dup(named.fileno())
    try:
        os.ftruncate(file, size)
        yield file
    finally:
        os.close(file)
