"""Train a run from config to result: start or resume it, update, log, evaluate, save checkpoints.

Reading order: ``train`` -> ``turns`` -> ``Run.turns`` -> ``step.update``. No dataset, network, loss or method
is named here. Randomness is a function of (seed, step), so resuming needs no random state.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab.data.base import SampleSet
from ganlab.distributed import collectives
from ganlab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Diverged,
    EnvError,
    GanlabError,
    Mistake,
    Stopped,
)
from ganlab.evaluation.evaluator import require_split
from ganlab.experiment import NO_LABELS, Experiment
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import Difference, RunFolder
from ganlab.runs.log import Log
from ganlab.runs.naming import FREE, run_path
from ganlab.runs.provenance import identity
from ganlab.runs.result import RunRecord, format_scores, improves, read_result, score_entry, summary_line
from ganlab.samples import previews, vocabulary
from ganlab.system.files import ensure_room
from ganlab.system.hardware import (
    disable_malloc_trim,
    find_device,
    oversubscription_hint,
    set_precision,
    slow_bf16,
)
from ganlab.system.packages import RUN_PACKAGES, require
from ganlab.system.signals import StopFlag
from ganlab.training import engine, resume
from ganlab.training.batches import Feed, require_labels
from ganlab.training.build import (
    build_gan,
    config_warnings,
    optimizer_state_bytes,
    pack_gan,
    require_size,
    shape_facts,
    unpack_gan,
)
from ganlab.training.loss_buffer import memory_errors, num_parameters, runaway
from ganlab.training.monitor import Monitor
from ganlab.training.optimizers import require_usable
from ganlab.training.rank_zero import locked, ranks_summary, require_same_on_ranks
from ganlab.training.resources import Resources
from ganlab.training.validation import build_validation, split_of
from ganlab.types import NOUNS

SAVE_TRIES = 3  # consecutive failed saves after which a run fails


Turns = Generator["Run", None, None]


def train(
    experiment: Experiment, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]
) -> int:
    """Start or resume the run that the config describes; report it if it has finished. Returns exit code 0.

    Raises GanlabError for everything a user can fix (see ``errors``), including ``Diverged`` and ``Stopped``,
    which are raised after the state is saved.
    """
    with StopFlag() as stop, memory_errors(experiment.batch_size):
        for _ in turns(experiment, config, choices, overrides, stop, Resources()):
            pass
    return 0


def turns(
    e: Experiment,
    config: dict[str, Any],
    choices: Mapping[str, Any],
    overrides: Sequence[str],
    stop: StopFlag,
    resources: Resources,
) -> Turns:
    """The run as a generator that yields after each update; its folder is locked until it ends or is closed.

    Runs of one process that share ``stop`` and ``resources`` may alternate if they agree in precision,
    determinism, device and threads, which are settings of the process. Raises as ``train`` does.
    """
    config = {key: value for key, value in config.items() if key not in resume.COMMAND_ONLY_KEYS}
    path = Path(e.run_dir) if e.run_dir else run_path(choices, overrides, e.setting, e.seed)
    folder, team = RunFolder(path), collectives.current()
    if team.on_rank_zero(lambda: folder.config.exists() or folder.checkpoints.exists()):
        with locked(folder):
            yield from _resume(folder, e, config, choices, stop, resources)
        return
    # A new run: an error in its config or data is raised before its folder exists.
    resume.require_any(folder, e)
    device, images = prepare(e, resources)
    with locked(folder):
        if team.on_rank_zero(folder.config.exists):  # another process has created it in the meantime
            yield from _resume(folder, e, config, choices, stop, resources)
            return
        team.on_rank_zero(lambda: folder.write_config(config))
        yield from Run(folder, e, choices, stop, device, images, resources, config).turns()


def _resume(
    folder: RunFolder,
    e: Experiment,
    config: dict[str, Any],
    choices: Mapping[str, Any],
    stop: StopFlag,
    resources: Resources,
) -> Turns:
    """Resume the run in ``folder``, whose lock is held, or report its result if it has finished."""
    team, changed = collectives.current(), None
    if e.resume != "never":
        changed = team.only_on_rank_zero(lambda: _changed_keys(folder, e, config))
        if team.on_rank_zero(lambda: changed is None):
            return
    device, images = prepare(e, resources)
    if e.resume == "never":
        team.on_rank_zero(lambda: _restart(folder, config))
    yield from Run(folder, e, choices, stop, device, images, resources, config, changed or ()).turns()


def _restart(folder: RunFolder, config: dict[str, Any]) -> None:
    """Move the old run aside and start a new one in ``folder``."""
    backup = folder.restart()
    folder.write_config(config)
    print(f"{folder.path}: restarted; the previous run was moved to {backup.name}")


def _changed_keys(folder: RunFolder, e: Experiment, config: dict[str, Any]) -> list[Difference] | None:
    """The keys that ``resume_allow`` changes; None, after printing the result, if the run has finished.

    Raises ConfigError if the config is that of another run, Diverged if the run diverged earlier.
    """
    resume.recover_config(folder)
    if not folder.config.exists():  # a checkpoints folder without any checkpoint
        folder.write_config(config)
    stored = folder.read_config() or {}
    changed = {d.key: d for d in folder.check_config(config, resume.allowed(e, stored, config))}
    result = read_result(folder.result) or {}
    reached = int(result.get("step", 0))
    if "steps" in changed and "steps" not in e.resume_allow and e.lr_decay != "none":
        raise ConfigError("steps", f"made with {changed['steps']}, and lr_decay depends on it", "keep it")
    if resume.requested_checkpoint(e.resume) is None:
        if e.steps < reached:
            raise ConfigError("steps", f"{e.steps} is less than the {reached} already done", "raise it")
        if result.get("status") == "diverged":
            fix = "use another run_dir=, or resume=never to start over"
            raise Diverged(str(folder.path), f"this run diverged: {result.get('error')}", fix)
        if folder.finished(result, e.steps):
            print(f"{folder.path}: finished at step {reached}: {summary_line(result)}")
            return None
        if reached and not Checkpoints(folder.checkpoints, folder.run_id).has_any():
            what = f"contains no checkpoint, but the run had reached step {reached}"
            raise CheckpointError(
                str(folder.checkpoints), what, "restore it, or start over with resume=never"
            )
    return [d for d in changed.values() if d.key.partition(".")[0] not in FREE or d.key in e.resume_allow]


class Run:
    """A run in progress. ``step``: completed generator updates. ``resources``: shared with other runs."""

    def __init__(
        self,
        folder: RunFolder,
        e: Experiment,
        choices: Mapping[str, Any],
        stop: StopFlag,
        device: torch.device,
        images: SampleSet,
        resources: Resources,
        config: Mapping[str, Any],
        changed: Sequence[Difference] = (),
    ) -> None:
        self.folder, self.e, self.stop, self.device = folder, e, stop, device
        self.record = RunRecord(folder, device)
        self.progress = self.record.progress
        self.gan = build_gan(e, device, len(images.classes), images.shape, images)
        if self.gan.num_classes and images.labels is not None:
            self.gan.labels = torch.from_numpy(images.labels).to(device)
        self.batches = images.batches(device, e.seed, e.data_memory_gb)
        self.step, self.saved, self.failed_saves = 0, -1, 0
        self.runaway_losses: set[str] = set()  # losses out of bounds, each reported once
        self.idle_s = 0.0  # spent waiting for other runs of the process: not training time
        feed = Feed(self.batches, e)
        self.engine = engine.make(e, self.gan, feed)
        run_id = collectives.current().on_rank_zero(lambda: folder.run_id)
        self.identity = identity(e, config, device, self.gan.bf16, images, run_id)
        self.checkpoints = Checkpoints(
            folder.checkpoints, run_id, e.keep_checkpoints, self.identity["config_hash"], e.keep_every
        )
        self.checkpoints.clean()
        vocabulary.write_vocabulary(folder, images)
        with resume.WarningBuffer() as buffer:
            resume.continue_run(self, config, changed)
            collectives.current().broadcast_(pack_gan(self.gan)[0])
            parameters = {
                "generator": num_parameters(self.gan.generator),
                "discriminator": num_parameters(self.gan.discriminator),
            }
            self.record.identify(e, self.gan.num_classes, parameters, choices, images, self.step)
        silent = not collectives.current().is_rank_zero
        self.log = Log(folder.path, e.steps, self.step, wall_s=self.record.begun_s, silent=silent)
        slow = slow_bf16(e.precision, device)
        for text in [
            *buffer.messages,
            *([] if self.step else config_warnings(self.gan)),
            *([slow] if slow else []),
        ]:
            self.log.warn(text)
        protocols = {e.metric.progress, e.metric.protocol}
        self.evaluators = {p: resources.evaluator(e, p, device) for p in protocols}
        preview = previews.preview_of(images, e.seed)
        self.monitor = Monitor(
            folder, e, self.gan, self.evaluators, self.log, self.record, stop.poll, preview
        )
        self.monitor.validation = build_validation(e, self.gan, images, resources.held_out(e))

    # ---- the loop ------------------------------------------------------------------------------------

    def turns(self) -> Iterator[Run]:
        """Train the remaining steps, then score: a generator that yields after each update.

        Other runs of the process may train in between. Raises as ``train`` does.
        """
        e = self.e
        try:
            with memory_errors(e.batch_size):
                self.stop.training_started(collectives.current().signal)
                self._start()
                yield from self._yield_turn()
                yield from self._train_loop()
                self._finish()
            self._flush_log()
            self._write_result("finished")
            self.log.say(f"finished {self.folder.path}: {summary_line(self.record.result)}")
        except Stopped as stopped:
            self._save_on_signal()
            self._try_write_result("stopped")
            what = f"saved at step {self.saved} of {e.steps}"
            raise collectives.raised_on_all_ranks(Stopped(stopped.signum, what, resume.command(e))) from None
        except Diverged as error:
            collectives.raised_on_all_ranks(error)
            self._try_write_result("diverged", str(error.mistakes[0]))
            self.log.warn(str(error.mistakes[0]))
            raise
        except GanlabError as error:
            self._try_write_result("failed", str(error.mistakes[0]))
            raise
        except Exception as error:
            self._try_write_result("failed", f"{type(error).__name__}: {error}")
            error.ganlab_run = self.folder.path  # type: ignore[attr-defined]  # where crash.txt belongs
            raise
        finally:
            self.batches.close()
            self.log.close()

    def _yield_turn(self) -> Iterator[Run]:
        """Yield to the other runs of the process; until the next turn its log messages are theirs."""
        self.log.detach()
        yield self
        self.log.attach()

    def _start(self) -> None:
        """The first checkpoint, previews and evaluation, as far as they are not done yet."""
        p = self.progress
        self._write_result("running")
        if self.step == 0 and self.e.threads is None and (hint := oversubscription_hint(self.device)):
            self.log.say(hint)
        if self.step == 0 and self.saved < 0:
            self.save()  # so that a full or read-only disk fails now, not hours later
            collectives.current().on_rank_zero(self._require_room)
        if self.step == 0:
            self.monitor.samples(self.step)
            self.monitor.real()
        if self.step == 0 and self.e.spectral_every:
            self.monitor.spectra(self.step)
        if self.e.eval_start and self.step == 0 and p["evaluated"] < 0:
            self.evaluate()
        elif self.step and self._due(self.e.eval_every) and p["evaluated"] < self.step < self.e.steps:
            self.evaluate()  # a signal interrupted this evaluation

    def _train_loop(self) -> Iterator[Run]:
        """The updates. ``train_s`` is wall-clock time outside evaluations, including other runs' turns."""
        e, p = self.e, self.progress
        check = e.log_every or engine.CHECK_EVERY
        mark, tick = (self.step, p["train_s"]), time.perf_counter()
        while self.step < e.steps:
            self.engine.update(self.step)
            self.step += 1
            self._log_engine()
            self.log.set_progress(self.step)
            last = self.step == e.steps
            means = self._means() if self._due(check) or last else None  # the only host sync
            p["train_s"] += time.perf_counter() - tick
            if means and e.log_every:
                rate = (self.step - mark[0]) / max(p["train_s"] - mark[1], 1e-9)
                self.log.train(self.step, self.monitor.log_values(means), rate)
                mark = (self.step, p["train_s"])
            self._warn_of_runaway_losses(runaway(means or {}))
            if last or any(map(self._due, (e.spectral_every, e.sample_every, e.eval_every, e.save_every))):
                self.engine.settle()
            if self._due(e.spectral_every):
                self.monitor.spectra(self.step)
            if last:
                return  # ``_finish`` logs, saves and scores the last step
            if self._due(e.sample_every):
                self.monitor.samples(self.step)
            if self._due(e.eval_every):
                self.evaluate()
            if self._due(e.save_every):
                self.save()
            self.stop.poll(collectives.current().signal)
            tick = time.perf_counter()
            yield from self._yield_turn()
            tick, self.idle_s = tick + self.idle_s, 0.0

    def _finish(self) -> None:
        """The final samples, checkpoint and scores: of the last step, and of the best checkpoint."""
        e, p = self.e, self.progress
        one_protocol = e.metric.progress is e.metric.protocol
        self.monitor.samples(self.step)
        self.save()  # before scoring, which may take long
        if (e.eval_every or one_protocol) and p["evaluated"] < self.step:
            self.evaluate()
        if one_protocol:
            self.record.final = {"last": p["last"], "best": p["best"] or p["last"]}
            return
        if not e.metric.scores:
            return
        last = self.monitor.score(e.metric.protocol, self.step)
        self.monitor.log_scores(last, "final")
        self.record.final = {"last": score_entry(last), "best": score_entry(last)}
        best, better = p["best"], self.evaluators[e.metric.protocol].better
        if best and best["step"] != self.step:
            try:
                entry = self._score_checkpoint(best["step"])
                if improves(entry["values"], last.values, better):  # both under the final protocol
                    self.record.final["best"] = entry
            except CheckpointError as error:  # a lost best checkpoint must not fail a finished run
                self.log.warn(f"{error.mistakes[0]._replace(fix='')}; the last step counts as the best")

    # ---- helpers --------------------------------------------------------------------------------------

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _log_engine(self) -> None:
        """Log how updates run, at first and after each change."""
        summary = self.engine.summary
        if summary != self.record.engine:
            self.record.engine = summary
            ranks = ranks_summary(self.e.sync_bn)
            reason, threads = f": {summary['why']}" if summary["why"] else "", torch.get_num_threads()
            self.log.say(
                f"engine {summary['used']}{reason}; {summary['precision']}, real and generated images pass D "
                f"{summary['d_pass']}, {threads} thread{'s' if threads > 1 else ''}{ranks}"
            )

    def _flush_log(self) -> None:
        collectives.current().only_on_rank_zero(self.log.flush)

    def _means(self) -> dict[str, float]:
        self.engine.settle()
        return self.engine.loss_buffer.means(self.step)

    def _warn_of_runaway_losses(self, losses: Mapping[str, float]) -> None:
        """Warn of each loss out of bounds, once."""
        for name in losses.keys() - self.runaway_losses:
            self.runaway_losses.add(name)
            self.log.warn(f"step {self.step}: loss {name} is {losses[name]:.3g}; it seems to diverge")

    def evaluate(self) -> None:
        """Score during training; a new best is saved at once."""
        if not self.e.metric.scores:
            return
        scores, p = self.monitor.score(self.e.metric.progress, self.step), self.progress
        p["evaluated"] = self.step
        self.monitor.log_scores(scores)
        p["last"] = score_entry(scores)
        best, better = p["best"], self.evaluators[self.e.metric.progress].better
        comparable = best is not None and best.get("protocol_id") == scores.protocol_id  # see resume_allow
        if improves(scores.values, best["values"] if comparable else None, better):
            p["best"] = score_entry(scores)
            self.save()
            if self.saved != self.step:  # the disk is full: no best without its checkpoint
                p["best"] = best
        self._try_write_result("running")

    def _score_checkpoint(self, step: int) -> dict[str, Any]:
        _, tensors, state = self.checkpoints.load(step)
        gan = build_gan(self.e, self.device, self.gan.num_classes, self.gan.shape)
        unpack_gan(gan, tensors, state["game"], str(self.checkpoints.path(step)))
        scores = self.monitor.score(self.e.metric.protocol, step, gan)
        self.log.say(f"best checkpoint, step {step}: {format_scores(scores.values)}")
        return score_entry(scores)

    def save(self) -> None:
        """Save a checkpoint. A disk error is retried at the next one, ``SAVE_TRIES`` times."""
        if self.saved == self.step:
            return
        self.folder.require_here()
        self.record.clock()
        self.engine.settle()
        self.progress["tally"] = self.engine.loss_buffer.state_dict()
        tensors, state = pack_gan(self.gan)
        try:
            rest = {"game": state, "progress": self.progress, "threads": torch.get_num_threads()}
            rest |= {"num_classes": self.gan.num_classes, "identity": self.identity}
            rest |= shape_facts(self.gan)
            self._flush_log()  # a checkpoint is saved only after the metrics before it
            self.checkpoints.save(self.step, tensors, rest)
        except FloatingPointError as error:
            raise Diverged(
                str(error), "a weight or a statistic", f"the last good checkpoint is step {self.saved}"
            ) from error
        except EnvError as error:
            self.folder.require_here()
            self.failed_saves += 1
            if self.saved < 0 or self.failed_saves >= SAVE_TRIES:
                raise
            self.log.warn(f"{error.mistakes[0]}; retrying at the next checkpoint")
            return
        self.saved, self.failed_saves = self.step, 0
        best = self.progress["best"]
        self.checkpoints.prune({best["step"]} if best else ())
        (self._try_write_result if self.step else self._write_result)(
            "running"
        )  # at first any disk error is raised

    def _require_room(self) -> None:
        """Raise EnvError unless the disk has room for all checkpoints that will exist at once."""
        e, size = self.e, self.checkpoints.size(self.step) + optimizer_state_bytes(self.gan)
        planned, kept = (e.steps // every if every else 0 for every in (e.save_every, e.keep_every))
        count = min(e.keep_checkpoints, 1 + planned) + bool(e.eval_every)  # plus the best
        ensure_room(self.checkpoints.folder, size, count + kept)

    def _save_on_signal(self) -> None:
        """Save after a signal; if the state is diverged or unwritable, the last good checkpoint stays."""
        try:
            self.save()
        except GanlabError as error:
            self.log.warn(f"{error.mistakes[0]}; the last checkpoint is step {self.saved}")

    def _try_write_result(self, status: str, error: str | None = None) -> None:
        """As ``_write_result``, but a disk error is only logged."""
        try:
            self._write_result(status, error)
        except EnvError as disk_error:
            if status == "running":
                self.folder.require_here()
            self.log.warn(f"{disk_error.mistakes[0]}; {self.folder.result.name} is not up to date")

    def _write_result(self, status: str, error: str | None = None) -> None:
        self.record.write(status, self.step, error)


def prepare(e: Experiment, resources: Resources | None = None) -> tuple[torch.device, SampleSet]:
    """The device and the images. Raises EnvError or DataError before the run folder is written to."""
    team = collectives.current()
    with team.agree_on_errors():
        _require_divisible(e)
        device, images = _prepare_locally(e, resources or Resources())
    team.set_device(device)
    require_same_on_ranks(e, device, images)
    return device, images


def require_possible(e: Experiment) -> None:
    """Raise ConfigError or DataError for a split that the dataset does not have. Reads no images.

    A dataset that is not on this machine, though it may be on another, is not checked.
    """
    try:
        splits = e.dataset.splits()
    except (DataError, EnvError):
        return
    for protocol in dict.fromkeys([e.metric.progress, e.metric.protocol]):
        require_split(protocol, e.dataset.name, splits)
    split_of(e)


def _require_divisible(e: Experiment) -> None:
    """Raise ConfigError unless each rank gets the same share of every micro batch."""
    size, mistakes = collectives.current().size, []
    parts, least = size * e.accumulate, 1 if e.sync_bn else 2
    for key, batch in (("batch_size", e.batch_size), ("g_batch_size", e.g_batch_size)):
        if size > 1 and (batch % parts or batch // parts < least):
            of = f" x accumulate={e.accumulate}" if e.accumulate > 1 else ""
            what = f"{batch} can't be split over {size} ranks{of}, at least {least} images each"
            mistakes.append(Mistake(key, what, f"choose a multiple of {parts}, at least {least * parts}"))
    if mistakes:
        raise ConfigError(mistakes[:1] if e.batch_size == e.g_batch_size else mistakes)


def _prepare_locally(e: Experiment, resources: Resources) -> tuple[torch.device, SampleSet]:
    require(*RUN_PACKAGES)
    device = find_device(e.device)
    require_size(e)
    require_usable(e.optimizer, device)
    require_usable(e.optimizer_of_d, device, "d_optimizer")
    set_precision(e.precision, device, e.deterministic)
    if device.type == "cpu":
        disable_malloc_trim()
    if e.threads:
        torch.set_num_threads(e.threads)
    split_of(e)  # an unknown split is reported before the data are read
    images = resources.images(e)
    resources.held_out(e)
    if e.architecture.conditional and images.labels is None:
        raise ConfigError("dataset", *NO_LABELS.format(f"{images.name} {images.split}").split("; "))
    if e.architecture.conditional and len(images.classes) < 2:
        what = f"{images.name} {images.split} has one class, but this architecture is conditional"
        raise ConfigError("dataset", what, "use a dataset with several, or architecture.head=none")
    mistakes: dict[Mistake, None] = {}  # of both protocols, without duplicates
    for protocol in dict.fromkeys([e.metric.progress, e.metric.protocol]):
        try:
            resources.evaluator(e, protocol, device).check()
        except DataError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise DataError(mistakes)
    if problems := [f"{key}: {text}" for key, m in e.methods.items() for text in m.mistakes(e, images)]:
        raise ConfigError(Mistake(*re.split(": |; ", text, maxsplit=2)) for text in problems)
    require_labels(images, e)
    if len(images) < e.batch_size and not images.is_stream:
        noun = NOUNS[images.shape.kind]
        what = f"{e.batch_size} is more than the {len(images)} {noun} of {images.name} {images.split}"
        raise ConfigError("batch_size", what, f"use at most {len(images)}")
    return device, images
