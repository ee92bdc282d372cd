"""Continuing a run: which checkpoint, whether it fits, and what is not as it was.

``resume=auto`` takes the newest checkpoint that verifies; a step or a step's folder takes that one or fails;
``never`` sets the old run aside and begins anew.
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

from ganlab.errors import CheckpointError, ConfigError, DataError, EnvError, GanlabError, Mistake
from ganlab.experiment import Experiment
from ganlab.runs import manifest, provenance
from ganlab.runs.checkpoint import Checkpoints, Loaded
from ganlab.runs.folder import Difference, RunFolder, brief, differences
from ganlab.runs.naming import FREE
from ganlab.runs.renamed import to_current
from ganlab.runs.result import require_scores
from ganlab.runs.state import flatten, require_fit
from ganlab.schema import Threads, describe, fits, parameters
from ganlab.training.build import require_networks, unpack_game
from ganlab.training.gan import GAN
from ganlab.training.optimizers import slots_after_a_step

log = logging.getLogger("ganlab")
COMMAND_ONLY_KEYS = ("resume", "resume_allow")  # of a command, not of a run: they stay out of its config.yaml


def requested_checkpoint(asked: str | int) -> int | Path | None:
    """A step, the folder of one, or None where ``asked`` is ``auto`` or ``never``."""
    text = str(asked)
    if text in ("auto", "never"):
        return None
    return int(text) if text.isdecimal() else Path(text)


def require_any(folder: RunFolder, e: Experiment) -> None:
    """Raises CheckpointError if a named checkpoint is asked for in a folder that holds no run."""
    if requested_checkpoint(e.resume) is not None:
        what = f"holds no run, and resume={e.resume} asks for one of its checkpoints"
        raise CheckpointError(str(folder.path), what, "leave resume= out to begin one")


def recover_config(folder: RunFolder) -> None:
    """Write the lost ``config.yaml`` of a run anew, from its newest checkpoint. Hold the lock.

    Raises CheckpointError if none tells it: then nobody knows what the run was.
    """
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
    if folder.config.exists() or not checkpoints.has_any():
        return
    step, _, state = checkpoints.load(quarantine=False)
    config = stored_identity(state).get("config")
    if not isinstance(config, dict):
        what = "is missing, and the checkpoints are too old to tell what was in it"
        raise CheckpointError(str(folder.config), what, "restore it, or begin anew with resume=never")
    folder.write_config(config)
    log.warning("%s: was missing; as checkpoint %d tells it", folder.config, step)


def allowed(e: Experiment, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> frozenset[str]:
    """The keys that may differ: those that change nothing of the training, and those of ``resume_allow``.

    Raises ConfigError for a name in it that is no key.
    """
    keys, wrong = {*_keys(stored), *_keys(asked), *parameters(Experiment)}, []
    for name in e.resume_allow:
        if name not in keys:
            fix = "name keys as 'ganlab train --cfg job' shows them, with dots"
            wrong.append(Mistake("resume_allow", f"{name!r} is no key of this run", fix))
    if wrong:
        raise ConfigError(wrong)
    return FREE.union(e.resume_allow)


def _keys(tree: Any, where: str = "") -> Iterator[str]:
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        name = f"{where}.{key}" if where else str(key)
        yield name
        yield from _keys(value, name)


def command(e: Experiment) -> str:
    """What continues a run that was stopped, for its message."""
    if requested_checkpoint(e.resume) is None and e.resume != "never":
        return "run the same command again to continue"
    return f"run the same command again, without resume={e.resume}, to continue"


def continue_run(run: Any, packed: bool, config: Mapping[str, Any], changed: Sequence[Difference]) -> None:
    """Bring a freshly built ``run.Run`` to its checkpoint, if it has one; all or nothing.

    ``config``: kept as the folder's from now on. ``changed``: where it is not what it was, by resume_allow.
    """
    loaded = load_checkpoint(run.checkpoints, run.e, run.game, config, run.identity["data"])
    if changed or loaded:
        run.folder.write_config(config)
    if loaded is None:
        return
    step, tensors, state = loaded
    with as_checkpoint_error(str(run.checkpoints.path(step))):
        require_scores(state["progress"])
        run.record.resume(state["progress"])
        run.engine.ring.load_state_dict(run.progress["tally"])
        take_threads(run.e, int(state["threads"]), packed)
    run.step = run.saved = step
    run.identity["threads"] = torch.get_num_threads()
    report_differences(step, state, run.identity, changed, run.progress)
    if requested_checkpoint(run.e.resume) is not None:
        step_back(run.checkpoints, step, tensors, state)


def load_checkpoint(
    checkpoints: Checkpoints, e: Experiment, game: GAN, config: Mapping[str, Any], data: Mapping[str, Any]
) -> Loaded | None:
    """``find``, and put it into the freshly built ``game``. ``data``: what ``identity`` says of the images.

    Raises as ``find``, ``restore`` and ``require_same_data`` do; ConfigError if it is beyond ``steps``.
    """
    loaded = find(checkpoints, e, config)
    if loaded is None:
        return None
    step, _, state = loaded
    if step > e.steps:
        raise ConfigError("steps", f"{e.steps} is less than the {step} already done", "raise it")
    require_same_data(e, state, data)
    restore(game, loaded, config, str(checkpoints.path(step)))
    return loaded


def find(checkpoints: Checkpoints, e: Experiment, config: Mapping[str, Any]) -> Loaded | None:
    """The checkpoint to go on from, verified; None for a run that has none yet.

    Raises CheckpointError: a named one is unusable, or all are. One of another run is told with the first key
    in which its config differs.
    """
    asked = requested_checkpoint(e.resume)
    try:
        if isinstance(asked, Path):
            return checkpoints.read(asked)
        if asked is not None:
            return checkpoints.load(asked)
        return checkpoints.load() if checkpoints.has_any() else None
    except CheckpointError as error:
        raise CheckpointError(_with_key(m, config) for m in error.mistakes) from error


def _with_key(mistake: Mistake, config: Mapping[str, Any]) -> Mistake:
    """Another run's checkpoint, told with the key that makes it so, if its config is in it."""
    if "another run" not in mistake.what:
        return mistake
    state: dict[str, Any] = {}
    with contextlib.suppress(GanlabError, ValueError, RecursionError):
        read = json.loads(manifest.read(Path(mistake.where) / manifest.STATE, 64 << 20))
        state = read if isinstance(read, dict) else {}
    key = _first(_differing(state, config))
    return mistake._replace(what=f"{mistake.what}, made with {key}") if key else mistake


