"""A run from config to result: begin it, continue it, or tell how it ended.

Reading order: ``train`` -> ``turns`` -> ``run.Run.turns`` -> ``step.play_round``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab import ranks, resume
from ganlab.checkpoint import Checkpoints
from ganlab.data.base import ImageSet
from ganlab.errors import CheckpointError, ConfigError, DataError, Diverged, EnvError, Mistake
from ganlab.evaluate import require_split
from ganlab.experiment import NO_LABELS, Experiment
from ganlab.facts import FREE, find_device, keep_memory, run_path, set_precision
from ganlab.first_rank import locked, require_alike, run_folder
from ganlab.optimizers import require_usable
from ganlab.packages import RUNS, require
from ganlab.record import memory_errors, told
from ganlab.run import Run
from ganlab.run_folder import Difference, RunFolder
from ganlab.run_record import read_result
from ganlab.shared import Shared
from ganlab.signals import StopFlag
from ganlab.sizes import require_size
from ganlab.types import NOUNS
from ganlab.validation import split_of

Turns = Generator[Run, None, None]


def train(
    experiment: Experiment, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]
) -> int:
    """Train, or continue, the run that the config describes; report a finished one. Returns exit code 0.

    Raises GanlabError for everything that a user can mend (see ``errors``), ``Diverged`` and ``Stopped``
    included: by then the state is saved.
    """
    with StopFlag() as stop, memory_errors(experiment.batch_size):
        for _ in turns(experiment, config, choices, overrides, stop, Shared()):
            pass
    return 0


def turns(
    e: Experiment,
    config: dict[str, Any],
    choices: Mapping[str, Any],
    overrides: Sequence[str],
    stop: StopFlag,
    shared: Shared,
) -> Turns:
    """The run as a generator that rests after each update; its folder is locked until it ends or is closed.

    Runs of one process that share ``stop`` and ``shared`` may be driven in turns, if they agree in precision,
    determinism, device and threads: those are the process's. Raises as ``train`` does.
    """
    config = {key: value for key, value in config.items() if key not in resume.ONCE}
    place = Path(e.run_dir) if e.run_dir else run_path(choices, overrides, e.setting, e.seed)
    folder, many = RunFolder(place), ranks.current()
    if many.first_does(lambda: folder.config.exists() or folder.checkpoints.exists()):
        with locked(folder):
            yield from _continued(folder, e, config, choices, stop, shared)
        return
    # A new run: everything that can fail on its config or data fails before its folder exists.
    resume.require_any(folder, e)
    device, images = prepare(e, shared)
    with locked(folder):
        if many.first_does(folder.config.exists):  # another process was here in the meantime
            yield from _continued(folder, e, config, choices, stop, shared)
            return
        many.first_does(lambda: folder.write_config(config))
        yield from Run(run_folder(folder), e, choices, stop, device, images, shared, config).turns()


def _continued(
    folder: RunFolder,
    e: Experiment,
    config: dict[str, Any],
    choices: Mapping[str, Any],
    stop: StopFlag,
    shared: Shared,
) -> Turns:
    """Continue the run in ``folder``, whose lock is held, or tell how it ended."""
    many, other = ranks.current(), None
    if e.resume != "never":
        other = many.first_only(lambda: _changed(folder, e, config))
        if many.first_does(lambda: other is None):
            return
    device, images = prepare(e, shared)
    if e.resume == "never":
        many.first_does(lambda: _restart(folder, config))
    yield from Run(run_folder(folder), e, choices, stop, device, images, shared, config, other or ()).turns()


def _restart(folder: RunFolder, config: dict[str, Any]) -> None:
    before = folder.restart()
    folder.write_config(config)
    print(f"{folder.path}: begun anew; what was there lies in {before.name}")


def _changed(folder: RunFolder, e: Experiment, config: dict[str, Any]) -> list[Difference] | None:
    """Where the run is not to go on as it was made, by ``resume_allow``; None, and told, if it has finished.

    Raises ConfigError for a config that is another run's, Diverged for a run that has.
    """
    resume.recover_config(folder)
    if not folder.config.exists():  # a folder for checkpoints that has none
        folder.write_config(config)
    stored = folder.read_config() or {}
    changed = {d.key: d for d in folder.check_config(config, resume.allowed(e, stored, config))}
    result = read_result(folder.result) or {}
    reached = int(result.get("step", 0))
    if "steps" in changed and "steps" not in e.resume_allow and e.lr_decay != "none":
        raise ConfigError("steps", f"made with {changed['steps']}, and lr_decay depends on it", "keep it")
    if resume.place(e.resume) is None:
        if e.steps < reached:
            raise ConfigError("steps", f"{e.steps} is less than the {reached} already done", "raise it")
        if result.get("status") == "diverged":
            fix = "use another run_dir=, or resume=never to begin anew"
            raise Diverged(str(folder.path), f"this run diverged: {result.get('error')}", fix)
        if folder.finished(result, e.steps):
            print(f"{folder.path}: finished at step {reached}: {told(result)}")
            return None
        if reached and not Checkpoints(folder.checkpoints, folder.run_id).has_any():
            what = f"holds no checkpoint, and the run had reached step {reached}"
            raise CheckpointError(
                str(folder.checkpoints), what, "restore it, or begin anew with resume=never"
            )
    return [d for d in changed.values() if d.key.partition(".")[0] not in FREE or d.key in e.resume_allow]


def prepare(e: Experiment, shared: Shared | None = None) -> tuple[torch.device, ImageSet]:
    """Device and images. Raises EnvError or DataError before anything is written into a run folder."""
    team = ranks.current()
    with team.together():
        _require_shares(e)
        device, images = _prepared(e, shared or Shared())
    team.use(device)
    require_alike(e, device, images)
    return device, images


def require_possible(e: Experiment) -> None:
    """Raise ConfigError or DataError for a split that its data set has not. Reads no images.

    A data set that is not on this machine, and would be on another, is not asked.
    """
    try:
        there = e.dataset.splits()
    except (DataError, EnvError):
        return
    for protocol in dict.fromkeys([e.metric.progress, e.metric.protocol]):
        require_split(protocol, e.dataset.name, there)
    split_of(e)


def _require_shares(e: Experiment) -> None:
    """Raise ConfigError unless each rank gets the same share of every micro batch."""
    size, wrong = ranks.current().size, []
    parts, least = size * e.accumulate, 1 if e.sync_bn else 2
    for key, batch in (("batch_size", e.batch_size), ("g_batch_size", e.g_batch_size)):
        if size > 1 and (batch % parts or batch // parts < least):
            of = f" x accumulate={e.accumulate}" if e.accumulate > 1 else ""
            what = f"{batch} can't be shared by {size} ranks{of}, {least} or more each"
            wrong.append(Mistake(key, what, f"choose a multiple of {parts}, {least * parts} or more"))
    if wrong:
        raise ConfigError(wrong[:1] if e.batch_size == e.g_batch_size else wrong)


def _prepared(e: Experiment, shared: Shared) -> tuple[torch.device, ImageSet]:
    require(*RUNS)
    device = find_device(e.device)
    require_size(e)
    require_usable(e.optimizer, device)
    require_usable(e.optimizer_of_d, device, "d_optimizer")
    set_precision(e.precision, device, e.deterministic)
    if device.type == "cpu":
        keep_memory()
    if e.threads:
        torch.set_num_threads(e.threads)
    split_of(e)  # a wrong name shows before the data are read
    images = shared.images(e)
    shared.held_out(e)
    if e.architecture.conditional and images.labels is None:
        raise ConfigError("dataset", *NO_LABELS.format(f"{images.name} {images.split}").split("; "))
    if e.architecture.conditional and len(images.classes) < 2:
        what = f"{images.name} {images.split} has one class, and this architecture is conditional"
        raise ConfigError("dataset", what, "use a set with several, or architecture.head=none")
    wrong: dict[Mistake, None] = {}  # of both protocols, each told once
    for protocol in dict.fromkeys([e.metric.progress, e.metric.protocol]):
        try:
            shared.evaluator(e, protocol, device).check()
        except DataError as error:
            wrong |= dict.fromkeys(error.mistakes)
    if wrong:
        raise DataError(wrong)
    if len(images) < e.batch_size and not images.endless:
        named = NOUNS[images.shape.kind]
        what = f"{e.batch_size} is more than the {len(images)} {named} of {images.name} {images.split}"
        raise ConfigError("batch_size", what, f"use at most {len(images)}")
    return device, images
