"""Whether this process is one of several that torchrun, or a launcher like it, started. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ganlab.errors import ConfigError


def many_ranks() -> bool:
    """Whether RANK and WORLD_SIZE are set, and there is more than one."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "").strip() not in ("", "1")


def require_alone(command: str, rest: Sequence[str]) -> None:
    """Raise ConfigError for a command of one process, which each of many ranks would do once more."""
    sweeps = command == "train" and any(word in ("-m", "--multirun") for word in rest)
    if many_ranks() and (command != "train" or sweeps):
        what = f"runs as one process, and this is one of {os.environ['WORLD_SIZE']}"
        error = ConfigError("train -m" if sweeps else command, what, "start it without torchrun")
        error.silent = os.environ["RANK"] != "0"
        raise error
