"""Train in this process: alone, or as one rank of several under torchrun or a similar launcher.

Imports nothing heavy at the top.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from ganlab.errors import ConfigError


def is_distributed() -> bool:
    """Whether RANK is set and WORLD_SIZE is more than one."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "").strip() not in ("", "1")


def require_single_process(command: str, rest: Sequence[str]) -> None:
    """Raise ConfigError for a single-process command under torchrun, where every rank would repeat it."""
    is_sweep = command == "train" and any(word in ("-m", "--multirun") for word in rest)
    if is_distributed() and (command != "train" or is_sweep):
        what = f"runs as a single process, but this is one of {os.environ['WORLD_SIZE']}"
        error = ConfigError("train -m" if is_sweep else command, what, "start it without torchrun")
        error.silent = os.environ["RANK"] != "0"
        raise error


def train(overrides: list[str], config_dirs: list[str]) -> int:
    """Run ``ganlab train``. Returns the exit code; raises as ``trainer.train``."""
    if not is_distributed():
        return _train(overrides, config_dirs)
    from ganlab.distributed.session import joined

    with joined() as team:
        return _train(overrides, config_dirs, team.agree_on_errors)


def _train(overrides: list[str], dirs: list[str], together: Callable[[], Any] = nullcontext) -> int:
    from ganlab.config import compose

    with together():
        composed = compose.compose(overrides, dirs)
        experiment = compose.build(composed)
    from ganlab.training import trainer

    trainer.train(experiment, composed.saved, composed.choices, composed.overrides)
    return 0
