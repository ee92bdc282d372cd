"""What a run looks at on its way: scores, grids of samples, spectral norms. Looking never changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ganlab import ranks, samples, spectra, validation
from ganlab.errors import EnvError
from ganlab.evaluate import Evaluator
from ganlab.experiment import Experiment
from ganlab.fakes import generators
from ganlab.game import Game
from ganlab.log import Log
from ganlab.metrics.base import MetricError
from ganlab.metrics.protocol import Protocol
from ganlab.run_folder import RunFolder
from ganlab.run_record import RunRecord
from ganlab.scores import Scores
from ganlab.validation import Validation

SETTLED = 500  # updates before which equal images say nothing: a small G starts out grey


class Observer:
    """Looks at ``game`` and tells ``log``. ``poll`` is called between pieces of a long look and may raise."""

    def __init__(
        self,
        folder: RunFolder,
        e: Experiment,
        game: Game,
        evaluators: Mapping[Protocol, Evaluator],
        log: Log,
        record: RunRecord,
        poll: Callable[[], None],
    ) -> None:
        self.folder, self.e, self.game, self.log, self.record = folder, e, game, log, record
        self.evaluators, self.poll = evaluators, poll
        self.validation: Validation | None = None
        self._pictures_failed = False  # told once
        self.alike = False  # all images of a grid were the same; told once
        device = record.device
        self.z, self.y = samples.latents(e.prior, game.z_dim, 64, device, e.seed), None
        if game.num_classes:  # a row per class, its columns sharing a z
            self.z, self.y = samples.by_class(self.z[:8], samples.some_classes(game.num_classes))

    def score(self, protocol: Protocol, step: int, game: Game | None = None) -> Scores:
        """Scores of ``game`` (None: the run's own); their time is counted as evaluation."""
        game, began = game or self.game, time.perf_counter()
        try:
            return self.evaluators[protocol].score(
                *generators(game.live, game.draw, protocol, self.e.shape),
                step=step,
                generator="raw" if game.average is None else "ema",
                poll=self.poll,
            )
        finally:
            self.record.progress["eval_s"] += time.perf_counter() - began

    def tell(self, scores: Scores, kind: str = "eval") -> None:
        """Warnings, the scores, and what evaluation costs so far, into the log."""
        for warning in scores.warnings:
            self.log.warn(warning)
        self.log.scores(scores.step, scores.values, scores.protocol_id, kind, scores.own_ids)
        share = self.record.eval_share
        self.log.say(f"scored in {scores.seconds:.1f} s; evaluation is {share:.1%} of the time so far")

    def curves(self, means: Mapping[str, float]) -> dict[str, float | None]:
        """What a log line holds: the losses' means, their names of the papers, and D's on held-out images."""
        found: dict[str, float | None] = {f"loss/{name}": value for name, value in means.items()}
        found |= validation.means(means, self.game)
        if self.validation is not None:
            found |= ranks.current().first_does(self.validation.look)
        return found

    def samples(self, step: int) -> None:
        """A grid of images from the run's fixed latents. A picture is not worth a run."""
        ranks.current().first_does(lambda: self._samples(step))

    def _samples(self, step: int) -> None:
        self.folder.require_here()
        try:
            images = samples.images(self.game.live, self.z, self.y)
            picture = samples.grid(images)
            self.folder.samples.mkdir(exist_ok=True)  # not its parents: a deleted folder is not revived
            samples.write_png(self.folder.samples / f"step-{step:09d}.png", picture)
        except (OSError, EnvError, MetricError) as error:
            why = error.mistakes[0].what if isinstance(error, EnvError) else error
            why = getattr(error, "strerror", None) or why
            if not self._pictures_failed:
                self.log.warn(f"samples/step-{step:09d}.png: {why}; training goes on without pictures")
            self._pictures_failed = True
            return
        self.log.image(step, picture)
        if step >= SETTLED and not self.alike and bool((images == images[:1]).all()):
            self.alike = True
            self.log.warn(f"step {step}: all {len(images)} generated images are the same; G has collapsed")

    def spectra(self, step: int) -> None:
        """The spectral norms of D's weights as they act, and of the trained weights under them."""
        ranks.current().first_does(lambda: self._spectra(step))

    def _spectra(self, step: int) -> None:
        d = self.game.discriminator
        norms = {f"spectral/{name}": value for name, value in spectra.spectral_norms(d).items()}
        norms |= {f"spectral_raw/{name}": value for name, value in spectra.raw_spectral_norms(d).items()}
        self.log.numbers(step, "spectral", norms)
