"""Join the process group of a ``torchrun`` run and leave it, also after an error.

Reads torchrun's environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. A command of a single
process never imports this module.

A rank that fails writes its error into the store and closes its connections. The collectives of the other
ranks then fail; they read the error, print nothing and exit with the same code.
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

from ganlab.distributed.collectives import Ranks, serialize_error, use_ranks
from ganlab.errors import EnvError

JOIN_S = 300.0  # seconds to wait for all ranks to join
CONTROL_TIMEOUT = timedelta(hours=24)  # one rank may prepare a data set while the others wait
LEAVE_S = 5.0  # seconds that rank 0, which hosts the store, waits for the others to read it
STUCK_S = 20.0  # seconds to exit in after an error: a GPU collective may block for longer


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the run's process group; ``collectives.current()`` is this rank inside the block.

    Raises EnvError for an invalid environment, or if some rank has not joined within ``JOIN_S`` seconds.
    """
    ranks = _join()
    if not ranks.is_rank_zero:  # else Python prints warnings to stderr
        logging.getLogger("ganlab").addHandler(logging.NullHandler())
    with use_ranks(ranks):
        try:
            yield ranks
            ranks.all_gather_object(None)  # a barrier: no connection closes while another rank uses it
        except BaseException as error:
            _leave(ranks, error)
            raise
        _leave(ranks, None)


def _join() -> Ranks:
    fix = "start ganlab with torchrun"
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, os.environ["RANK"] if name == "LOCAL_RANK" else "")
        if not text.isdecimal():
            raise EnvError(name, f"must be an integer, got {text!r}", fix)
        numbers[name] = int(text)
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    if rank >= size:
        raise EnvError("RANK", f"must be from 0 to {size - 1}, got {rank}", fix)
    if not os.environ.get("MASTER_ADDR"):
        raise EnvError("MASTER_ADDR", "is not set", fix)
    if not dist.is_available():
        raise EnvError(
            "torch", "this build has no torch.distributed", "install another build, or run a single process"
        )
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=JOIN_S)))
        _wait(store, "joined", size, JOIN_S)
        inner = PrefixStore("groups", store)
        dist.init_process_group("gloo", store=inner, rank=rank, world_size=size, timeout=CONTROL_TIMEOUT)
        store.set_timeout(timedelta(seconds=JOIN_S))
    except (RuntimeError, ValueError, TimeoutError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{numbers['MASTER_PORT']}"
        what = f"rank {rank} of {size} could not join the others ({str(error).splitlines()[0][:80]})"
        raise EnvError(where, what, "check MASTER_ADDR and MASTER_PORT, and that all ranks start") from error
    return Ranks(rank, size, numbers["LOCAL_RANK"], store)


def _wait(store: Any, event: str, size: int, seconds: float) -> None:
    """Wait until ``size`` ranks have reached ``event``, open to signals. Raises TimeoutError."""
    count, deadline = store.add(f"ganlab/{event}", 1), time.monotonic() + seconds
    while count < size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} of {size} ranks joined within {seconds:.0f} s")
        time.sleep(0.01)
        count = store.add(f"ganlab/{event}", 0)


def _leave(ranks: Ranks, error: BaseException | None) -> None:
    """Close all connections, after publishing this rank's own error if it has one."""
    if error is not None and ranks.backend == "nccl":  # a collective on the GPU may never return
        code = int(getattr(error, "code", None) or 1)
        timer = threading.Timer(STUCK_S, os._exit, (code,))
        timer.daemon = True
        timer.start()
    with contextlib.suppress(Exception):
        if error is not None and not getattr(error, "agreed", False):
            text = serialize_error(error, ranks.rank)
            ranks.store.set(f"ganlab/errors/{ranks.rank}", text)
            other = ranks.failed_rank_error(ranks.rank) if ranks.rank else ""
            same = bool(other) and json.loads(other).get("code", 1) == json.loads(text).get("code", 1)
            error.silent = same  # type: ignore[attr-defined]
    ranks.control = ranks.data = None
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
    with contextlib.suppress(Exception):
        if ranks.is_rank_zero:  # it may host the store
            _wait(ranks.store, "left", ranks.size, LEAVE_S)
        else:
            ranks.store.add("ganlab/left", 1)
