"""Rank 0 locks the folder of a run; all ranks check that they train the same run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from ganlab import __version__
from ganlab.data.base import SampleSet
from ganlab.distributed import collectives
from ganlab.errors import ConfigError, EnvError
from ganlab.experiment import Experiment
from ganlab.runs.folder import RunFolder


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Rank 0 holds the lock of the run folder inside the block."""
    with ExitStack() as stack:
        collectives.current().only_on_rank_zero(lambda: stack.enter_context(folder.lock()))
        yield


def require_same_on_ranks(e: Experiment, device: torch.device, images: SampleSet) -> None:
    """Raise ConfigError or EnvError unless all ranks have the same config, data, device kind and versions.

    Otherwise they would deadlock or average gradients of different models.
    """
    config = {k: v for k, v in vars(e).items() if isinstance(v, int | float | str | None) and k != "run_dir"}
    own = {
        "device": (device.type, "start all ranks on the same kind of device"),
        "dataset": (f"{images.name} {images.fingerprint}", "give all ranks the same data"),
        "versions": (
            f"ganlab {__version__}, torch {torch.__version__}",
            "install the same versions everywhere",
        ),
        "config": (config, "start all ranks with the same command"),
    }
    records = collectives.current().all_gather_object(own)
    for what, (value, fix) in records[0].items():
        for rank, record in enumerate(records):
            if record[what][0] != value:
                kind = ConfigError if what == "config" else EnvError
                text = "another" if what == "config" else f"{record[what][0]}, not {value}"
                raise collectives.raised_on_all_ranks(kind(what, f"rank {rank} has {text}", fix))


def ranks_summary(sync_bn: bool) -> str:
    """Number of ranks and backend, for the log; "" for a single process."""
    team = collectives.current()
    bn = "" if sync_bn else ", batch norm not synchronized"
    return f", {team.size} ranks over {team.backend}{bn}" if team.size > 1 else ""
