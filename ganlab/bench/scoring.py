"""Time the evaluation of a generator, as done in a run."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ganlab import rng
from ganlab.bench.games import experiment
from ganlab.evaluation.evaluator import Evaluator
from ganlab.evaluation.generate import CHUNK, generators
from ganlab.metrics.protocol import Protocol
from ganlab.training import trainer
from ganlab.training.build import build_gan

REAL = 1000  # noise images used as the reference set


class Scorer:
    """An untrained G of a case with ``spec["extractor"]``; downloads nothing and leaves no files.

    Raises EnvError if the extractor's weights are missing.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        overrides = [w for w in spec["words"] if not w.startswith("metric.extractor=")]
        self.e = experiment([*overrides, f"metric.extractor={spec['extractor']}"], spec["resolution"])
        extractor = self.e.metric.extractor
        extractor.download = False
        extractor.check()
        self.device, _ = trainer.prepare(self.e)
        self.gan = build_gan(self.e, self.device)
        self.folder = tempfile.TemporaryDirectory()

    def score(self, samples: int) -> dict[str, Any]:
        """Seconds to evaluate ``samples`` images with IS, FID and KID, and to generate them alone.

        Features of real images are not timed, as a run computes them once.
        """
        subset = min(500, samples, REAL)
        protocol = Protocol(
            "bench", samples, samples, 1, REAL, kid_subsets=20, kid_subset_size=subset, kid_n_real=REAL
        )
        metric, folder = self.e.metric, Path(self.folder.name)
        evaluator = Evaluator(metric.extractor, metric.scores, protocol, self.e.dataset, self.device, folder)
        evaluator.reference()
        generate, of_class = generators(self.gan.ema_or_generator, self.gan.draw, protocol, self.e.shape)
        began = time.perf_counter()
        with torch.no_grad():
            for start in range(0, samples, CHUNK):
                generate(CHUNK, start, rng.generator(self.device, 0, "evaluate", start))
        self._wait()
        generated = time.perf_counter()
        evaluator.score(generate, of_class)
        self._wait()
        chunks = -(-samples // CHUNK) * CHUNK
        return {
            "samples": samples,
            "s": time.perf_counter() - generated,
            "make_s": (generated - began) * samples / chunks,
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
