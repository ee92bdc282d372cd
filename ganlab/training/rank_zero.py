"""The files of a run belong to its first rank: it reads and writes, the others are told what came of it.

The classes here stand in for those of a run of one process; every rank goes the same way through ``run.py``,
and raises the same errors at the same places.
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
    """A run's folder, locked, as every rank of the run may use it."""
    if collectives.current().size == 1:
        return folder
    of_all = RanksFolder(folder.path)
    of_all.owner = folder.owner
    return of_all


def checkpoints(*given: Any) -> Checkpoints:
    """The run's checkpoints, as every rank of the run may use them; ``given`` as to ``Checkpoints``."""
    return (Checkpoints if collectives.current().size == 1 else RanksCheckpoints)(*given)


def log(folder: Path, total_steps: int, start_step: int, wall_s: float) -> Log:
    """The run's log; of many ranks only the first is heard."""
    team = collectives.current()
    kind = Log if team.size == 1 else FirstLog if team.is_rank_zero else MuteLog
    return kind(folder, total_steps, start_step=start_step, wall_s=wall_s)


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Inside, the run owns its folder: its first rank does."""
    with ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(folder.lock())

        collectives.current().on_rank_zero(lock)
        yield


class RanksFolder(RunFolder):
    """The folder of a run while it goes on, of which only the first rank's disk knows."""

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
    """Saved and loaded by the first rank; what it loads, all get."""

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Any) -> Path:
        def save() -> None:
            Checkpoints.save(self, step, tensors, state)

        collectives.current().on_rank_zero(save)
        return self.path(step)

    def load(self, step: int | None = None, *, quarantine: bool = True, finite: bool = True) -> Loaded:
        return self._told(lambda: Checkpoints.load(self, step, quarantine=quarantine, finite=finite))

    def read(self, folder: Path) -> Loaded:
        return self._told(lambda: Checkpoints.read(self, folder))

    def _told(self, read: Callable[[], Loaded]) -> Loaded:
        def load() -> tuple[dict[str, Tensor], Any]:
            found, tensors, state = read()
            return tensors, [found, pack(state)]

        tensors, (found, state) = collectives.current().broadcast_loaded(load)
        return found, tensors, unpack(state)

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


class FirstLog(Log):
    """The log of the first rank. The others hear whether it could be written."""

    def flush(self) -> None:
        collectives.current().on_rank_zero(super().flush)


class MuteLog(Log):
    """The log of every other rank: nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def flush(self) -> None:
        collectives.current().on_rank_zero(lambda: None)

    def _silent(self, *_: Any, **__: Any) -> None:
        pass

    train = scores = numbers = image = say = warn = set_progress = rest = wake = close = _silent


def require_same_on_ranks(e: Experiment, device: torch.device, images: SampleSet) -> None:
    """Raise ConfigError or EnvError unless all ranks play the same gan on the same data.

    Otherwise they would wait for each other in the wrong places, or average what does not belong together.
    """
    team = collectives.current()
    if team.size == 1:
        return
    keys = {k: v for k, v in vars(e).items() if isinstance(v, int | float | str | None) and k != "run_dir"}
    mine = {
        "device": device.type,
        "dataset": f"{images.name} {images.fingerprint}",
        "versions": f"ganlab {__version__}, torch {torch.__version__}",
        "config": keys,
    }
    said = [json.loads(text) for text in team.all_gather_text(json.dumps(mine))]
    for what, fix in (
        ("device", "start it where all ranks find the same kind of device"),
        ("dataset", "give all ranks the same data"),
        ("versions", "install the same everywhere"),
        ("config", "start all ranks with the same command"),
    ):
        for rank, other in enumerate(said):
            if other[what] != said[0][what]:
                kind = ConfigError if what == "config" else EnvError
                told = "another" if what == "config" else f"{other[what]}, not {said[0][what]}"
                raise collectives.raised_on_all_ranks(kind(what, f"rank {rank} has {told}", fix))


def ranks_summary(sync_bn: bool) -> str:
    """Of many ranks, for the log: how many and over what; "" for a run of one process."""
    team = collectives.current()
    bn = "" if sync_bn else ", batch norm of each by itself"
    return f", {team.size} ranks over {team.backend}{bn}" if team.size > 1 else ""
