"""Process images in parallel, in order and in bounded memory.

Processes, not threads: two threads decode as fast as two processes (``benchmarks/data_preparation``), but all
threads share one interpreter lock, held by the work around the decoder (of small images, most of it); and an
image that crashes a decoder would take the whole program with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ganlab.data.formats.files import log
from ganlab.data.packing.worker import ChildLost, Worker

T = TypeVar("T")
U = TypeVar("U")


class WorkerPool:
    """Worker processes with ``shared`` bytes of memory each, started on demand."""

    def __init__(self, shared: int) -> None:
        self._shared = shared
        self._idle: list[Worker] = []  # a list's append, pop and remove are atomic
        self._busy: list[Worker] = []
        self._stopped = False

    def run(self, work: Callable[[Worker], T]) -> T:
        """Call ``work`` with a free worker; if that worker is killed, retry once with a new one.

        Raises what ``work`` raises: ChildLost the second time, ChildCrashed, EnvError if the child hangs.
        """
        try:
            with self.child() as child:
                return work(child)
        except ChildLost as lost:
            if self._stopped:
                raise
            log.warning("%s: %s; restarting it", lost.mistakes[0].where, lost.mistakes[0].what)
        with self.child() as child:
            return work(child)

    @contextmanager
    def child(self) -> Iterator[Worker]:
        """Borrow a worker exclusively; it is killed if the block raises."""
        try:
            child = self._idle.pop()
        except IndexError:
            child = Worker(self._shared)
        self._busy.append(child)
        try:
            if self._stopped:  # it was started while the others were ended
                child.kill()
            yield child
        except BaseException:
            child.close()
            raise
        finally:
            self._busy.remove(child)
        self._idle.append(child)

    def stop(self) -> None:
        """Kill the busy workers; their results are no longer needed."""
        self._stopped = True
        for child in list(self._busy):
            child.kill()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def in_order(
    work: Callable[[T], U], items: Iterable[T], workers: int, stop: Callable[[], None] = lambda: None
) -> Generator[U, None, None]:
    """``map`` on threads, in order, with at most ``2 * workers`` pending results.

    ``stop`` is called on an early exit: it should make ``work`` return or raise immediately.
    """
    waiting: list[Future[U]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="ganlab-crew") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BaseException:  # on an error or interrupt, abandon pending work
            stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def num_cores() -> int:
    """Cores that this process may use, at most 32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 32)
