"""Train a run from config to result: start or resume it, update, log, evaluate, save checkpoints.

Reading order: ``train`` -> ``Run.run`` -> ``step.update``. No dataset, network, loss or method is named
here. Randomness is a function of (seed, step), so resuming needs no random state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab.distributed import collectives
from ganlab.errors import (
    CheckpointError,
    ConfigError,
    Diverged,
    EnvError,
    GanlabError,
    Stopped,
)
from ganlab.experiment import Experiment
from ganlab.metrics.protocol import Protocol
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import Difference, RunFolder
from ganlab.runs.log import Log
from ganlab.runs.naming import FREE, run_path
from ganlab.runs.provenance import identity
from ganlab.runs.result import RunRecord, format_scores, improves, read_result, score_entry, summary_line
from ganlab.samples.base import sample_kind
from ganlab.system.files import ensure_room
from ganlab.system.hardware import (
    oversubscription_hint,
    slow_bf16,
)
from ganlab.system.signals import StopFlag
from ganlab.training import engine, resume
from ganlab.training.batches import Feed
from ganlab.training.build import (
    build_gan,
    config_warnings,
    optimizer_state_bytes,
    pack_gan,
    shape_facts,
    unpack_gan,
)
from ganlab.training.loss_buffer import memory_errors, num_parameters, runaway
from ganlab.training.monitor import Monitor
from ganlab.training.prepare import Inputs, prepare
from ganlab.training.rank_zero import locked, ranks_summary
from ganlab.training.validation import build_validation

SAVE_TRIES = 3  # consecutive failed saves after which a run fails


def train(
    e: Experiment, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Start or resume the run that the config describes; report it if it has finished.

    Its folder is locked until it ends. Raises GanlabError for everything a user can fix (see ``errors``),
    including ``Diverged`` and ``Stopped``, which are raised after the state is saved.
    """
    config = {key: value for key, value in config.items() if key not in resume.COMMAND_ONLY_KEYS}
    path = Path(e.run_dir) if e.run_dir else run_path(choices, overrides, e.setting, e.seed)
    folder, team = RunFolder(path), collectives.current()
    exists = lambda: folder.config.exists() or folder.checkpoints.exists()  # noqa: E731
    inputs, changed = None, None
    with StopFlag() as stop, memory_errors(e.batch_size):
        if not team.on_rank_zero(exists):
            # A new run: an error in its config or data is raised before its folder exists.
            resume.require_any(folder, e)
            inputs = prepare(e)
        with locked(folder):
            if inputs is None or team.on_rank_zero(exists):
                if e.resume != "never":
                    changed = team.only_on_rank_zero(lambda: _changed_keys(folder, e, config))
                    if team.on_rank_zero(lambda: changed is None):
                        return
                inputs = inputs or prepare(e)
                if e.resume == "never":
                    team.on_rank_zero(lambda: _restart(folder, config))
            else:
                team.on_rank_zero(lambda: folder.write_config(config))
            Run(folder, e, choices, stop, inputs, config, changed or ()).run()


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
    """A run in progress. ``step``: completed generator updates."""

    def __init__(
        self,
        folder: RunFolder,
        e: Experiment,
        choices: Mapping[str, Any],
        stop: StopFlag,
        inputs: Inputs,
        config: Mapping[str, Any],
        changed: Sequence[Difference] = (),
    ) -> None:
        device, images = inputs.device, inputs.images
        self.folder, self.e, self.stop, self.device = folder, e, stop, device
        self.record = RunRecord(folder, device)
        self.progress = self.record.progress
        self.gan = build_gan(e, device, len(images.classes), images.shape, images)
        if self.gan.num_classes and images.labels is not None:
            self.gan.labels = torch.from_numpy(images.labels).to(device)
        self.batches = images.batches(device, e.seed, e.data_memory_gb)
        self.step, self.saved, self.failed_saves = 0, -1, 0
        self.runaway_losses: set[str] = set()  # losses out of bounds, each reported once
        feed = Feed(self.batches, e)
        self.engine = engine.make(e, self.gan, feed)
        run_id = collectives.current().on_rank_zero(lambda: folder.run_id)
        self.identity = identity(e, config, device, self.gan.bf16, images, run_id)
        self.checkpoints = Checkpoints(
            folder.checkpoints, run_id, e.keep_checkpoints, self.identity["config_hash"], e.keep_every
        )
        self.checkpoints.clean()
        kind = sample_kind(images.shape)
        kind.begin_run(folder.path, images)
        with resume.WarningBuffer() as buffer:
            resume.continue_run(self, config, changed)
            collectives.current().broadcast_(pack_gan(self.gan)[0])
            parameters = {
                "generator": num_parameters(self.gan.generator),
                "discriminator": num_parameters(self.gan.discriminator),
            }
            self.record.identify(e, self.gan.num_classes, parameters, choices, images, self.step)
        silent = not collectives.current().is_rank_zero
        began, phases = self.record.begun_s, [step for step, _ in e.timetable.stretches(e.steps)]
        self.log = Log(folder.path, e.steps, self.step, began, silent, phases)
        slow = slow_bf16(e.precision, device)
        for text in [
            *buffer.messages,
            *([] if self.step else config_warnings(self.gan)),
            *([slow] if slow else []),
        ]:
            self.log.warn(text)
        self.evaluators = inputs.evaluators
        context = kind.context(images, e.seed)
        self.monitor = Monitor(
            folder, e, self.gan, self.evaluators, self.log, self.record, stop.poll, context
        )
        self.monitor.validation = build_validation(e, self.gan, images, inputs.held_out)

    # ---- the loop ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train the remaining steps, then score. Raises as ``train`` does."""
        e = self.e
        try:
            with memory_errors(e.batch_size):
                self.stop.training_started(collectives.current().signal)
                self._start()
                self._train_loop()
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

    def _train_loop(self) -> None:
        """The updates. ``train_s`` is wall-clock time outside evaluations."""
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
            pictured = self._due(e.sample_every) or (e.sample_every and e.timetable.pictured(self.step))
            if last or pictured or any(map(self._due, (e.spectral_every, e.eval_every, e.save_every))):
                self.engine.settle()
            if self._due(e.spectral_every):
                self.monitor.spectra(self.step)
            if last:
                return  # ``_finish`` logs, saves and scores the last step
            if pictured:
                self.monitor.samples(self.step)
            if self._due(e.eval_every):
                self.evaluate()
            if self._due(e.save_every):
                self.save()
            self.stop.poll(collectives.current().signal)
            tick = time.perf_counter()

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
        if not (e.metric.scores or self.gan.scores()):
            return
        last = self.monitor.score(e.metric.protocol, self.step)
        self.monitor.log_scores(last, "final")
        self.record.final = {"last": score_entry(last), "best": score_entry(last)}
        best, better = p["best"], self._better(e.metric.protocol)
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
        if not (self.e.metric.scores or self.gan.scores()):
            return
        scores, p = self.monitor.score(self.e.metric.progress, self.step), self.progress
        p["evaluated"] = self.step
        self.monitor.log_scores(scores)
        p["last"] = score_entry(scores)
        best, better = p["best"], self._better(self.e.metric.progress)
        comparable = best is not None and best.get("protocol_id") == scores.protocol_id  # see resume_allow
        if improves(scores.values, best["values"] if comparable else None, better):
            p["best"] = score_entry(scores)
            self.save()
            if self.saved != self.step:  # the disk is full: no best without its checkpoint
                p["best"] = best
        self._try_write_result("running")

    def _better(self, protocol: Protocol) -> dict[str, str]:
        """The better direction of each score."""
        return {**self.evaluators[protocol].better, **dict.fromkeys(self.gan.scores(), "lower")}

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
            rest |= shape_facts(self.e, self.gan)
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
