"""Resume a run: choose its checkpoint, check that it fits, and report what has changed since.

``resume=auto`` uses the newest checkpoint that verifies; a step or a step's folder uses that one or fails;
``never`` moves the old run aside and starts over.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab.distributed import collectives
from ganlab.errors import CheckpointError, ConfigError, DataError, GanlabError, Mistake
from ganlab.experiment import Experiment
from ganlab.runs import manifest, provenance
from ganlab.runs.checkpoint import Checkpoints, Loaded
from ganlab.runs.folder import Difference, RunFolder, brief, differences
from ganlab.runs.naming import FREE
from ganlab.runs.renamed import to_current
from ganlab.runs.result import require_scores
from ganlab.runs.state import flatten, require_fit
from ganlab.schema import Threads, describe, fits, parameters
from ganlab.training.build import require_networks, unpack_gan
from ganlab.training.gan import GAN
from ganlab.training.optimizers import state_after_one_step

log = logging.getLogger("ganlab")
COMMAND_ONLY_KEYS = ("resume", "resume_allow")  # of a command, not of a run: not saved in config.yaml


def requested_checkpoint(resume: str | int) -> int | Path | None:
    """A step, the folder of one, or None if ``resume`` is ``auto`` or ``never``."""
    text = str(resume)
    if text in ("auto", "never"):
        return None
    return int(text) if text.isdecimal() else Path(text)


def require_any(folder: RunFolder, e: Experiment) -> None:
    """Raise CheckpointError if a specific checkpoint is requested in a folder that contains no run."""
    if requested_checkpoint(e.resume) is not None:
        what = f"contains no run, but resume={e.resume} requests one of its checkpoints"
        raise CheckpointError(str(folder.path), what, "leave out resume= to start one")


def recover_config(folder: RunFolder) -> None:
    """Restore a lost ``config.yaml`` from the run's newest checkpoint. Requires the lock.

    Raises CheckpointError if the checkpoints do not contain the config.
    """
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
    if folder.config.exists() or not checkpoints.has_any():
        return
    step, _, state = checkpoints.load(quarantine=False)
    config = stored_identity(state).get("config")
    if not isinstance(config, dict):
        what = "is missing, and the checkpoints are too old to contain it"
        raise CheckpointError(str(folder.config), what, "restore it, or start over with resume=never")
    folder.write_config(config)
    log.warning("%s: was missing; restored from checkpoint %d", folder.config, step)


def allowed(e: Experiment, stored: Mapping[str, Any], requested: Mapping[str, Any]) -> frozenset[str]:
    """The keys that may differ: those that do not affect training, and those in ``resume_allow``.

    Raises ConfigError for an unknown key in ``resume_allow``.
    """
    keys = {*_keys(stored), *_keys(requested), *parameters(Experiment)}
    fix = "use the dotted keys that 'ganlab train --cfg job' prints"
    unknown = [name for name in e.resume_allow if name not in keys]
    if unknown:
        raise ConfigError(Mistake("resume_allow", f"{n!r} is not a key of this run", fix) for n in unknown)
    return FREE.union(e.resume_allow)


def _keys(tree: Any, where: str = "") -> Iterator[str]:
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        name = f"{where}.{key}" if where else str(key)
        yield name
        yield from _keys(value, name)


def command(e: Experiment) -> str:
    """The instruction to continue a stopped run, for its message."""
    if requested_checkpoint(e.resume) is None and e.resume != "never":
        return "run the same command again to continue"
    return f"run the same command again, without resume={e.resume}, to continue"


def continue_run(run: Any, config: Mapping[str, Any], changed: Sequence[Difference]) -> None:
    """Load a newly built ``trainer.Run``'s checkpoint, if it has one, completely or not at all.

    config: saved as the folder's. changed: its differences from the stored one, allowed by resume_allow.
    Raises as ``find``, ``restore`` and ``require_same_data`` do; ConfigError if it is beyond ``steps``.
    """
    e, checkpoints = run.e, run.checkpoints
    loaded = find(checkpoints, e, config)
    if loaded is None:
        if changed:
            collectives.current().only_on_rank_zero(lambda: run.folder.write_config(config))
        return
    step, tensors, state = loaded
    where = str(checkpoints.path(step))
    if step > e.steps:
        raise ConfigError("steps", f"{e.steps} is less than the {step} already done", "raise it")
    require_same_data(e, state, run.identity["data"])
    restore(run.gan, loaded, config, where)
    collectives.current().only_on_rank_zero(lambda: run.folder.write_config(config))
    with as_checkpoint_error(where):
        require_scores(state["progress"])
        run.record.resume(state["progress"])
        run.engine.loss_buffer.load_state_dict(run.progress["tally"])
        take_threads(e, int(state["threads"]))
    run.step = run.saved = step
    run.identity["threads"] = torch.get_num_threads()
    report_differences(step, state, run.identity, changed, run.progress)
    if requested_checkpoint(e.resume) is not None:  # it becomes the newest: moved or copied, then the others
        checkpoints.save(step, tensors, state)  # first, so that a kill in between leaves the run a checkpoint
        moved = checkpoints.set_aside(step)
        later = f"; {len(moved)} later moved aside" if moved else ""
        log.warning("resuming from step %d, as requested%s", step, later)


def find(checkpoints: Checkpoints, e: Experiment, config: Mapping[str, Any]) -> Loaded | None:
    """The verified checkpoint to resume from; None for a run that has none yet.

    Raises CheckpointError if the requested one, or every one, is unusable. For a checkpoint of another run
    the message names the first config key that differs.
    """
    requested = requested_checkpoint(e.resume)
    try:
        if isinstance(requested, Path):
            return checkpoints.read(requested)
        if requested is not None:
            return checkpoints.load(requested)
        return checkpoints.load() if checkpoints.has_any() else None
    except CheckpointError as error:
        raise CheckpointError(_with_key(m, config) for m in error.mistakes) from error


def _with_key(mistake: Mistake, config: Mapping[str, Any]) -> Mistake:
    """Add the first differing config key to the mistake of another run's checkpoint, if it is known."""
    if "another run" not in mistake.what:
        return mistake
    state: Any = None
    with contextlib.suppress(GanlabError, ValueError, RecursionError):
        state = json.loads(manifest.read(Path(mistake.where) / manifest.STATE, manifest.MAX_STATE))
    key = _first(_differing(state if isinstance(state, dict) else {}, config))
    return mistake._replace(what=f"{mistake.what}, made with {key}") if key else mistake


