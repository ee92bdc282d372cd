"""Reopen a run folder: its config, its experiment, and the networks of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from ganlab.config import compose
from ganlab.errors import CheckpointError, ConfigError, DataError
from ganlab.experiment import Experiment
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.runs.state import non_finite
from ganlab.system.files import read_json
from ganlab.system.packages import RUN_PACKAGES, require
from ganlab.training.build import build_gan, stored_shape, unpack_gan
from ganlab.training.gan import GAN
from ganlab.training.resume import as_checkpoint_error


def open_run(
    run: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()
) -> tuple[RunFolder, Experiment]:
    """A run folder and its experiment, with scoring keys overridden by ``overrides``.

    Raises DataError if it is not a run folder, ConfigError with every mistake.
    """
    require(*RUN_PACKAGES)
    folder = RunFolder(run)
    saved = folder.read_config()
    folder.require_own()
    if saved is None:
        raise DataError(run, "is not a run folder: it has no config.yaml", "give a folder under outputs/")
    return folder, compose.build(compose.reopen(saved, overrides, config_dirs))


def restore(
    folder: RunFolder, e: Experiment, checkpoint: str, device: torch.device, finite: bool = True
) -> tuple[GAN, int]:
    """The networks of a checkpoint, and its step. ``checkpoint``: ``last``, ``best`` or a step.

    Read-only: the run may still be training. ``finite=False``: NaNs in the weights only warn. Raises
    CheckpointError, ConfigError.
    """
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
    step: int | None = None
    if checkpoint == "best":
        best = ((read_json(folder.result) or {}).get("scores") or {}).get("best")
        if not best:
            raise CheckpointError(
                str(folder.path), "has no scores yet, hence no best checkpoint", "use checkpoint=last"
            )
        step = int(best["step"])
    elif checkpoint.isdecimal():
        step = int(checkpoint)
    elif checkpoint != "last":
        raise ConfigError("checkpoint", f"{checkpoint!r} is not last, best, or a step", "use checkpoint=last")
    steps = checkpoints.steps()
    if step is not None and step not in steps:
        available = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            str(folder.path), f"has no checkpoint at step {step}", f"available: {available}"
        )
    step, tensors, state = checkpoints.load(step, quarantine=False, finite=finite)
    if bad := non_finite(tensors):
        print(f"ganlab: warning: {checkpoints.path(step)}: {bad} is not finite", file=sys.stderr)
    with as_checkpoint_error(str(checkpoints.path(step))):
        classes, shape, rest = int(state.get("num_classes", 0)), stored_shape(e, state), dict(state["game"])
    game = build_gan(e, device, classes, shape)
    unpack_gan(game, tensors, rest, str(checkpoints.path(step)))
    return game, step
