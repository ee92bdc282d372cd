"""Work on images in processes, on every core, in order and in bounded memory.

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

from ganlab.data.child import Child

T = TypeVar("T")
U = TypeVar("U")


class Crew:
    """Child processes with ``shared`` bytes of memory each, started as threads ask for them."""

    def __init__(self, shared: int) -> None:
        self._shared = shared
        self._idle: list[Child] = []  # a list's append and pop are atomic

    @contextmanager
    def child(self) -> Iterator[Child]:
        """A child of one's own for a while. It is ended if the block raises."""
        try:
            child = self._idle.pop()
        except IndexError:
            child = Child(self._shared)
        try:
            yield child
        except BaseException:
            child.close()
            raise
        self._idle.append(child)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def in_order(work: Callable[[T], U], items: Iterable[T], workers: int) -> Generator[U, None, None]:
    """``map`` on threads, in order, with at most ``2 * workers`` results waiting."""
    waiting: list[Future[U]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="ganlab-crew") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:  # on a mistake or an interrupt, don't work on what nobody will read
            pool.shutdown(wait=True, cancel_futures=True)


def num_cores() -> int:
    """Cores that this process may use, at most 32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 32)
