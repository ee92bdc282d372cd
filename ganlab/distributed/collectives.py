"""Collectives of one run: a single process, or the ranks that ``torchrun`` started."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ganlab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Diverged,
    EnvError,
    GanlabError,
    Mistake,
    RunInUse,
    Stopped,
)

FAILURE_REASON_S = 1.0  # seconds to wait for a lost rank's error; a killed one leaves none
DATA_TIMEOUT = timedelta(minutes=10)  # a collective of training that takes longer has lost a rank
CONTINUE = "run the same command again to continue"
T = TypeVar("T")
Raised = TypeVar("Raised", bound=GanlabError)


class Ranks:
    """Rank ``rank`` of the ``size`` processes of a run; ``local``: its number on its machine.

    A run of one process has size 1, and each method returns its own input. Else all ranks must call each
    method in the same order, except ``shard``, ``rand_shard`` and ``drawn_like``, which do not communicate;
    EnvError if another rank is lost. ``store``: torch.distributed's, where a failing rank leaves its error.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store
        self.control: Any = None if store is None else dist.group.WORLD  # gloo, for errors and objects
        self.data: Any = self.control
        self.backend = "gloo" if size > 1 else ""
        self.parts = 1  # batches that the pass of a network under way sees as one

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes the files and the log."""
        return self.rank == 0

    def set_device(self, device: torch.device) -> None:
        """Set the device of the tensors that training exchanges."""
        if self.size == 1:
            return
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._peer_errors():
            self.data = dist.new_group(backend=self.backend, timeout=DATA_TIMEOUT)

    # ---- tensors

    def shard(self, rows: Tensor, parts: int = 1) -> Tensor:
        """This rank's rows of a global batch (N, ...): its share of each of ``parts`` consecutive chunks."""
        if self.size == 1:
            return rows
        each = len(rows) // (parts * self.size)
        return rows.view(parts, self.size, each, *rows.shape[1:])[:, self.rank].flatten(0, 1)

    def rand_shard(self, *shape: int, parts: int = 1, **options: Any) -> Tensor:
        """``torch.rand`` of ``shape``: this rank's share of what a single process would draw."""
        return self.shard(torch.rand(shape[0] * self.size, *shape[1:], **options), parts)

    def drawn_like(self, x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """``draw(x)`` for a layer's input: this rank's share of what a single process would draw."""
        return draw(x) if self.size == 1 else self.shard(draw(torch.cat([x] * self.size)), self.parts)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place, on the training device; bit-identical on all ranks."""
        with self._peer_errors():
            dist.all_reduce(tensor, group=self.data)
        return tensor

    def all_reduce_mean(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Mean over the ranks of tensors of one dtype, bit-identical on all ranks; None stays None."""
        if self.size == 1:
            return list(tensors)
        present = [t.detach() for t in tensors if t is not None]
        flat = self.sum_(torch.cat([t.reshape(-1) for t in present])).div_(self.size)
        means = iter(flat.split([t.numel() for t in present]))
        return [None if t is None else next(means).view(t.shape) for t in tensors]

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape and dtype, in rank order."""
        if self.size == 1:
            return [tensor]
        copies = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with self._peer_errors():
            dist.all_gather(copies, tensor.contiguous(), group=self.data)
        return copies

    @torch.no_grad()
    def broadcast_(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors, of the same names, shapes and dtypes on all ranks, with rank 0's."""
        for _, tensor in sorted(tensors.items()) if self.size > 1 else ():
            buffer = tensor.detach().cpu().contiguous().clone()
            with self._peer_errors():
                dist.broadcast(buffer, 0, group=self.control)
            if not self.is_rank_zero:
                tensor.copy_(buffer)

    # ---- objects and errors

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all ranks, in rank order."""
        values = [value] * self.size
        if self.size > 1:
            with self._peer_errors():
                dist.all_gather_object(values, value, group=self.control)
        return values

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0; every rank returns its result or raises its error."""
        values: list[Any] = [self.only_on_rank_zero(work)]
        if self.size > 1:
            with self._peer_errors():
                dist.broadcast_object_list(values, 0, group=self.control)
        return values[0]  # type: ignore[no-any-return]

    def only_on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """As ``on_rank_zero``, but the result stays on rank 0; the others get None.

        Inside ``work`` rank 0 is a single process: it communicates with no other rank.
        """
        if self.size == 1:
            return work()
        with self.agree_on_errors():
            if self.is_rank_zero:
                with use_ranks(Ranks()):
                    return work()
        return None

    @contextmanager
    def agree_on_errors(self) -> Iterator[None]:
        """An error in the block on any rank is raised by all ranks at its end; one rank reports it."""
        own_error: BaseException | None = None
        try:
            yield
        except BaseException as error:
            if self.size == 1 or getattr(error, "agreed", False):  # the other ranks raise it too
                raise
            own_error = error
        errors = self.all_gather_object(own_error and serialize_error(own_error, self.rank))
        rank = next((i for i, text in enumerate(errors) if text), None)
        if rank is None:
            return
        if own_error is not None and rank == self.rank:
            own_error.agreed = True  # type: ignore[attr-defined]
            raise own_error
        raise deserialize_error(errors[rank] or "") from own_error

    def signal(self, received: int | None) -> int | None:
        """The number of a signal that any rank received, the same on all ranks; None if there was none."""
        if self.size == 1:
            return received
        flag = torch.tensor([received or 0])
        with self._peer_errors():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return int(flag) or None

    # ---- lost ranks

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # any backend's error for a peer that is lost or does not respond
            raise self._lost_rank_error(str(error)) from error

    def _lost_rank_error(self, backend_message: str) -> Exception:
        """The error to raise when a collective failed: that of the rank which ended, if it left one."""
        if text := self.failed_rank_error(self.size):
            return deserialize_error(text)
        reason = (backend_message.strip().splitlines() or [""])[0].rpartition("] ")[2][:80]
        error = EnvError("ranks", f"another rank is lost ({reason})", CONTINUE)
        error.agreed = True
        with contextlib.suppress(Exception):  # the store may be lost with its rank: then this one reports
            error.silent = int(self.store.add("ganlab/reported", 1)) > 1
        return error

    def failed_rank_error(self, below: int) -> str:
        """The serialized error of a failed rank, among ranks < ``below``; "" if none left one."""
        deadline = time.monotonic() + FAILURE_REASON_S
        with contextlib.suppress(Exception):  # the store may be lost with its rank
            while True:
                for rank in range(below):
                    if self.store.check([key := f"ganlab/errors/{rank}"]):
                        return str(self.store.get(key).decode())
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        return ""


_current = Ranks()


def current() -> Ranks:
    """The collectives of this process's run."""
    return _current


def raised_on_all_ranks(error: Raised) -> Raised:
    """Mark an error that every rank raises by itself at the same place, so that only rank 0 reports it."""
    if _current.size > 1:
        error.agreed, error.silent = True, not _current.is_rank_zero
    return error


@contextmanager
def use_ranks(ranks: Ranks) -> Iterator[None]:
    """Make ``current()`` return ``ranks`` inside the block."""
    global _current
    previous, _current = _current, ranks
    try:
        yield
    finally:
        _current = previous


KINDS = {kind.code: kind for kind in (ConfigError, DataError, CheckpointError, EnvError, Diverged, RunInUse)}


def serialize_error(error: BaseException, rank: int) -> str:
    """Serialize an error so that other ranks can raise it; the exit code stands for its class."""
    if isinstance(error, GanlabError):
        return json.dumps({"code": error.code, "mistakes": [list(m) for m in error.mistakes]})
    if isinstance(error, FloatingPointError):  # raised when a checkpoint would hold non-finite weights
        return json.dumps({"not finite": str(error)})
    code = 130 if isinstance(error, KeyboardInterrupt) else 5 if isinstance(error, MemoryError) else 1
    where = f"rank {rank} on {socket.gethostname()}"
    return json.dumps({"code": code, "mistakes": [[where, f"{type(error).__name__}: {error}", ""]]})


def deserialize_error(text: str) -> Exception:
    """Rebuild another rank's error: silent, with the same exit code."""
    record = json.loads(text)
    if "not finite" in record:
        return FloatingPointError(record["not finite"])
    mistakes, code = [Mistake(*m) for m in record["mistakes"]], int(record["code"])
    error = Stopped(code - 128) if code > 128 else KINDS.get(code, GanlabError)(mistakes)
    error.mistakes, error.code, error.silent, error.agreed = mistakes, code, True, True
    return error
