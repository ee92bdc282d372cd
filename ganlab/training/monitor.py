"""Observe a run without changing it: scores, sample previews, held-out losses, spectral norms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.errors import EnvError
from ganlab.evaluation.evaluator import Evaluator
from ganlab.evaluation.generate import generators, stored_samples
from ganlab.evaluation.scores import Scores
from ganlab.experiment import Experiment
from ganlab.methods import singular_values
from ganlab.metrics.base import MetricError
from ganlab.metrics.protocol import Protocol
from ganlab.runs.folder import RunFolder
from ganlab.runs.log import Log
from ganlab.runs.result import RunRecord, format_scores
from ganlab.samples import latents
from ganlab.samples.base import Context, sample_kind
from ganlab.training import validation
from ganlab.training.gan import GAN
from ganlab.training.validation import Validation

SETTLED = 500  # updates before identical images mean collapse: a small G starts out gray


class Monitor:
    """Scores ``gan`` and writes to ``log``. ``poll`` is called between chunks of long work and may raise."""

    def __init__(
        self,
        folder: RunFolder,
        e: Experiment,
        gan: GAN,
        evaluators: Mapping[Protocol, Evaluator],
        log: Log,
        record: RunRecord,
        poll: Callable[[], None],
        context: Context,
    ) -> None:
        self.folder, self.e, self.gan, self.log, self.record = folder, e, gan, log, record
        self.evaluators, self.poll = evaluators, poll
        self.validation: Validation | None = None
        self._preview_failed = False  # warned once
        self.collapsed = False  # all images of a grid were identical; warned once
        device = record.device
        self.kind, self.context = sample_kind(gan.shape), context
        self.z, self.y = latents.latents(e.prior, gan.z_dim, self.kind.count, device, e.seed), None
        if gan.num_classes:  # one row per class; z is shared within a column
            self.z, self.y = latents.by_class(self.z[:8], latents.some_classes(gan.num_classes))

    def score(self, protocol: Protocol, step: int, gan: GAN | None = None) -> Scores:
        """Scores of ``gan`` (None: the run's own); their time is counted as evaluation."""
        gan, began = gan or self.gan, time.perf_counter()
        try:
            scores = self.evaluators[protocol].score(
                *generators(gan.ema_or_generator, gan.draw, protocol, gan.shape),
                step=step,
                generator="raw" if gan.ema is None else "ema",
                poll=self.poll,
                classify=gan.classifier,
            )
            return replace(scores, values=scores.values | gan.scores())
        finally:
            self.record.progress["eval_s"] += time.perf_counter() - began

    def real(self) -> None:
        """Log the scores of real samples against each other, for comparison, where the metrics have any."""
        collectives.current().on_rank_zero(self._real)

    def _real(self) -> None:
        if values := self.evaluators[self.e.metric.progress].among_real():
            self.log.numbers(0, "real", {f"real/{name}": value for name, value in values.items()})
            self.log.say(f"real samples against the others: {format_scores(values)}")

    def log_scores(self, scores: Scores, kind: str = "eval") -> None:
        """Log warnings, the scores, and the share of time spent on evaluation."""
        for warning in scores.warnings:
            self.log.warn(warning)
        self.log.scores(scores.step, scores.values, scores.protocol_id, kind, scores.own_ids)
        share = self.record.eval_share
        self.log.say(f"scored in {scores.seconds:.1f} s; evaluation is {share:.1%} of the time so far")

    def log_values(self, means: Mapping[str, float]) -> dict[str, float | None]:
        """The values of a log line: mean losses, the papers' curves of them, and held-out losses of D."""
        values: dict[str, float | None] = {f"loss/{name}": value for name, value in means.items()}
        values |= validation.curves(means, self.gan)
        if self.validation is not None:
            values |= collectives.current().on_rank_zero(self.validation.look)
        return values

    def samples(self, step: int) -> None:
        """Save samples of the run's fixed latents; an error is only logged."""
        collectives.current().on_rank_zero(lambda: self._samples(step))

    def _samples(self, step: int) -> None:
        self.folder.require_here()
        name = f"step-{step:09d}.{self.kind.suffix}"
        try:
            samples = self._stored_samples()
            rendered = self.kind.preview(samples, self.context)
            self.folder.samples.mkdir(exist_ok=True)  # not its parents: a deleted run folder stays deleted
            rendered.write(self.folder.samples / name)
        except (OSError, EnvError, MetricError) as error:
            reason = error.mistakes[0].what if isinstance(error, EnvError) else error
            reason = getattr(error, "strerror", None) or reason
            if not self._preview_failed:
                self.log.warn(f"samples/{name}: {reason}; training continues without pictures")
            self._preview_failed = True
            return
        if rendered.picture is not None:
            self.log.image(step, rendered.picture)
        else:
            self.log.text(step, rendered.text)
        if step >= SETTLED and not self.collapsed and bool((samples == samples[:1]).all()):
            self.collapsed = True
            noun, n = self.kind.noun, len(self.z)
            self.log.warn(f"step {step}: all {n} generated {noun} are identical; G has collapsed")

    def _stored_samples(self) -> Tensor:
        """Samples of the EMA or G, or of a fixed G: real ones, moved. Raises MetricError."""
        if self.gan.fixed and self.context.real is not None:
            noise = torch.randn(self.context.real.shape, generator=rng.generator("cpu", 0, "samples", 4))
            return self.gan.fixed.moved(torch.from_numpy(self.context.real), noise)
        return stored_samples(self.gan.ema_or_generator, self.z, self.y, self.kind.to_stored)

    def spectra(self, step: int) -> None:
        """Log the spectral norms of D's effective weights and of the raw weights under them."""
        collectives.current().on_rank_zero(lambda: self._spectra(step))

    def _spectra(self, step: int) -> None:
        d = self.gan.discriminator
        norms = {f"spectral/{name}": value for name, value in singular_values.spectral_norms(d).items()}
        norms |= {
            f"spectral_raw/{name}": value for name, value in singular_values.raw_spectral_norms(d).items()
        }
        self.log.numbers(step, "spectral", norms)
