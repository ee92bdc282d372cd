"""A pool of worker processes, for work that may crash or needs a core of its own; results come in order.

Processes, not threads: two threads decode as fast as two processes (``benchmarks/data_preparation``), but
all share one interpreter lock, and an image that crashes a decoder would take the whole program with it. Not
``multiprocessing`` or ``concurrent.futures``: their workers import the user's script again, outlive a killed
parent, and a crash breaks the pool without telling whose work it was. These import only ``ganlab``, and exit
when their pipe closes.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from ganlab.data.formats.files import log
from ganlab.data.formats.images import BadImageError
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


def num_cores() -> int:
    """Cores that this process may use, at most 32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 32)


class Worker:
    """One worker process; ``call`` runs a module-level function in it. Not thread-safe."""

    def __init__(self) -> None:
        self._timeout = timeout()
        self._pipe, theirs = Pipe()
        environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": python_path(os.environ)}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        # -P: a random.py of the user's in the working folder is not Python's
        main = "from ganlab.data.packing.worker import serve; serve()"
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", main, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
        except OSError as error:
            self._pipe.close()
            raise EnvError("processes", f"cannot start a worker ({error.strerror})", AGAIN) from None

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result. Raises what it raises, ChildCrashed, ChildLost, or EnvError if it hangs."""
        self.start(function, *args, **kwargs)
        try:
            if not self._pipe.poll(self._timeout):
                raise EnvError("data worker", f"no response for {self._timeout:g} seconds", STUCK)
            error, result = self._pipe.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            if -code in CRASHES:
                raise ChildCrashed(name) from None
            raise ChildLost("data worker", f"ended ({name})", AGAIN) from None
        if error is not None:
            raise error
        answer: T = result
        return answer

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Send the work; a dead worker is noticed when the answer is read."""
        with contextlib.suppress(OSError):
            self._pipe.send((function, args, kwargs))

    def kill(self) -> None:
        """Kill the process; a thread waiting for its answer gets ChildLost."""
        self._process.kill()

    def close(self) -> None:
        """End the process immediately."""
        self._pipe.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a dead disk's reader can't even be killed
            self._process.wait(5)


def serve() -> None:
    """Main loop of a worker process: answer calls until the pipe closes, as when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, args, kwargs = pipe.recv()
            answer: tuple[Exception | None, Any]
            try:
                answer = None, function(*args, **kwargs)
            except Exception as error:
                answer = error, None
            pipe.send(answer)


class WorkerPool:
    """Worker processes, started on demand. A context manager: its end is theirs."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []  # a list's append, pop and remove are atomic
        self._busy: list[Worker] = []
        self._stopped = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        while self._idle:
            self._idle.pop().close()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``Worker.call`` in a free worker; if that is killed, retry once with a new one. Thread-safe."""
        try:
            return self._run(function, *args, **kwargs)
        except ChildLost as lost:
            if self._stopped:
                raise
            log.warning("%s: %s; restarting it", lost.mistakes[0].where, lost.mistakes[0].what)
        return self._run(function, *args, **kwargs)

    def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = Worker()
        self._busy.append(worker)
        try:
            if self._stopped:  # it was started while the others were ended
                worker.kill()
            result = worker.call(function, *args, **kwargs)
        except BaseException:  # it may still be at work
            worker.close()
            raise
        finally:
            self._busy.remove(worker)
        self._idle.append(worker)
        return result

    def stop(self) -> None:
        """Kill the busy workers; their results are no longer needed."""
        self._stopped = True
        for worker in list(self._busy):
            worker.kill()

    def run_chunk(self, function: Callable[..., T], chunk: Sequence[Any], rule: Any) -> list[T]:
        """``function(chunk, rule)`` in a worker, alone in the list.

        If that crashes, file by file (``decoding.Encoded``), and the culprit's data become the error.
        """
        try:
            return [self.run(function, chunk, rule)]
        except ChildCrashed as crash:
            if len(chunk) == 1:
                reason = BadImageError(f"crashes the decoder ({crash})")
                return [function([chunk[0]._replace(data=reason)], rule)]
        return [result for file in chunk for result in self.run_chunk(function, [file], rule)]


def run_chunks(
    function: Callable[..., T], chunks: Iterable[Sequence[Any]], rule: Any
) -> Generator[list[T], None, None]:
    """``WorkerPool.run_chunk`` of each chunk, in order, on all cores, with at most two results each pending.

    Whatever ends it early, an error or the caller, ends the workers and abandons pending work.
    """
    cores, waiting = num_cores(), list[Future[list[T]]]()
    with WorkerPool() as pool, ThreadPoolExecutor(cores, thread_name_prefix="ganlab-worker") as threads:
        try:
            for chunk in chunks:
                waiting.append(threads.submit(pool.run_chunk, function, chunk, rule))
                if len(waiting) > 2 * cores:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            pool.stop()
            threads.shutdown(wait=True, cancel_futures=True)