def stored_identity(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of the run and machine that saved a checkpoint; empty for an old one."""
    identity = state.get("identity")
    return to_current(identity) if isinstance(identity, Mapping) else {}


def _differing(state: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """Differences of a checkpoint's config from this one, except in keys that do not affect training."""
    stored = stored_identity(state).get("config")
    if not isinstance(stored, Mapping):
        return []
    return [d for d in differences(dict(stored), dict(config)) if d.key.partition(".")[0] not in FREE]


def _first(changes: Sequence[Difference]) -> str:
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    return f"{changes[0].key} {changes[0]}{more}" if changes else ""


def restore(gan: GAN, loaded: Loaded, config: Mapping[str, Any], where: str) -> None:
    """Load a checkpoint's networks and optimizers into a newly built GAN, completely or not at all.

    Raises CheckpointError with the first tensor that does not fit, both shapes, and the config key that
    causes it, if the checkpoint contains its config.
    """
    step, tensors, state = loaded
    try:
        if not isinstance(state.get("game"), dict):
            raise CheckpointError(where, "contains no networks", "resume from another step")
        require_networks(gan, tensors, where)
        _require_optimizer_state(gan, tensors, step, where)
        unpack_gan(gan, tensors, state["game"], where)
    except CheckpointError as error:
        if not (key := _first(_differing(state, config))):
            raise
        raise CheckpointError(m._replace(fix=f"it was made with {key}") for m in error.mistakes) from error


def _require_optimizer_state(gan: GAN, tensors: Mapping[str, Tensor], step: int, where: str) -> None:
    """Raise CheckpointError unless the optimizers' state is what a step creates; torch does not check."""
    for name, optimizer in (("g_optimizer", gan.g_optimizer), ("d_optimizer", gan.d_optimizer)):
        saved = {k: v for k, v in tensors.items() if k.startswith(f"{name}/")}
        if not saved and (step == 0 or (gan.fixed and name == "g_optimizer")):
            continue  # it has not stepped yet, or never does
        expected, _ = flatten(name, {"state": state_after_one_step(optimizer)})
        if saved:  # a parameter that was never used has no state
            indices = {k.split("/")[2] for k in saved if k.count("/") > 1}
            expected = {k: v for k, v in expected.items() if k.split("/")[2] in indices}
        require_fit(saved, expected, where)


def require_same_data(e: Experiment, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise DataError if the images are not those that the run has been trained on."""
    was = stored_identity(state).get("data")
    if not isinstance(was, Mapping) or was.get("fingerprint") == now["fingerprint"]:
        return
    if any(name == "dataset" or name.startswith("dataset.") for name in e.resume_allow):
        return
    a, b = (f"{d.get('images')} images {str(d.get('fingerprint'))[:12]}" for d in (was, now))
    fix = "restore them, or set resume_allow=[dataset]"
    raise DataError("dataset", f"this run was trained on other images: {a}, now {b}", fix)


@contextlib.contextmanager
def as_checkpoint_error(where: str) -> Iterator[None]:
    """Turn errors about missing or malformed state of a crafted checkpoint into CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"its state does not fit ({type(error).__name__}: {error})"
        raise CheckpointError(where, what, "resume from another step") from error


def take_threads(e: Experiment, threads: int) -> None:
    """Use the run's recorded thread count unless the config sets one."""
    if not fits(threads, Threads):
        raise ValueError(f"threads: {threads} is not {describe(Threads)}")
    if e.threads is None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def report_differences(
    step: int,
    state: Mapping[str, Any],
    now: Mapping[str, Any],
    changed: Sequence[Difference],
    progress: dict[str, Any],
) -> None:
    """Warn of every change that breaks bit-identity, and of config keys changed by resume_allow.

    The latter are recorded in ``progress["changes"]``.
    """
    was = {"threads": state.get("threads"), **stored_identity(state)}
    if different := provenance.changed(was, now):
        log.warning("resume is exact only with what step %d was made with: %s", step, "; ".join(different))
    for d in changed:
        entry = {"step": step, "key": d.key, "was": brief(d.stored), "now": brief(d.requested)}
        progress["changes"] = [*progress.get("changes", ()), entry]
        log.warning("%s: %s from step %d on, by resume_allow", d.key, d, step)


class WarningBuffer(logging.Handler):
    """Collects warnings of ganlab's modules in ``messages``, in order, until the run's log exists."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> WarningBuffer:
        logging.getLogger("ganlab").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("ganlab").removeHandler(self)
