"""One run while it goes on: build, resume, play, log, evaluate, save. Nothing here knows a part by name.

Randomness is a function of (seed, step), so a resumed run needs no random state, and several runs of one
process may take turns between updates (``lanes.py``): each is what it would be alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ganlab import engine, first_rank, looks, ranks, resume, vocabulary
from ganlab.data.base import ImageSet
from ganlab.disk import ensure_room
from ganlab.errors import CheckpointError, Diverged, EnvError, GanlabError, Stopped
from ganlab.experiment import Experiment
from ganlab.facts import crowded, slow_bf16
from ganlab.feed import Feed
from ganlab.identity import identity
from ganlab.observer import Observer
from ganlab.record import brief, entry, improves, memory_errors, runaway, told
from ganlab.run_folder import Difference, RunFolder
from ganlab.run_record import RunRecord
from ganlab.setup import build_game, doubts, pack_game, shape_facts, slot_bytes, unpack_game
from ganlab.shared import Shared
from ganlab.signals import StopFlag
from ganlab.validation import validating

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
        images: ImageSet,
        shared: Shared,
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
        self.identity = identity(e, config, self.game, images, folder.run_id)
        self.checkpoints = first_rank.checkpoints(
            folder.checkpoints, folder.run_id, e.keep_checkpoints, self.identity["config_hash"], e.keep_every
        )
        self.checkpoints.clean()
        vocabulary.keep(folder, images)
        with resume.Heard() as heard:
            resume.go_on(self, shared.packed, config, changed)
            ranks.current().copied(pack_game(self.game)[0])
            self.record.identify(e, self.game, choices, images, self.step)
        self.log = first_rank.log(folder.path, e.steps, self.step, self.record.begun_s)
        slow = slow_bf16(e.precision, device)
        for text in [*heard.said, *([] if self.step else doubts(self.game)), *([slow] if slow else [])]:
            self.log.warn(text)
        protocols = {e.metric.progress, e.metric.protocol}
        self.evaluators = {p: shared.evaluator(e, p, device) for p in protocols}
        seen = self.log, self.record, stop.poll, looks.of(images, e.seed)
        self.observer = Observer(folder, e, self.game, self.evaluators, *seen)
        self.observer.validation = validating(e, self.game, images, shared.held_out(e))

    # ---- the loop ------------------------------------------------------------------------------------

    def turns(self) -> Iterator[Run]:
        """All remaining steps, then the last scores: a generator that rests after each update.

        Other runs of the process may go on meanwhile. See ``loop.train`` for what it raises.
        """
        e = self.e
        try:
            with memory_errors(e.batch_size):
                self.stop.training_started(ranks.current().signal)
                self._opening()
                yield from self._rest()
                yield from self._steps()
                self._finish()
            self.log.flush()
            self._write("finished")
            self.log.say(f"finished {self.folder.path}: {told(self.record.result)}")
        except Stopped as stopped:
            self._rescue()
            self._note("stopped")
            what = f"saved at step {self.saved} of {e.steps}"
            raise ranks.by_all(Stopped(stopped.signum, what, resume.command(e))) from None
        except Diverged as error:
            ranks.by_all(error)
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
        self.log.rest()
        yield self
        self.log.wake()

    def _opening(self) -> None:
        p = self.progress
        self._write("running")
        if self.step == 0 and self.e.threads is None and (hint := crowded(self.device)):
            self.log.say(hint)
        if self.step == 0 and self.saved < 0:
            self.save()  # a full or read-only disk shows now, not hours later
            ranks.current().first_does(self._require_room)
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
            self.stop.poll(ranks.current().signal)
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
        self.record.final = {"last": entry(last), "best": entry(last)}
        best = p["best"]
        if best and best["step"] != self.step:
            try:
                self.record.final["best"] = self._score_checkpoint(best["step"])
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
            many = first_rank.told(self.e.sync_bn)
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
        p["last"] = entry(scores)
        best, better = p["best"], self.evaluators[self.e.metric.progress].better
        if improves(scores.values, best and best["values"], better):
            p["best"] = entry(scores)
            self.save()
            if self.saved != self.step:  # a full disk: no best without its checkpoint
                p["best"] = best
        self._note("running")

    def _score_checkpoint(self, step: int) -> dict[str, Any]:
        _, tensors, state = self.checkpoints.load(step)
        game = build_game(self.e, self.device, self.game.num_classes, self.game.shape)
        unpack_game(game, tensors, state["game"], str(self.checkpoints.path(step)))
        scores = self.observer.score(self.e.metric.protocol, step, game)
        self.log.say(f"best checkpoint, step {step}: {brief(scores.values)}")
        return entry(scores)

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
