"""How fast a generator is scored: images made and looked at by one evaluation, as a run does it."""

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

REAL = 1000  # noise images that the generated ones are compared with


class Scorer:
    """An untrained G of a case and ``spec["extractor"]``; nothing is downloaded, nothing is kept.

    Raises EnvError where the extractor's weights are not there.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        words = [w for w in spec["words"] if not w.startswith("metric.extractor=")]
        self.e = experiment([*words, f"metric.extractor={spec['extractor']}"], spec["resolution"])
        extractor = self.e.metric.extractor
        extractor.download = False
        extractor.check()
        self.device, _ = trainer.prepare(self.e)
        self.game = build_gan(self.e, self.device)
        self.folder = tempfile.TemporaryDirectory()

    def score(self, samples: int) -> dict[str, Any]:
        """Seconds of an evaluation of ``samples`` images with IS, FID and KID; and of making them alone.

        The real images' features are not in it: a run computes them once.
        """
        subset = min(500, samples, REAL)
        protocol = Protocol(
            "bench", samples, samples, 1, REAL, kid_subsets=20, kid_subset_size=subset, kid_n_real=REAL
        )
        metric, place = self.e.metric, Path(self.folder.name)
        judge = Evaluator(metric.extractor, metric.scores, protocol, self.e.dataset, self.device, place)
        judge.reference()
        generate, of_class = generators(self.game.ema_or_generator, self.game.draw, protocol, self.e.shape)
        began = time.perf_counter()
        with torch.no_grad():
            for start in range(0, samples, CHUNK):
                generate(CHUNK, start, rng.generator(self.device, 0, "evaluate", start))
        self._wait()
        made = time.perf_counter()
        judge.score(generate, of_class)
        self._wait()
        chunks = -(-samples // CHUNK) * CHUNK
        return {
            "samples": samples,
            "s": time.perf_counter() - made,
            "make_s": (made - began) * samples / chunks,
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
