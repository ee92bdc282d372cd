"""A run from config to result: begin or continue it, train, log, evaluate, save.

Reading order: ``train`` -> ``turns`` -> ``Run.turns`` -> ``step.play_round``. Nothing here knows a part by
name. Randomness is a function of (seed, step), so a resumed run needs no random state, and several runs of
one process may take turns between updates (``sweeps/lanes.py``): each is what it would be alone.
"""

from __future__ import annotations

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
from ganlab.system.packages import RUNS, require
from ganlab.system.signals import StopFlag
from ganlab.training import engine, rank_zero, resume
from ganlab.training.batches import Feed
from ganlab.training.build import (
    build_game,
    config_warnings,
    pack_game,
    require_size,
    shape_facts,
    slot_bytes,
    unpack_game,
)
from ganlab.training.loss_buffer import memory_errors, num_parameters, runaway
from ganlab.training.monitor import Monitor
from ganlab.training.optimizers import require_usable
from ganlab.training.rank_zero import locked, require_alike, run_folder
from ganlab.training.resources import Resources
from ganlab.training.validation import split_of, validating
from ganlab.types import NOUNS

SAVE_TRIES = 3  # full-disk failures in a row before a run gives up


class Run:
    """A run while it goes on. ``step``: generator updates done. ``shared``: with the process's other runs."""

    def __init__(
        self,
        folder: RunFolder,
        e: Experiment,
        choices: Mapping[str, Any],
        stop: StopFlag,
        device: torch.device,
        images: SampleSet,
        shared: Resources,
        config: Mapping[str, Any],
        changed: Sequence[Difference] = (),
    ) -> None:
        self.folder, self.e, self.stop, self.device = folder, e, stop, device
        self.record = RunRecord(folder, device)
        self.progress = self.record.progress
        self.game = build_game(e, device, len(images.classes), images.shape)
        if self.game.num_classes and images.labels is not None:
            self.game.labels = torch.from_numpy(images.labels).to(device)
        self.batches = images.batches(device, e.seed, e.data_memory_gb)
        self.step, self.saved, self.failed_saves = 0, -1, 0
        self.runaway: set[str] = set()  # losses out of all bounds, told once
        self.idle_s = 0.0  # spent waiting for a place among other runs: no training time
        feed = Feed(self.batches, e, e.d_steps + self.game.loss.generator_needs_real)
        self.engine = engine.make(e, self.game, feed)
        self.identity = identity(e, config, device, self.game.bf16, images, folder.run_id)
        self.checkpoints = rank_zero.checkpoints(
            folder.checkpoints, folder.run_id, e.keep_checkpoints, self.identity["config_hash"], e.keep_every
        )
        self.checkpoints.clean()
        vocabulary.write_vocabulary(folder, images)
        with resume.WarningBuffer() as heard:
            resume.continue_run(self, shared.packed, config, changed)
            collectives.current().copied(pack_game(self.game)[0])
            parameters = {
                "generator": num_parameters(self.game.generator),
                "discriminator": num_parameters(self.game.discriminator),
            }
            self.record.identify(e, self.game.num_classes, parameters, choices, images, self.step)
        self.log = rank_zero.log(folder.path, e.steps, self.step, self.record.begun_s)
        slow = slow_bf16(e.precision, device)
        for text in [
            *heard.said,
            *([] if self.step else config_warnings(self.game)),
            *([slow] if slow else []),
        ]:
            self.log.warn(text)
        protocols = {e.metric.progress, e.metric.protocol}
        self.evaluators = {p: shared.evaluator(e, p, device) for p in protocols}
        seen = self.log, self.record, stop.poll, previews.preview_of(images, e.seed)
        self.observer = Monitor(folder, e, self.game, self.evaluators, *seen)
        self.observer.validation = validating(e, self.game, images, shared.held_out(e))

    # ---- the loop ------------------------------------------------------------------------------------

    def turns(self) -> Iterator[Run]:
        """All remaining steps, then the last scores: a generator that rests after each update.

        Other runs of the process may go on meanwhile. See ``loop.train`` for what it raises.
        """
        e = self.e
        try:
            with memory_errors(e.batch_size):
                self.stop.training_started(collectives.current().signal)
                self._opening()
                yield from self._rest()
                yield from self._steps()
                self._finish()
            self.log.flush()
            self._write("finished")
            self.log.say(f"finished {self.folder.path}: {summary_line(self.record.result)}")
        except Stopped as stopped:
            self._rescue()
            self._note("stopped")
            what = f"saved at step {self.saved} of {e.steps}"
            raise collectives.raised_on_all_ranks(Stopped(stopped.signum, what, resume.command(e))) from None
        except Diverged as error:
            collectives.raised_on_all_ranks(error)
            self._note("diverged", str(error.mistakes[0]))
            self.log.warn(str(error.mistakes[0]))
            raise
        except GanlabError as error:
            self._note("failed", str(error.mistakes[0]))
            raise
        except Exception as error:
            self._note("failed", f"{type(error).__name__}: {error}")
            error.ganlab_run = self.folder.path  # type: ignore[attr-defined]  # where crash.txt belongs
            raise
        finally:
            self.batches.close()
            self.log.close()

    def _rest(self) -> Iterator[Run]:
        """Hand over: until the next turn, what is heard in the process is another run's."""
        self.log.detach()
        yield self
        self.log.attach()

    def _opening(self) -> None:
        p = self.progress
        self._write("running")
        if self.step == 0 and self.e.threads is None and (hint := oversubscription_hint(self.device)):
            self.log.say(hint)
        if self.step == 0 and self.saved < 0:
            self.save()  # a full or read-only disk shows now, not hours later
            collectives.current().first_does(self._require_room)
        if self.step == 0:
            self.observer.samples(self.step)
            self.observer.real()
        if self.step == 0 and self.e.spectral_every:
            self.observer.spectra(self.step)
        if self.e.eval_start and self.step == 0 and p["evaluated"] < 0:
            self.evaluate()
        elif self.step and self._due(self.e.eval_every) and p["evaluated"] < self.step < self.e.steps:
            self.evaluate()  # a signal had cut this one short

    def _steps(self) -> Iterator[Run]:
        """Updates. ``train_s`` counts the clock's time outside evaluations, other runs' turns included."""
        e, p = self.e, self.progress
        check = e.log_every or engine.CHECK_EVERY
        mark, tick = (self.step, p["train_s"]), time.perf_counter()
        while self.step < e.steps:
            self.engine.update(self.step)
            self.step += 1
            self._tell_engine()
            self.log.set_progress(self.step)
            last = self.step == e.steps
            means = self._means() if self._due(check) or last else None  # the only host sync
            p["train_s"] += time.perf_counter() - tick
            if means and e.log_every:
                rate = (self.step - mark[0]) / max(p["train_s"] - mark[1], 1e-9)
                self.log.train(self.step, self.observer.curves(means), rate)
                mark = (self.step, p["train_s"])
            self._warn_of(runaway(means or {}))
            if last or any(map(self._due, (e.spectral_every, e.sample_every, e.eval_every, e.save_every))):
                self.engine.settle()
            if self._due(e.spectral_every):
                self.observer.spectra(self.step)
            if last:
                return  # ``_finish`` does the rest
            if self._due(e.sample_every):
                self.observer.samples(self.step)
            if self._due(e.eval_every):
                self.evaluate()
            if self._due(e.save_every):
                self.save()
            self.stop.poll(collectives.current().signal)
            tick = time.perf_counter()
            yield from self._rest()
            tick, self.idle_s = tick + self.idle_s, 0.0

    def _finish(self) -> None:
        """The final grid, checkpoint and scores: of the last step, and of the best one on the way."""
        e, p = self.e, self.progress
        one_protocol = e.metric.progress is e.metric.protocol
        self.observer.samples(self.step)
        self.save()  # before the scores, which may take long, and which it does not need
        if (e.eval_every or one_protocol) and p["evaluated"] < self.step:
            self.evaluate()
        if one_protocol:
            self.record.final = {"last": p["last"], "best": p["best"] or p["last"]}
            return
        if not e.metric.scores:
            return
        last = self.observer.score(e.metric.protocol, self.step)
        self.observer.tell(last, "final")
        self.record.final = {"last": score_entry(last), "best": score_entry(last)}
        best, better = p["best"], self.evaluators[e.metric.protocol].better
        if best and best["step"] != self.step:
            try:
                other = self._score_checkpoint(best["step"])
                if improves(other["values"], last.values, better):  # both under the final protocol
                    self.record.final["best"] = other
            except CheckpointError as error:  # a lost best one must not keep a run from its end
                self.log.warn(f"{error.mistakes[0]._replace(fix='')}; the last one stands for the best")

    # ---- pieces --------------------------------------------------------------------------------------

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _tell_engine(self) -> None:
        """Say how updates run, once, and again if that changes."""
        found = self.engine.told
        if found != self.record.engine:
            self.record.engine = found
            many = rank_zero.ranks_summary(self.e.sync_bn)
            why, threads = f": {found['why']}" if found["why"] else "", torch.get_num_threads()
            self.log.say(
                f"engine {found['used']}{why}; {found['precision']}, real and generated images pass D "
                f"{found['d_pass']}, {threads} thread{'s' if threads > 1 else ''}{many}"
            )

    def _means(self) -> dict[str, float]:
        self.engine.settle()
        return self.engine.ring.means(self.step)

    def _warn_of(self, losses: Mapping[str, float]) -> None:
        """Losses out of all bounds, each once."""
        for name in losses.keys() - self.runaway:
            self.runaway.add(name)
            self.log.warn(f"step {self.step}: loss {name} is {losses[name]:.3g}; it seems to diverge")

    def evaluate(self) -> None:
        """Scores during training; a new best is saved at once."""
        if not self.e.metric.scores:
            return
        scores, p = self.observer.score(self.e.metric.progress, self.step), self.progress
        p["evaluated"] = self.step
        self.observer.tell(scores)
        p["last"] = score_entry(scores)
        best, better = p["best"], self.evaluators[self.e.metric.progress].better
        like = best is not None and best.get("protocol_id") == scores.protocol_id  # resume_allow changes it
        if improves(scores.values, best["values"] if like else None, better):
            p["best"] = score_entry(scores)
            self.save()
            if self.saved != self.step:  # a full disk: no best without its checkpoint
                p["best"] = best
        self._note("running")

    def _score_checkpoint(self, step: int) -> dict[str, Any]:
        _, tensors, state = self.checkpoints.load(step)
        game = build_game(self.e, self.device, self.game.num_classes, self.game.shape)
        unpack_game(game, tensors, state["game"], str(self.checkpoints.path(step)))
        scores = self.observer.score(self.e.metric.protocol, step, game)
        self.log.say(f"the best on the way, step {step}: {format_scores(scores.values)}")
        return score_entry(scores)

    def save(self) -> None:
        """Commit a checkpoint. A full disk is tried again at the next one, ``SAVE_TRIES`` times."""
        if self.saved == self.step:
            return
        self.folder.require_here()
        self.record.clock()
        self.engine.settle()
        self.progress["tally"] = self.engine.ring.state_dict()
        tensors, state = pack_game(self.game)
        try:
            rest = {"game": state, "progress": self.progress, "threads": torch.get_num_threads()}
            rest |= {"num_classes": self.game.num_classes, "identity": self.identity}
            rest |= shape_facts(self.game)
            self.log.flush()  # no checkpoint is older than the metrics that lead to it
            self.checkpoints.save(self.step, tensors, rest)
        except FloatingPointError as error:
            raise Diverged(
                str(error), "a weight or a statistic", f"the last good one is step {self.saved}"
            ) from error
        except EnvError as error:
            self.folder.require_here()
            self.failed_saves += 1
            if self.saved < 0 or self.failed_saves >= SAVE_TRIES:
                raise
            self.log.warn(f"{error.mistakes[0]}; tried again at the next checkpoint")
            return
        self.saved, self.failed_saves = self.step, 0
        best = self.progress["best"]
        self.checkpoints.prune({best["step"]} if best else ())
        (self._note if self.step else self._write)("running")  # at first a disk's every quirk is told

    def _require_room(self) -> None:
        """Raise EnvError unless as many checkpoints fit beside the first as there will be at once."""
        e, size = self.e, self.checkpoints.size(self.step) + slot_bytes(self.game)
        planned, lasting = (e.steps // every if every else 0 for every in (e.save_every, e.keep_every))
        count = min(e.keep_checkpoints, 1 + planned) + bool(e.eval_every)  # the best one is kept beside them
        ensure_room(self.checkpoints.folder, size, count + lasting)

    def _rescue(self) -> None:
        """Save where a signal found the run; a diverged or unwritable state leaves the last good one."""
        try:
            self.save()
        except GanlabError as error:
            self.log.warn(f"{error.mistakes[0]}; the last checkpoint is step {self.saved}")

    def _note(self, status: str, error: str | None = None) -> None:
        """As ``_write``, where a disk that refuses is only told: there is more to save or to say."""
        try:
            self._write(status, error)
        except EnvError as refused:
            if status == "running":
                self.folder.require_here()
            self.log.warn(f"{refused.mistakes[0]}; {self.folder.result.name} is not up to date")

    def _write(self, status: str, error: str | None = None) -> None:
        self.record.write(status, self.step, error)


Turns = Generator[Run, None, None]


def train(
    experiment: Experiment, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]
) -> int:
    """Train, or continue, the run that the config describes; report a finished one. Returns exit code 0.

    Raises GanlabError for everything that a user can mend (see ``errors``), ``Diverged`` and ``Stopped``
    included: by then the state is saved.
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
    shared: Resources,
) -> Turns:
    """The run as a generator that rests after each update; its folder is locked until it ends or is closed.

    Runs of one process that share ``stop`` and ``shared`` may be driven in turns, if they agree in precision,
    determinism, device and threads: those are the process's. Raises as ``train`` does.
    """
    config = {key: value for key, value in config.items() if key not in resume.COMMAND_ONLY_KEYS}
    place = Path(e.run_dir) if e.run_dir else run_path(choices, overrides, e.setting, e.seed)
    folder, many = RunFolder(place), collectives.current()
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
    shared: Resources,
) -> Turns:
    """Continue the run in ``folder``, whose lock is held, or tell how it ended."""
    many, other = collectives.current(), None
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
    if resume.requested_checkpoint(e.resume) is None:
        if e.steps < reached:
            raise ConfigError("steps", f"{e.steps} is less than the {reached} already done", "raise it")
        if result.get("status") == "diverged":
            fix = "use another run_dir=, or resume=never to begin anew"
            raise Diverged(str(folder.path), f"this run diverged: {result.get('error')}", fix)
        if folder.finished(result, e.steps):
            print(f"{folder.path}: finished at step {reached}: {summary_line(result)}")
            return None
        if reached and not Checkpoints(folder.checkpoints, folder.run_id).has_any():
            what = f"holds no checkpoint, and the run had reached step {reached}"
            raise CheckpointError(
                str(folder.checkpoints), what, "restore it, or begin anew with resume=never"
            )
    return [d for d in changed.values() if d.key.partition(".")[0] not in FREE or d.key in e.resume_allow]


def prepare(e: Experiment, shared: Resources | None = None) -> tuple[torch.device, SampleSet]:
    """Device and images. Raises EnvError or DataError before anything is written into a run folder."""
    team = collectives.current()
    with team.together():
        _require_shares(e)
        device, images = _prepared(e, shared or Resources())
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
    size, wrong = collectives.current().size, []
    parts, least = size * e.accumulate, 1 if e.sync_bn else 2
    for key, batch in (("batch_size", e.batch_size), ("g_batch_size", e.g_batch_size)):
        if size > 1 and (batch % parts or batch // parts < least):
            of = f" x accumulate={e.accumulate}" if e.accumulate > 1 else ""
            what = f"{batch} can't be shared by {size} ranks{of}, {least} or more each"
            wrong.append(Mistake(key, what, f"choose a multiple of {parts}, {least * parts} or more"))
    if wrong:
        raise ConfigError(wrong[:1] if e.batch_size == e.g_batch_size else wrong)


def _prepared(e: Experiment, shared: Resources) -> tuple[torch.device, SampleSet]:
    require(*RUNS)
    device = find_device(e.device)
    require_size(e)
    require_usable(e.optimizer, device)
    require_usable(e.optimizer_of_d, device, "d_optimizer")
    set_precision(e.precision, device, e.deterministic)
    if device.type == "cpu":
        disable_malloc_trim()
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
