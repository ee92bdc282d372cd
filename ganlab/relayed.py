"""An error of one rank, as text for the others of its run, and as they raise it."""

from __future__ import annotations

import json
import socket

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

KINDS = {kind.code: kind for kind in (ConfigError, DataError, CheckpointError, EnvError, Diverged, RunInUse)}


def described(error: BaseException, rank: int) -> str:
    """An error as text for the other ranks. Its class is told by the exit code."""
    if isinstance(error, GanlabError):
        return json.dumps({"code": error.code, "mistakes": [list(m) for m in error.mistakes]})
    if isinstance(error, FloatingPointError):  # what a checkpoint says of weights
        return json.dumps({"not finite": str(error)})
    code = 130 if isinstance(error, KeyboardInterrupt) else 5 if isinstance(error, MemoryError) else 1
    where = f"rank {rank} on {socket.gethostname()}"
    return json.dumps({"code": code, "mistakes": [[where, f"{type(error).__name__}: {error}", ""]]})


def rebuilt(text: str) -> Exception:
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
