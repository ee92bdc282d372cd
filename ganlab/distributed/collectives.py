"""Collectives of one run: a single process, or the ranks that ``torchrun`` started."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


class SingleProcess:
    """A run of one process: every collective returns its own input."""

    rank, size, local = 0, 1, 0
    backend = ""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank writes the files and the log."""
        return self.rank == 0

    def shard(self, rows: Tensor, parts: int = 1) -> Tensor:
        """This rank's rows of a global batch (N, ...): its share of each of ``parts`` consecutive chunks."""
        return rows

    def rand_shard(self, *shape: int, parts: int = 1, **options: Any) -> Tensor:
        """``torch.rand`` of ``shape``: this rank's share of what a single process would draw."""
        return torch.rand(*shape, **options)

    def all_reduce_mean(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Mean over the ranks of tensors of one dtype, bit-identical on all ranks; None stays None."""
        return list(tensors)

    def agree_on_errors(self) -> AbstractContextManager[None]:
        """An error in the block on any rank is raised by all ranks at its end; one rank reports it."""
        return nullcontext()

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0; every rank returns its result (plain JSON) or raises its error."""
        return work()

    def only_on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """As ``on_rank_zero``, but the result (any object) stays on rank 0; the others get None."""
        results: list[T] = []
        self.on_rank_zero(lambda: results.append(work()))
        return results[0] if results else None

    def all_gather_text(self, text: str) -> list[str]:
        """The texts of all ranks, in rank order."""
        return [text]

    def signal(self, received: int | None) -> int | None:
        """The number of a signal that any rank received, the same on all ranks; None if there was none."""
        return received

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape and dtype, in rank order."""
        return [tensor]

    def set_device(self, device: torch.device) -> None:
        """Set the device of the tensors that training exchanges."""

    def broadcast_(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors, of the same names, shapes and dtypes on all ranks, with rank 0's."""

    def broadcast_loaded(
        self, load: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        """Run ``load`` on rank 0; every rank returns its (tensors on the CPU, plain JSON)."""
        return load()


class Ranks(SingleProcess):
    """Rank ``rank`` of ``size`` processes; ``local``: its number on its machine.

    ``store``: torch.distributed's, where a failing rank leaves its error. All ranks must call each method in
    the same order, except ``shard`` and ``rand_shard``, which do not communicate. Raises EnvError if another
    rank is lost.
    """

    def __init__(self, rank: int, size: int, local: int, store: Any) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store
        self.control: Any = dist.group.WORLD
        self.data: Any = self.control
        self.device = torch.device("cpu")
        self.backend = "gloo"

    def set_device(self, device: torch.device) -> None:
        self.device, self.backend = device, "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._peer_errors():
            self.data = dist.new_group(backend=self.backend, timeout=DATA_TIMEOUT)

    # ---- shards and means

    def shard(self, rows: Tensor, parts: int = 1) -> Tensor:
        each = len(rows) // (parts * self.size)
        return rows.view(parts, self.size, each, *rows.shape[1:])[:, self.rank].flatten(0, 1)

    def rand_shard(self, *shape: int, parts: int = 1, **options: Any) -> Tensor:
        return self.shard(torch.rand(shape[0] * self.size, *shape[1:], **options), parts)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place, on the training device; bit-identical on all ranks."""
        with self._peer_errors():
            dist.all_reduce(tensor, group=self.data)
        return tensor

    def all_reduce_mean(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        present = [t.detach() for t in tensors if t is not None]
        flat = self.sum_(torch.cat([t.reshape(-1) for t in present])).div_(self.size)
        means = iter(flat.split([t.numel() for t in present]))
        return [None if t is None else next(means).view(t.shape) for t in tensors]

    # ---- text and errors

    def all_gather_text(self, text: str) -> list[str]:
        data = text.encode()
        with self._peer_errors():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(data)]), group=self.control)
            lengths = [int(n) for n in sizes]
            if not any(lengths):
                return [""] * self.size
            texts = [torch.zeros(max(lengths), dtype=torch.uint8) for _ in lengths]
            padded = torch.zeros(max(lengths), dtype=torch.uint8)
            padded[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
            dist.all_gather(texts, padded, group=self.control)
        return [bytes(t[:n].tolist()).decode() for t, n in zip(texts, lengths, strict=True)]

    @contextmanager
    def agree_on_errors(self) -> Iterator[None]:
        own_error: BaseException | None = None
        try:
            yield
        except BaseException as error:
            own_error = error
        if getattr(own_error, "agreed", False):  # the other ranks raise it too
            raise own_error  # type: ignore[misc]
        texts = self.all_gather_text("" if own_error is None else serialize_error(own_error, self.rank))
        failed_ranks = [rank for rank, text in enumerate(texts) if text]
        if not failed_ranks:
            return
        if own_error is not None and self.rank == failed_ranks[0]:
            own_error.agreed = True  # type: ignore[attr-defined]
            raise own_error
        raise deserialize_error(texts[failed_ranks[0]]) from own_error

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        text, own_error = "", None
        if self.is_rank_zero:
            try:
                text = json.dumps({"value": work()})
            except BaseException as error:
                if getattr(error, "agreed", False):
                    raise
                own_error, text = error, serialize_error(error, self.rank)
        text = self._broadcast_text(text)
        if own_error is not None:
            own_error.agreed = True  # type: ignore[attr-defined]
            raise own_error
        message = json.loads(text)
        if "value" not in message:
            raise deserialize_error(text)
        return message["value"]  # type: ignore[no-any-return]

    def _broadcast_text(self, text: str) -> str:
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        with self._peer_errors():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0, group=self.control)
            data = data if self.is_rank_zero else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, 0, group=self.control)
        return text if self.is_rank_zero else data.numpy().tobytes().decode()

    def signal(self, received: int | None) -> int | None:
        flag = torch.tensor([received or 0])
        with self._peer_errors():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return int(flag) or None

    # ---- tensors

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        copies = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with self._peer_errors():
            dist.all_gather(copies, tensor.contiguous(), group=self.data)
        return copies

    @torch.no_grad()
    def broadcast_(self, tensors: Mapping[str, Tensor]) -> None:
        for _, tensor in sorted(tensors.items()):
            buffer = tensor.detach().cpu().contiguous().clone()
            with self._peer_errors():
                dist.broadcast(buffer, 0, group=self.control)
            if not self.is_rank_zero:
                tensor.copy_(buffer)

    def broadcast_loaded(
        self, load: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        tensors: dict[str, Tensor] = {}

        def load_specs() -> Any:
            loaded, rest = load()
            tensors.update(loaded)
            return [[n, list(t.shape), str(t.dtype).partition(".")[2]] for n, t in loaded.items()], rest

        specs, rest = self.on_rank_zero(load_specs)
        for name, shape, dtype in specs:
            if not self.is_rank_zero:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        self.broadcast_(tensors)
        return tensors, rest

    # ---- lost ranks

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # any backend's error for a peer that is lost or does not respond
            raise self.lost_rank_error(str(error)) from error

    def lost_rank_error(self, backend_message: str) -> Exception:
        """The error to raise when a collective failed: that of the rank which ended, if it left one."""
        text = error_of_failed_rank(self)
        if text:
            return deserialize_error(text)
        reason = (backend_message.strip().splitlines() or [""])[0].rpartition("] ")[2][:80]
        error = EnvError("ranks", f"another rank is lost ({reason})", CONTINUE)
        error.agreed, error.silent = True, not first_to_report(self)
        return error


def error_of_failed_rank(ranks: Ranks, below: int | None = None) -> str:
    """The serialized error of a failed rank, among ranks < ``below`` (None: all); "" if none left one."""
    deadline = time.monotonic() + FAILURE_REASON_S
    with contextlib.suppress(Exception):  # the store may be lost with its rank
        while True:
            for rank in range(ranks.size if below is None else below):
                if ranks.store.check([key := f"ganlab/errors/{rank}"]):
                    return str(ranks.store.get(key).decode())
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    return ""


def first_to_report(ranks: Ranks) -> bool:
    """Whether no other rank has reported the lost one yet."""
    try:
        return int(ranks.store.add("ganlab/reported", 1)) == 1
    except Exception:  # the store was lost with its rank
        return True


_current: SingleProcess = SingleProcess()


def current() -> SingleProcess:
    """The collectives of this process's run."""
    return _current


def raised_on_all_ranks(error: Raised) -> Raised:
    """Mark an error that every rank raises by itself at the same place, so that only rank 0 reports it."""
    if _current.size > 1:
        error.agreed, error.silent = True, not _current.is_rank_zero
    return error


@contextmanager
def use_ranks(ranks: SingleProcess) -> Iterator[None]:
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
    if code > 128:
        error: GanlabError = Stopped(code - 128)
        error.mistakes = mistakes
    else:
        error = KINDS.get(code, GanlabError)(mistakes)
    error.code, error.silent, error.agreed = code, True, True
    return error