def stored_identity(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says of the run and the machine that made it; empty where it is too old to."""
    identity = state.get("identity")
    return to_current(identity) if isinstance(identity, Mapping) else {}


def _differing(state: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """Where a checkpoint's own config is not this one, but for keys that change nothing of the training."""
    was = stored_identity(state).get("config")
    if not isinstance(was, Mapping):
        return []
    return [d for d in differences(dict(was), dict(config)) if d.key.partition(".")[0] not in FREE]


def _first(found: Sequence[Difference]) -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0].key} {found[0]}{more}" if found else ""


def restore(game: GAN, loaded: Loaded, config: Mapping[str, Any], where: str) -> None:
    """Put a checkpoint's networks and optimisers into a freshly built game, all or nothing.

    Raises CheckpointError with the first tensor that does not fit, both shapes, and the config key that makes
    the difference, where the checkpoint knows it.
    """
    step, tensors, state = loaded
    try:
        if not isinstance(state.get("game"), dict):
            raise CheckpointError(where, "holds no networks", "resume from another step")
        require_networks(game, tensors, where)
        _require_slots(game, tensors, step, where)
        unpack_game(game, tensors, state["game"], where)
    except CheckpointError as error:
        if not (key := _first(_differing(state, config))):
            raise
        raise CheckpointError(m._replace(fix=f"it was made with {key}") for m in error.mistakes) from error


