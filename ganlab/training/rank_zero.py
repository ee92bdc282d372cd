"""Rank 0 owns the files of a run; the other ranks receive results and errors by broadcast.

The classes here replace those of a single-process run, so that every rank takes the same path through
``trainer.py`` and raises the same errors at the same places.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab import __version__
from ganlab.data.base import SampleSet
from ganlab.distributed import collectives
from ganlab.errors import ConfigError, EnvError
from ganlab.experiment import Experiment
from ganlab.runs.checkpoint import Checkpoints, Loaded
from ganlab.runs.folder import RunFolder
from ganlab.runs.log import Log
from ganlab.runs.state import pack, unpack


def run_folder(folder: RunFolder) -> RunFolder:
    """The locked run folder, as every rank may use it."""
    if collectives.current().size == 1:
        return folder
    shared = RanksFolder(folder.path)
    shared.owner = folder.owner
    return shared


def checkpoints(*args: Any) -> Checkpoints:
    """The run's checkpoints, as every rank may use them; arguments as for ``Checkpoints``."""
    return (Checkpoints if collectives.current().size == 1 else RanksCheckpoints)(*args)


def log(folder: Path, total_steps: int, start_step: int, wall_s: float) -> Log:
    """The run's log; only rank 0 writes."""
    team = collectives.current()
    kind = Log if team.size == 1 else RankZeroLog if team.is_rank_zero else SilentLog
    return kind(folder, total_steps, start_step=start_step, wall_s=wall_s)


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Rank 0 holds the lock of the run folder inside the block."""
    with ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(folder.lock())

        collectives.current().on_rank_zero(lock)
        yield


class RanksFolder(RunFolder):
    """The folder of a run in progress, which may exist only on rank 0's disk."""

    def require_here(self) -> None:
        if collectives.current().is_rank_zero:
            super().require_here()

    @property
    def run_id(self) -> str:
        return collectives.current().on_rank_zero(lambda: RunFolder(self.path).run_id)

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        if collectives.current().is_rank_zero:
            super().write_config(resolved)


class RanksCheckpoints(Checkpoints):
    """Checkpoints that rank 0 saves, and loads for all ranks."""

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Any) -> Path:
        def save() -> None:
            Checkpoints.save(self, step, tensors, state)

        collectives.current().on_rank_zero(save)
        return self.path(step)

    def load(self, step: int | None = None, *, quarantine: bool = True, finite: bool = True) -> Loaded:
        return self._broadcast(lambda: Checkpoints.load(self, step, quarantine=quarantine, finite=finite))

    def read(self, folder: Path) -> Loaded:
        return self._broadcast(lambda: Checkpoints.read(self, folder))

    def _broadcast(self, read: Callable[[], Loaded]) -> Loaded:
        def load() -> tuple[dict[str, Tensor], Any]:
            step, tensors, state = read()
            return tensors, [step, pack(state)]

        tensors, (step, state) = collectives.current().broadcast_loaded(load)
        return step, tensors, unpack(state)

    def has_any(self) -> bool:
        return collectives.current().on_rank_zero(super().has_any)

    def set_aside(self, beyond: int) -> list[str]:
        return collectives.current().on_rank_zero(lambda: Checkpoints.set_aside(self, beyond))

    def prune(self, keep_also: Iterable[int] = ()) -> None:
        if collectives.current().is_rank_zero:
            super().prune(keep_also)

    def clean(self) -> None:
        if collectives.current().is_rank_zero:
            super().clean()


class RankZeroLog(Log):
    """Rank 0's log; a failed write raises on all ranks."""

    def flush(self) -> None:
        collectives.current().on_rank_zero(super().flush)


class SilentLog(Log):
    """The log of the other ranks, which writes nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def flush(self) -> None:
        collectives.current().on_rank_zero(lambda: None)

    def _silent(self, *_: Any, **__: Any) -> None:
        pass

    train = scores = numbers = image = say = warn = set_progress = detach = attach = close = _silent


def require_same_on_ranks(e: Experiment, device: torch.device, images: SampleSet) -> None:
    """Raise ConfigError or EnvError unless all ranks have the same config, data, device kind and versions.

    Otherwise they would deadlock or average gradients of different models.
    """
    team = collectives.current()
    if team.size == 1:
        return
    keys = {k: v for k, v in vars(e).items() if isinstance(v, int | float | str | None) and k != "run_dir"}
    own = {
        "device": device.type,
        "dataset": f"{images.name} {images.fingerprint}",
        "versions": f"ganlab {__version__}, torch {torch.__version__}",
        "config": keys,
    }
    records = [json.loads(text) for text in team.all_gather_text(json.dumps(own))]
    for what, fix in (
        ("device", "start all ranks on the same kind of device"),
        ("dataset", "give all ranks the same data"),
        ("versions", "install the same versions everywhere"),
        ("config", "start all ranks with the same command"),
    ):
        for rank, record in enumerate(records):
            if record[what] != records[0][what]:
                kind = ConfigError if what == "config" else EnvError
                value = "another" if what == "config" else f"{record[what]}, not {records[0][what]}"
                raise collectives.raised_on_all_ranks(kind(what, f"rank {rank} has {value}", fix))


def ranks_summary(sync_bn: bool) -> str:
    """Number of ranks and backend, for the log; "" for a single process."""
    team = collectives.current()
    bn = "" if sync_bn else ", batch norm not synchronized"
    return f", {team.size} ranks over {team.backend}{bn}" if team.size > 1 else ""
