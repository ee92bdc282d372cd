"""One run from config to result: load, build, resume, play, log, evaluate, save.

Reading order: ``train`` -> ``Run.play`` -> ``step.play_round``. Nothing here knows a dataset, network,
loss or stabiliser by name. Randomness is a function of (seed, step), so a resumed run needs no random state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab import rng, samples, spectra
from ganlab.checkpoint import Checkpoints
from ganlab.data.base import Batches, ImageSet, to_float
from ganlab.disk import read_json, write_json
from ganlab.errors import ConfigError, DataError, Diverged, EnvError, GanlabError, Mistake, Stopped
from ganlab.evaluate import Evaluator, Scores
from ganlab.experiment import NO_LABELS, Experiment, method_name
from ganlab.facts import (
    FREE,
    device_name,
    find_device,
    git_revision,
    now,
    peak_memory_mb,
    run_path,
    set_precision,
    versions,
)
from ganlab.fakes import generators
from ganlab.log import Log
from ganlab.metrics.protocol import Protocol
from ganlab.paths import cache_dir
from ganlab.record import Tally, brief, entry, improves, memory_errors, size, told
from ganlab.run_folder import RunFolder
from ganlab.setup import build_game, pack_game, unpack_game
from ganlab.signals import StopFlag
from ganlab.step import Game, play_round
from ganlab.types import Batch

CHECK_EVERY = 100  # steps between checks for non-finite losses when log_every is 0
SAVE_TRIES = 3  # full-disk failures in a row before a run gives up


def train(
    experiment: Experiment, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]
) -> int:
    """Train, or continue, the run that the config describes; report a finished one. Returns exit code 0.

    Raises GanlabError for everything that a user can mend (see ``errors``), ``Diverged`` and ``Stopped``
    included: by then the state is saved.
    """
    e = experiment
    place = Path(e.run_dir) if e.run_dir else run_path(choices, overrides, e.setting, e.seed)
    folder = RunFolder(place)
    with StopFlag() as stop:
        if folder.config.exists():
            with folder.lock():
                return _train_in(folder, e, config, choices, stop)
        # A new run: everything that can fail on its config or data fails before its folder exists.
        device, images = prepare(e)
        with folder.lock():
            if folder.config.exists():  # another process was here in the meantime
                return _train_in(folder, e, config, choices, stop)
            folder.write_config(config)
            return Run(folder, e, choices, stop, device, images).play()


def _train_in(
    folder: RunFolder, e: Experiment, config: dict[str, Any], choices: Mapping[str, Any], stop: StopFlag
) -> int:
    """Continue the run in ``folder``, whose lock is held, or tell how it ended."""
    changed = {d.key: d for d in folder.check_config(config, FREE)}
    result = read_json(folder.result) or {}
    reached = int(result.get("step", 0))
    if "steps" in changed:
        if e.steps < reached:
            raise ConfigError("steps", f"{e.steps} is less than the {reached} already done", "raise it")
        if e.lr_decay != "none":
            raise ConfigError("steps", f"made with {changed['steps']}, and lr_decay depends on it", "keep it")
    if result.get("status") == "diverged":
        raise Diverged(str(folder.path), f"this run diverged: {result.get('error')}", "use another run_dir=")
    if result.get("status") == "finished" and reached >= e.steps:
        print(f"{folder.path}: finished at step {reached}: {told(result)}")
        return 0
    device, images = prepare(e)
    if changed:
        folder.write_config(config)
    return Run(folder, e, choices, stop, device, images).play()


def prepare(e: Experiment) -> tuple[torch.device, ImageSet]:
    """Device and images. Raises EnvError or DataError before anything is written into a run folder."""
    device = find_device(e.device)
    set_precision(e.precision, device, e.deterministic)
    if e.threads:
        torch.set_num_threads(e.threads)
    images = e.dataset.load()
    if e.architecture.conditional and images.labels is None:
        raise ConfigError("dataset", *NO_LABELS.format(f"{images.name} {images.split}").split("; "))
    wrong: dict[Mistake, None] = {}  # of both protocols, each told once
    for protocol in dict.fromkeys([e.metric.progress, e.metric.protocol]):
        try:
            Evaluator(e.metric.extractor, e.metric.scores, protocol, e.dataset, device, cache_dir()).check()
        except DataError as error:
            wrong |= dict.fromkeys(error.mistakes)
    if wrong:
        raise DataError(wrong)
    if len(images) < e.batch_size:
        what = f"{e.batch_size} is more than the {len(images)} images of {images.name} {images.split}"
        raise ConfigError("batch_size", what, f"use at most {len(images)}")
    return device, images


class Run:
    """A run while it goes on. ``step``: generator updates done."""

    def __init__(
        self,
        folder: RunFolder,
        e: Experiment,
        choices: Mapping[str, Any],
        stop: StopFlag,
        device: torch.device,
        images: ImageSet,
    ) -> None:
        self.folder, self.e, self.stop, self.device, self.images = folder, e, stop, device, images
        self.began = time.perf_counter()
        self.game = build_game(e, device, len(images.classes))
        if self.game.num_classes and images.labels is not None:
            self.game.labels = torch.from_numpy(images.labels).to(device)
        self.batches = Batches(images, device, e.seed, e.data_memory_gb)
        self.step = 0
        self.progress: dict[str, Any] = {
            "wall_s": 0.0,
            "train_s": 0.0,
            "eval_s": 0.0,
            "evaluated": -1,
            "last": None,
            "best": None,
        }
        self.saved = -1
        self.tally = Tally(0)
        self.failed_saves = 0
        self.checkpoints = Checkpoints(folder.checkpoints, folder.run_id, e.keep_checkpoints)
        self.checkpoints.clean()
        self._resume()
        self.begun_s = float(self.progress["wall_s"])
        self.evaluators = {
            protocol: Evaluator(e.metric.extractor, e.metric.scores, protocol, e.dataset, device, cache_dir())
            for protocol in {e.metric.progress, e.metric.protocol}
        }
        self.final: dict[str, Any] = {}
        self.fixed = self._fixed()
        self.result = self._identity(choices)
        self.log = Log(folder.path, e.steps, start_step=self.step, wall_s=self.begun_s)

    # ---- the loop ------------------------------------------------------------------------------------

    def play(self) -> int:
        """All remaining steps, then the last scores. Returns 0; see ``train`` for what it raises."""
        e = self.e
        try:
            with memory_errors(e.batch_size):
                self.stop.training_started()
                self._opening()
                self._steps()
                self._finish()
            self._write("finished")
            self.log.say(f"finished {self.folder.path}: {told(self.result)}")
            return 0
        except Stopped as stopped:
            self._rescue()
            self._write("stopped")
            fix = "run the same command again to continue"
            raise Stopped(stopped.signum, f"saved at step {self.saved} of {e.steps}", fix) from None
        except Diverged as error:
            self._write("diverged", str(error.mistakes[0]))
            self.log.warn(str(error.mistakes[0]))
            raise
        except GanlabError as error:
            self._write("failed", str(error.mistakes[0]))
            raise
        except Exception as error:
            self._write("failed", f"{type(error).__name__}: {error}")
            error.ganlab_run = self.folder.path  # type: ignore[attr-defined]  # where crash.txt belongs
            raise
        finally:
            self.batches.close()
            self.log.close()

    def _opening(self) -> None:
        p = self.progress
        self._write("running")
        if self.step == 0 and self.saved < 0:
            self.save()  # a full or read-only disk shows now, not hours later
        if self.step == 0:
            self._samples()
        if self.step == 0 and self.e.spectral_every:
            self._spectra()
        if self.e.eval_start and self.step == 0 and p["evaluated"] < 0:
            self.evaluate()
        elif self.step and self._due(self.e.eval_every) and p["evaluated"] < self.step < self.e.steps:
            self.evaluate()  # a signal had cut this one short

    def _steps(self) -> None:
        e, p = self.e, self.progress
        check = e.log_every or CHECK_EVERY
        mark, tick = (self.step, p["train_s"]), time.perf_counter()
        while self.step < e.steps:
            rng.seed_default(self.device, e.seed, "train", 0, self.step)
            self.tally.add(play_round(self.game, self._reader(self.step), e.lr_factor(self.step)))
            self.step += 1
            self.log.set_progress(self.step)
            last = self.step == e.steps
            means = self.tally.means(self.step) if self._due(check) or last else None  # the only host sync
            p["train_s"] += time.perf_counter() - tick
            if means and e.log_every:
                rate = (self.step - mark[0]) / max(p["train_s"] - mark[1], 1e-9)
                self.log.train(self.step, {f"loss/{k}": v for k, v in means.items()}, rate)
                mark = (self.step, p["train_s"])
            if self._due(e.spectral_every):
                self._spectra()
            if last:
                return  # ``_finish`` does the rest
            if self._due(e.sample_every):
                self._samples()
            if self._due(e.eval_every):
                self.evaluate()
            if self._due(e.save_every):
                self.save()
            self.stop.poll()
            tick = time.perf_counter()

    def _finish(self) -> None:
        """The final grid, checkpoint and scores: of the last step, and of the best one on the way."""
        e = self.e
        one_protocol = e.metric.progress is e.metric.protocol
        self._samples()
        if (e.eval_every or one_protocol) and self.progress["evaluated"] < self.step:
            self.evaluate()
        self.save()
        if one_protocol:
            self.final = {
                "last": self.progress["last"],
                "best": self.progress["best"] or self.progress["last"],
            }
            return
        last = self._score(e.metric.protocol)
        self._warn(last)
        self.log.scores(self.step, last.values, last.protocol_id, "final", last.own_ids)
        self.final = {"last": entry(last), "best": entry(last)}
        best = self.progress["best"]
        if best and best["step"] != self.step:
            self.final["best"] = entry(self._score_checkpoint(best["step"]))

    # ---- pieces --------------------------------------------------------------------------------------

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _reader(self, step: int) -> Callable[[], Batch]:
        """``real()`` for one round: batches by their place in the run, converted on the device."""
        e = self.e
        per_round = e.d_steps + self.game.loss.generator_needs_real
        place = iter(range(step * per_round, (step + 1) * per_round))

        def real() -> Batch:
            x, y = self.batches.batch(next(place) * e.batch_size, e.batch_size)
            return Batch(to_float(x, e.dequantize, e.flip).contiguous(memory_format=torch.channels_last), y)

        return real

    def evaluate(self) -> None:
        """Scores during training; a new best is saved at once."""
        scores = self._score(self.e.metric.progress)
        self.progress["evaluated"] = self.step
        self._warn(scores)
        self.log.scores(self.step, scores.values, scores.protocol_id, own_ids=scores.own_ids)
        self.progress["last"] = entry(scores)
        best, better = self.progress["best"], self.evaluators[self.e.metric.progress].better
        if improves(scores.values, best and best["values"], better):
            self.progress["best"] = entry(scores)
            self.save()
            if self.saved != self.step:  # a full disk: no best without its checkpoint
                self.progress["best"] = best
        self._write("running")

    def _score(self, protocol: Protocol, game: Game | None = None, step: int | None = None) -> Scores:
        game, began = game or self.game, time.perf_counter()

        try:
            return self.evaluators[protocol].score(
                *generators(game.live, game.draw, protocol, self.e.shape),
                step=self.step if step is None else step,
                generator="raw" if game.average is None else "ema",
                poll=self.stop.poll,
            )
        finally:
            self.progress["eval_s"] += time.perf_counter() - began

    def _score_checkpoint(self, step: int) -> Scores:
        _, tensors, state = self.checkpoints.load(step)
        game = build_game(self.e, self.device, self.game.num_classes)
        unpack_game(game, tensors, state["game"], str(self.checkpoints.path(step)))
        scores = self._score(self.e.metric.protocol, game, step)
        self.log.say(f"best checkpoint, step {step}: {brief(scores.values)}")
        return scores

    def _warn(self, scores: Scores) -> None:
        for warning in scores.warnings:
            self.log.warn(warning)

    def _fixed(self) -> tuple[Tensor, Tensor | None]:
        """z and y of the sample grids: 8x8 without labels, else a row per class, its columns sharing a z."""
        z = samples.latents(self.e.prior, self.game.z_dim, 64, self.device, self.e.seed)
        if not self.game.num_classes:
            return z, None
        return samples.by_class(z[:8], samples.some_classes(self.game.num_classes))

    def _samples(self) -> None:
        try:
            picture = samples.grid(samples.images(self.game.live, *self.fixed))
            samples.write_png(self.folder.samples / f"step-{self.step:09d}.png", picture)
            self.log.image(self.step, picture)
        except OSError as error:  # a picture is not worth a run
            self.log.warn(f"samples/step-{self.step:09d}.png: {error.strerror or error}; training goes on")

    def _spectra(self) -> None:
        """The spectral norms of D's weights as they act, and of the trained weights under them."""
        d = self.game.discriminator
        norms = {f"spectral/{name}": value for name, value in spectra.spectral_norms(d).items()}
        norms |= {f"spectral_raw/{name}": value for name, value in spectra.raw_spectral_norms(d).items()}
        self.log.numbers(self.step, "spectral", norms)

    def save(self) -> None:
        """Commit a checkpoint. A full disk is tried again at the next one, ``SAVE_TRIES`` times."""
        if self.saved == self.step:
            return
        self._clock()
        self.log.flush()  # no checkpoint is older than the metrics that lead to it
        self.progress["tally"] = self.tally.state_dict(self.step)
        tensors, state = pack_game(self.game)
        try:
            rest = {"game": state, "progress": self.progress, "threads": torch.get_num_threads()}
            rest["num_classes"] = self.game.num_classes
            self.checkpoints.save(self.step, tensors, rest)
        except FloatingPointError as error:
            raise Diverged(
                str(error), "a weight or a statistic", f"the last good one is step {self.saved}"
            ) from error
        except EnvError as error:
            self.failed_saves += 1
            if self.saved < 0 or self.failed_saves >= SAVE_TRIES:
                raise
            self.log.warn(f"{error.mistakes[0]}; tried again at the next checkpoint")
            return
        self.saved, self.failed_saves = self.step, 0
        best = self.progress["best"]
        self.checkpoints.prune({best["step"]} if best else ())
        self._write("running")

    def _rescue(self) -> None:
        """Save where a signal found the run; a diverged or unwritable state leaves the last good one."""
        try:
            self.save()
        except GanlabError as error:
            self.log.warn(f"{error.mistakes[0]}; the last checkpoint is step {self.saved}")

    def _resume(self) -> None:
        if not self.checkpoints.has_any():
            return
        step, tensors, state = self.checkpoints.load()
        unpack_game(self.game, tensors, state["game"], str(self.checkpoints.path(step)))
        self.step = self.saved = step
        self.progress |= state["progress"]
        self.tally.load_state_dict(self.progress["tally"], self.device)
        threads = int(state["threads"])
        if self.e.threads is None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        elif self.e.threads not in (None, threads):
            logging.getLogger("ganlab").warning(
                "threads: made with %d, asked %d; the rest is not bit-identical", threads, self.e.threads
            )

    # ---- the record ----------------------------------------------------------------------------------

    def _identity(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        e, game = self.e, self.game
        names = list(e.normalization)
        return {
            "format": 1,
            "status": "running",
            "name": str(self.folder.path),
            "experiment": choices.get("experiment"),
            "setting": e.setting,
            "method": method_name(names, type(e.loss).__name__),
            "dataset": choices.get("dataset", e.dataset.name),
            "architecture": choices.get("architecture", type(e.architecture).__name__.lower()),
            "loss": choices.get("loss", type(e.loss).__name__.lower()),
            "normalization": names,
            "num_classes": game.num_classes,
            "seed": e.seed,
            "steps": e.steps,
            "step": self.step,
            "scores": {},
            "parameters": {"generator": size(game.generator), "discriminator": size(game.discriminator)},
            "precision": e.precision,
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "git": git_revision(),
            "data": {"name": self.images.name, "split": self.images.split, "images": len(self.images)},
            "error": None,
            "started": (read_json(self.folder.result) or {}).get("started") or now(),
        }

    def _clock(self) -> None:
        self.progress["wall_s"] = self.begun_s + time.perf_counter() - self.began

    def _write(self, status: str, error: str | None = None) -> None:
        self._clock()
        p = self.progress
        scores = self.final or {k: p[k] for k in ("last", "best") if p[k]}
        self.result |= {
            "status": status,
            "error": error,
            "step": self.step,
            "scores": scores,
            "it_per_s": round(self.step / p["train_s"], 3) if p["train_s"] else 0.0,
            "wall_s": round(p["wall_s"], 3),
            "eval_share": round(p["eval_s"] / max(p["wall_s"], 1e-9), 4),
            "peak_memory_mb": round(peak_memory_mb(self.device), 1),
            "updated": now(),
        }
        write_json(self.folder.result, self.result)