def _require_slots(game: GAN, tensors: Mapping[str, Tensor], step: int, where: str) -> None:
    """torch loads an optimiser's slots of any shape, and none at all: here they must be what a step makes."""
    for name, optimizer in (("g_optimizer", game.g_optimizer), ("d_optimizer", game.d_optimizer)):
        found = {k: v for k, v in tensors.items() if k.startswith(f"{name}/")}
        if not found and (step == 0 or (game.fixed and name == "g_optimizer")):
            continue  # it has not moved yet, or never does
        wanted, _ = flatten(name, {"state": slots_after_a_step(optimizer)})
        if found:  # a parameter that was never used has none
            there = {k.split("/")[2] for k in found if k.count("/") > 1}
            wanted = {k: v for k, v in wanted.items() if k.split("/")[2] in there}
        require_fit(found, wanted, where)


def require_same_data(e: Experiment, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises DataError if the images are not those that the run was trained on so far."""
    was = stored_identity(state).get("data")
    if not isinstance(was, Mapping) or was.get("fingerprint") == now["fingerprint"]:
        return
    if any(name == "dataset" or name.startswith("dataset.") for name in e.resume_allow):
        return
    a, b = (f"{d.get('images')} images {str(d.get('fingerprint'))[:12]}" for d in (was, now))
    fix = "restore them, or write resume_allow=[dataset]"
    raise DataError("dataset", f"this run was trained on other images: {a}, now {b}", fix)


@contextlib.contextmanager
def as_checkpoint_error(where: str) -> Iterator[None]:
    """Inside, what a crafted checkpoint's state lacks is a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"its state does not fit ({type(error).__name__}: {error})"
        raise CheckpointError(where, what, "resume from another step") from error


def take_threads(e: Experiment, threads: int, packed: bool) -> None:
    """The thread count that the run was made with, where nobody asks for another.

    Raises EnvError in a process that several runs share: it has one count.
    """
    here = torch.get_num_threads()
    if not fits(threads, Threads):
        raise ValueError(f"threads: {threads} is not {describe(Threads)}")
    if e.threads is None and threads != here:
        if packed:
            what = f"made with {threads}, the process that it is packed into has {here}"
            raise EnvError("threads", what, "continue it alone")
        torch.set_num_threads(threads)


def report_differences(
    step: int,
    state: Mapping[str, Any],
    now: Mapping[str, Any],
    changed: Sequence[Difference],
    progress: dict[str, Any],
) -> None:
    """Warn, once, of all that bit-identity hangs on and that is not as it was; and of keys that were changed.

    The latter are kept in ``progress["changes"]``, and so in the record of the run.
    """
    was = {"threads": state.get("threads"), **stored_identity(state)}
    if different := provenance.changed(was, now):
        log.warning("resume is exact only with what step %d was made with: %s", step, "; ".join(different))
    for d in changed:
        entry = {"step": step, "key": d.key, "was": brief(d.stored), "now": brief(d.requested)}
        progress["changes"] = [*progress.get("changes", ()), entry]
        log.warning("%s: %s from step %d on, by resume_allow", d.key, d, step)


def step_back(checkpoints: Checkpoints, step: int, tensors: Mapping[str, Tensor], state: Any) -> None:
    """Make a named checkpoint the run's newest: later ones are set aside, one from elsewhere is taken in."""
    checkpoints.save(step, tensors, state)  # first: a kill in between must not leave a run without any
    aside = checkpoints.set_aside(step)
    later = f"; {len(aside)} later set aside" if aside else ""
    log.warning("goes on from step %d, as asked%s", step, later)


class WarningBuffer(logging.Handler):
    """What ganlab's modules warn of before a run has a voice of its own; ``said`` in order."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def __enter__(self) -> WarningBuffer:
        logging.getLogger("ganlab").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("ganlab").removeHandler(self)
