"""BEGAN (arXiv:1703.10717), Figures 4 and 5: what the auto-encoding D makes of real and generated images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject, as_bytes
from ganlab.errors import DataError
from ganlab.evaluation.generate import evaluating
from ganlab.report.draw import sheet
from ganlab.schema import Count, Steps

KINDS = ("real", "mirrored", "generated")


class Reconstructions(Analysis):
    """real images, their mirror images and generated ones, each above what an auto-encoding D makes of it

    The paper shows real images and their mirror images; a D that only knows its training images by heart
    fails on the mirrored ones. The table has the error of each image, the report their means.

    Args:
        checkpoint: last, best, or a step.
        split: split of the real images; null: the training images.
        columns: number of images of each kind.
        seed: random seed of the images and latents.
    """

    kinds = ("images",)
    runs = (1, 6)
    checkpoint: str | int = "last"
    split: str | None = None
    columns: Count = 10
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        cells, result = {}, Finding(report=[f"mean error of D's reconstruction: {', '.join(KINDS)}"])
        for i, subject in enumerate(runs):
            if not subject.experiment.architecture.auto_encodes:
                problem = f"{subject.run.label} has no auto-encoder for D"
                raise DataError("reconstructions", problem, "choose runs with architecture=began")
            gan, step = subject.restore(self.checkpoint)
            real = subject.real(gan, self.columns, self.seed, self.split).x
            generated = subject.fake(gan, self.columns, self.seed).x
            means = []
            for j, (kind, x) in enumerate(zip(KINDS, (real, real.flip(3), generated), strict=True)):
                with torch.no_grad(), evaluating(gan.discriminator):
                    made, errors = gan.discriminator.reconstruct(x), -gan.discriminator(x).score  # type: ignore[operator]
                for k, (images, caption) in enumerate(((x, f"step {step:,}"), (made, ""))):
                    block = drawing.block(as_bytes(images), self.columns)
                    cells[2 * j + k, i] = sheet.Tile(block, caption if not (j or k) else "")
                means.append(float(errors.mean()))
                result.rows += [
                    {**subject.columns, "step": step, "kind": kind, "image": n, "error": float(error)}
                    for n, error in enumerate(errors)
                ]
            result.report.append(f"  {subject.label}: {', '.join(f'{mean:.4g}' for mean in means)}")
        names = [s.label if len(runs) > 1 else "" for s in runs]
        rows = [row for kind in KINDS for row in (kind, f"D({kind})")]
        result.png = sheet.png(f"Reconstructions: {subjects.common(runs)}", rows, names, cells)
        return result
