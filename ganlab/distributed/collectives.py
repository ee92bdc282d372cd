"""The processes of one run, this one alone or the ranks of ``torchrun``, and their collectives."""

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

LAST_WORDS_S = 1.0  # seconds to wait for the reason why a rank has gone; a killed one leaves none
DATA_TIMEOUT = timedelta(minutes=10)  # a collective of training that takes longer has lost a rank
CONTINUE = "run the same command again to continue"
T = TypeVar("T")
Raised = TypeVar("Raised", bound=GanlabError)


class SingleProcess:
    """A run of one process: every question to the others has its own answer, and nothing is copied."""

    rank, size, local = 0, 1, 0
    backend = ""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor, parts: int = 1) -> Tensor:
        """This rank's rows of a whole batch (N, ...): its share of each of ``parts`` consecutive parts."""
        return rows

    def uniform(self, *shape: int, parts: int = 1, **how: Any) -> Tensor:
        """U(0, 1) of ``shape``, as by ``torch.rand``: this rank's share of what one process would draw."""
        return torch.rand(*shape, **how)

    def means(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Means over the ranks of tensors of one dtype, the same bits on all; None stays None."""
        return list(tensors)

    def together(self) -> AbstractContextManager[None]:
        """What the block raises on one rank, all raise at its end; one of them tells it."""
        return nullcontext()

    def first_does(self, work: Callable[[], T]) -> T:
        """``work()`` on the first rank alone; all return what it returns (plain JSON) or raise."""
        return work()

    def first_only(self, work: Callable[[], T]) -> T | None:
        """As ``first_does``, but what ``work`` returns stays on the first rank; the others get None."""
        held: list[T] = []
        self.first_does(lambda: held.append(work()))
        return held[0] if held else None

    def told(self, mine: str) -> list[str]:
        """What each rank says, in their order."""
        return [mine]

    def signal(self, mine: int | None) -> int | None:
        """The signal that one of the ranks got, or None: the same answer on all."""
        return mine

    def gathered(self, mine: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which are of one shape and dtype, in their order."""
        return [mine]

    def use(self, device: torch.device) -> None:
        """From now on the tensors of training lie on ``device``."""

    def copied(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors of the same names, shapes and dtypes on all ranks become those of the first, in place."""

    def received(self, load: Callable[[], tuple[dict[str, Tensor], Any]]) -> tuple[dict[str, Tensor], Any]:
        """What ``load`` gives on the first rank, (tensors on the CPU, plain JSON), on all of them."""
        return load()


class Ranks(SingleProcess):
    """One of ``size`` processes, number ``rank``; ``local``: its number on its machine.

    ``store``: torch.distributed's, for last words. Every method is called by all ranks in the same order,
    but ``share`` and ``uniform``, which need nobody. Raises EnvError where another rank is gone.
    """

    def __init__(self, rank: int, size: int, local: int, store: Any) -> None:
        self.rank, self.size, self.local, self.store = rank, size, local, store
        self.control: Any = dist.group.WORLD
        self.data: Any = self.control
        self.device = torch.device("cpu")
        self.backend = "gloo"

    def use(self, device: torch.device) -> None:
        self.device, self.backend = device, "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with self._linked():
            self.data = dist.new_group(backend=self.backend, timeout=DATA_TIMEOUT)

    # ---- shares and means

    def share(self, rows: Tensor, parts: int = 1) -> Tensor:
        each = len(rows) // (parts * self.size)
        return rows.view(parts, self.size, each, *rows.shape[1:])[:, self.rank].flatten(0, 1)

    def uniform(self, *shape: int, parts: int = 1, **how: Any) -> Tensor:
        return self.share(torch.rand(shape[0] * self.size, *shape[1:], **how), parts)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place, on the training device: the same bits on all."""
        with self._linked():
            dist.all_reduce(tensor, group=self.data)
        return tensor

    def means(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        there = [t.detach() for t in tensors if t is not None]
        flat = self.sum_(torch.cat([t.reshape(-1) for t in there])).div_(self.size)
        found = iter(flat.split([t.numel() for t in there]))
        return [None if t is None else next(found).view(t.shape) for t in tensors]

    # ---- words

    def told(self, mine: str) -> list[str]:
        data = mine.encode()
        with self._linked():
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
    def together(self) -> Iterator[None]:
        mine: BaseException | None = None
        try:
            yield
        except BaseException as error:
            mine = error
        if getattr(mine, "agreed", False):  # the others know of it and raise it themselves
            raise mine  # type: ignore[misc]
        said = self.told("" if mine is None else serialize_error(mine, self.rank))
        wrong = [rank for rank, text in enumerate(said) if text]
        if not wrong:
            return
        if mine is not None and self.rank == wrong[0]:
            mine.agreed = True  # type: ignore[attr-defined]
            raise mine
        raise deserialize_error(said[wrong[0]]) from mine

    def first_does(self, work: Callable[[], T]) -> T:
        said, mine = "", None
        if self.first:
            try:
                said = json.dumps({"value": work()})
            except BaseException as error:
                if getattr(error, "agreed", False):
                    raise
                mine, said = error, serialize_error(error, self.rank)
        said = self._from_first(said)
        if mine is not None:
            mine.agreed = True  # type: ignore[attr-defined]
            raise mine
        answer = json.loads(said)
        if "value" not in answer:
            raise deserialize_error(said)
        return answer["value"]  # type: ignore[no-any-return]

    def _from_first(self, text: str) -> str:
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        with self._linked():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0, group=self.control)
            data = data if self.first else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(data, 0, group=self.control)
        return text if self.first else data.numpy().tobytes().decode()

    def signal(self, mine: int | None) -> int | None:
        flag = torch.tensor([mine or 0])
        with self._linked():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return int(flag) or None

    # ---- tensors

    def gathered(self, mine: Tensor) -> list[Tensor]:
        found = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with self._linked():
            dist.all_gather(found, mine.contiguous(), group=self.data)
        return found

    @torch.no_grad()
    def copied(self, tensors: Mapping[str, Tensor]) -> None:
        for _, tensor in sorted(tensors.items()):
            held = tensor.detach().cpu().contiguous().clone()
            with self._linked():
                dist.broadcast(held, 0, group=self.control)
            if not self.first:
                tensor.copy_(held)

    def received(self, load: Callable[[], tuple[dict[str, Tensor], Any]]) -> tuple[dict[str, Tensor], Any]:
        tensors: dict[str, Tensor] = {}

        def loaded() -> Any:
            found, rest = load()
            tensors.update(found)
            return [[n, list(t.shape), str(t.dtype).partition(".")[2]] for n, t in found.items()], rest

        specs, rest = self.first_does(loaded)
        for name, shape, dtype in specs:
            if not self.first:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        self.copied(tensors)
        return tensors, rest

    # ---- loss of a rank

    @contextmanager
    def _linked(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # whatever a backend says when a peer has gone or does not answer
            raise self.lost(str(error)) from error

    def lost(self, why: str) -> Exception:
        """What to raise when a collective failed: the last words of a rank that ended, if it left any."""
        said = error_of_failed_rank(self)
        if said:
            return deserialize_error(said)
        reason = (why.strip().splitlines() or [""])[0].rpartition("] ")[2][:80]
        error = EnvError("ranks", f"another rank is gone ({reason})", CONTINUE)
        error.agreed, error.silent = True, not first_to_report(self)
        return error


def error_of_failed_rank(ranks: Ranks, below: int | None = None) -> str:
    """What a rank said that ended by an error of its own, one ``below`` that number; "" if none did."""
    deadline = time.monotonic() + LAST_WORDS_S
    with contextlib.suppress(Exception):  # the store may be gone with its rank
        while True:
            for rank in range(ranks.size if below is None else below):
                if ranks.store.check([key := f"ganlab/words/{rank}"]):
                    return str(ranks.store.get(key).decode())
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    return ""


def first_to_report(ranks: Ranks) -> bool:
    """Whether no other rank has told yet that one is gone."""
    try:
        return int(ranks.store.add("ganlab/told", 1)) == 1
    except Exception:  # the store is gone with its rank
        return True


_current: SingleProcess = SingleProcess()


def current() -> SingleProcess:
    """The ranks of this process's run."""
    return _current


def raised_on_all_ranks(error: Raised) -> Raised:
    """An error that every rank raises by itself at the same place: the first one tells it."""
    if _current.size > 1:
        error.agreed, error.silent = True, not _current.first
    return error


@contextmanager
def use_ranks(ranks: SingleProcess) -> Iterator[None]:
    """Inside, ``current()`` is ``ranks``."""
    global _current
    before, _current = _current, ranks
    try:
        yield
    finally:
        _current = before


KINDS = {kind.code: kind for kind in (ConfigError, DataError, CheckpointError, EnvError, Diverged, RunInUse)}


def serialize_error(error: BaseException, rank: int) -> str:
    """An error as text for the other ranks. Its class is told by the exit code."""
    if isinstance(error, GanlabError):
        return json.dumps({"code": error.code, "mistakes": [list(m) for m in error.mistakes]})
    if isinstance(error, FloatingPointError):  # what a checkpoint says of weights
        return json.dumps({"not finite": str(error)})
    code = 130 if isinstance(error, KeyboardInterrupt) else 5 if isinstance(error, MemoryError) else 1
    where = f"rank {rank} on {socket.gethostname()}"
    return json.dumps({"code": code, "mistakes": [[where, f"{type(error).__name__}: {error}", ""]]})


def deserialize_error(text: str) -> Exception:
    """What another rank raised, as this one raises it: it says nothing of it and exits with the same code."""
    said = json.loads(text)
    if "not finite" in said:
        return FloatingPointError(said["not finite"])
    mistakes, code = [Mistake(*m) for m in said["mistakes"]], int(said["code"])
    if code > 128:
        error: GanlabError = Stopped(code - 128)
        error.mistakes = mistakes
    else:
        error = KINDS.get(code, GanlabError)(mistakes)
    error.code, error.silent, error.agreed = code, True, True
    return error
