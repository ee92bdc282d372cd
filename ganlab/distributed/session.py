"""Joining the other processes of a run that ``torchrun`` started, and leaving them, whatever has happened.

The environment is torchrun's: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. A command that runs
alone never imports this.

A rank that ends by an error of its own leaves its last words in the store and closes its connections; the
others, whose collectives fail then, read them, say nothing and end with the same exit code.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ganlab.distributed.collectives import Ranks, error_of_failed_rank, serialize_error, use_ranks
from ganlab.errors import EnvError

JOIN_S = 300.0  # seconds that ranks wait for the last one to come
CONTROL_TIMEOUT = timedelta(hours=24)  # one rank may prepare a data set while the others wait
LEAVE_S = 5.0  # seconds that the rank with the store waits for the others to read it
STUCK_S = 20.0  # seconds to end in after an error; a GPU's collective may hold a process for longer


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Inside, ``ranks.current()`` is this process's place among those of its run.

    Raises EnvError if the environment makes no sense, or if not all came within ``JOIN_S`` seconds.
    """
    ranks = _join()
    if not ranks.first:  # or Python would print warnings by itself
        logging.getLogger("ganlab").addHandler(logging.NullHandler())
    with use_ranks(ranks):
        try:
            yield ranks
            ranks.told("")  # nobody closes a connection that another one still uses
        except BaseException as error:
            _leave(ranks, error)
            raise
        _leave(ranks, None)


def _join() -> Ranks:
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, os.environ["RANK"] if name == "LOCAL_RANK" else "")
        try:
            numbers[name] = int(text)
        except ValueError:
            raise EnvError(name, f"{text!r} is not a whole number", "start ganlab with torchrun") from None
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if not 0 <= rank < size:
        raise EnvError("RANK", f"{rank} is none of 0 to {size - 1}", "start ganlab with torchrun")
    if not os.environ.get("MASTER_ADDR"):
        raise EnvError("MASTER_ADDR", "is not set", "start ganlab with torchrun")
    if not dist.is_available():
        raise EnvError("torch", "this build has no torch.distributed", "install another build, or run alone")
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=JOIN_S)))
        _wait(store, "here", size, JOIN_S)
        inner = PrefixStore("groups", store)
        dist.init_process_group("gloo", store=inner, rank=rank, world_size=size, timeout=CONTROL_TIMEOUT)
        store.set_timeout(timedelta(seconds=JOIN_S))
    except (RuntimeError, ValueError, TimeoutError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{numbers['MASTER_PORT']}"
        what = f"rank {rank} of {size} did not meet the others ({str(error).splitlines()[0][:80]})"
        raise EnvError(where, what, "check MASTER_ADDR, MASTER_PORT and that all ranks start") from error
    return Ranks(rank, size, numbers["LOCAL_RANK"], store)


def _wait(store: Any, what: str, size: int, seconds: float) -> None:
    """Until ``size`` ranks have said ``what``. Raises TimeoutError. Signals are heard meanwhile."""
    there, deadline = store.add(f"ganlab/{what}", 1), time.monotonic() + seconds
    while there < size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{there} came within {seconds:.0f} s")
        time.sleep(0.01)
        there = store.add(f"ganlab/{what}", 0)


def _leave(ranks: Ranks, error: BaseException | None) -> None:
    """Close all connections; after an error of this rank's own, say why first."""
    if error is not None and ranks.backend == "nccl":  # a collective on the GPU may never come back
        code = int(getattr(error, "code", None) or 1)
        timer = threading.Timer(STUCK_S, os._exit, (code,))
        timer.daemon = True
        timer.start()
    with contextlib.suppress(Exception):
        if error is not None and not getattr(error, "agreed", False):
            said = serialize_error(error, ranks.rank)
            ranks.store.set(f"ganlab/words/{ranks.rank}", said)
            other = error_of_failed_rank(ranks, ranks.rank) if ranks.rank else ""
            error.silent = bool(other) and _code(other) == _code(said)  # type: ignore[attr-defined]
    ranks.control = ranks.data = None
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
    with contextlib.suppress(Exception):
        if ranks.first:  # it may hold the store
            _wait(ranks.store, "gone", ranks.size, LEAVE_S)
        else:
            ranks.store.add("ganlab/gone", 1)


def _code(said: str) -> int:
    return int(json.loads(said).get("code", 1))
