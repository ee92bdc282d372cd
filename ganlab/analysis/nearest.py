"""Nearest training images of generated samples: a check for memorization by G."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ganlab import rng, text
from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject, as_bytes, common, generate
from ganlab.data.base import SampleSet
from ganlab.errors import DataError
from ganlab.extractors.base import Extractor, exact_fp32
from ganlab.report.draw import style
from ganlab.schema import Count, Steps

CHUNK = 500  # real images per extractor call


class Neighbors(NamedTuple):
    """The k nearest training images of n queries: distances (n, k), ascending, and their rows (n, k)."""

    distance: Tensor
    rows: Tensor


class Nearest(Analysis):
    """nearest training images of each sample in feature space (memorization check), with a baseline

    The distance is Euclidean, between pooled features of the run's extractor (metric.extractor). The figure
    shows the samples closest to a training image, which are the most likely copies, and histograms of the
    distances. The baseline is the distance from held-out images to the training images; if the dataset has
    no held-out split, it is the distance from each training image to the nearest other one. A generator
    that memorizes produces samples closer than the baseline.

    Args:
        checkpoint: last, best, or a step.
        n: number of samples, and of baseline images.
        k: nearest images listed for each sample.
        rows: number of samples in the figure.
        n_real: number of training images to search, chosen at random; 0: all.
        split: split of the held-out images; null: the test or validation split, if there is one.
        seed: random seed.
    """

    kinds = ("images",)
    runs = (1, 1)
    checkpoint: str | int = "last"
    n: Count = 256
    k: Count = 6
    rows: Count = 8
    n_real: Steps = 50_000
    split: str | None = None
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        (subject,) = runs
        extractor = subject.experiment.metric.extractor.to(subject.device)
        extractor.check()
        train = subject.images()
        if len(train) < self.k + 1:
            raise DataError("k", f"cannot take {self.k} neighbors of {len(train)} training images", "lower k")
        searched = self._some(train, self.n_real, 5)
        gan, step = subject.restore(self.checkpoint)
        samples = as_bytes(generate(gan, *subject.draw(gan, self.n, self.seed)))
        split = subject.held_out(self.split)
        images = subject.images(split) if split else train
        rows = self._some(images, self.n, 6)
        features_of = torch.cat([features(extractor, x) for x in (samples, pixels(images, rows))])
        excluded = torch.cat([torch.full((self.n,), -1), torch.full_like(rows, -1) if split else rows])
        print(f"nearest: features of {len(searched):,} training images by the {extractor.name} network ...")
        neighbors = search(extractor, train, searched, features_of, excluded, self.k)
        parts = zip(*(t.split([self.n, len(rows)]) for t in neighbors), strict=True)
        of_samples, of_baseline = (Neighbors(*part) for part in parts)
        baseline = f"held-out images ({split})" if split else "training images, to the nearest other one"
        columns = {**subject.columns, "step": step}
        numbers = compare(of_samples.distance[:, 0], of_baseline.distance[:, 0])
        counts = {"extractor": extractor.name, "searched": len(searched), "training_images": len(train)}
        summary = {**columns, **counts, "baseline": split or "leave-one-out", **numbers}
        report = [
            f"distance to the nearest of {len(searched):,} training images ({extractor.name} features), "
            f"median: samples {numbers['median_sample']:.4g}, {baseline} {numbers['median_baseline']:.4g}",
            f"samples closer than the 5 % quantile of the baseline: {100 * numbers['share_below_q05']:.1f} % "
            "(5 % if G matches the data without memorizing it)",
        ]
        groups = (("sample", of_samples, range(self.n)), ("baseline", of_baseline, rows))
        table = [
            {**columns, "kind": kind, "query": int(q), "rank": r + 1,
             "train_index": int(near.rows[i, r]), "distance": float(near.distance[i, r])}
            for kind, near, queries in groups
            for i, q in enumerate(queries)
            for r in range(self.k)
        ]  # fmt: skip
        picture = self._draw(subject, step, samples, train, of_samples, of_baseline, baseline)
        return Finding(picture, table, report, {"summary": [summary]})

    def _some(self, images: SampleSet, n: int, number: int) -> Tensor:
        """``n`` rows (0: all) in random choice, ascending."""
        order = torch.randperm(len(images), generator=rng.generator("cpu", self.seed, "analysis", number))
        return (order[:n] if n else order).sort().values

    def _draw(
        self, subject: Subject, step: int, samples: Tensor, train: SampleSet,
        of_samples: Neighbors, of_baseline: Neighbors, name: str,
    ) -> bytes:  # fmt: skip
        closest = of_samples.distance[:, 0].argsort()[: self.rows]
        rows = [torch.cat([samples[i][None], pixels(train, of_samples.rows[i])]) for i in closest]
        sheet = np.asarray(drawing.block(torch.cat(rows), self.k + 1))
        pitch = (sheet.shape[1] + drawing.PADDING) / (self.k + 1)
        title = f"Nearest training images: {text.plain(subject.label)}, step {step:,}, "
        size = (0.62 * (self.k + 1) + 4.6, max(0.62 * len(closest) + 1.2, 3.6))
        with drawing.Picture(title + common([subject]), *size) as picture:
            left, right = picture.figure.subplots(1, 2, width_ratios=[0.62 * (self.k + 1), 3.4])
            left.imshow(sheet, interpolation="nearest")
            left.axvline(pitch - drawing.PADDING / 2 - 0.5, color=style.ALARM, lw=1.5)
            at = [(i + 0.5) * pitch for i in range(max(len(closest), self.k + 1))]
            left.set_yticks(at[: len(closest)], [f"{of_samples.distance[i, 0]:.3g}" for i in closest])
            left.set_xticks(at[: self.k + 1], ["sample", *(str(r) for r in range(1, self.k + 1))])
            left.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
            left.set_ylabel("distance to the nearest")
            left.spines[:].set_visible(False)
            values = torch.cat([of_samples.distance[:, 0], of_baseline.distance[:, 0]])
            edges = np.linspace(0, float(values.max()) * 1.02 or 1.0, 41)
            groups = ((of_baseline, "#0072b2", name), (of_samples, "#d55e00", "samples"))
            for neighbors, color, label in groups:
                numbers = neighbors.distance[:, 0].numpy()
                right.hist(numbers, edges, density=True, color=color, alpha=0.35, label=label)
                right.axvline(float(np.median(numbers)), color=color, lw=1.2, ls=(0, (4, 2)))
            right.set_yticks([])
            right.spines["left"].set_visible(False)
            right.set_xlabel("distance to the nearest training image\n(dashed: median)")
            right.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=7.5)
        return picture.png


def pixels(images: SampleSet, rows: Tensor) -> Tensor:
    """The images at ``rows``, uint8 (n, C, H, W)."""
    return torch.from_numpy(images.images[rows.numpy()])


def features(extractor: Extractor, images: Tensor) -> Tensor:
    """Pooled features (n, D), float64 on the CPU, of uint8 images (n, 1 or 3, H, W)."""
    parts = [extractor(part.expand(-1, 3, -1, -1).contiguous()).pool for part in images.split(CHUNK)]
    return torch.cat([part.double().cpu() for part in parts])


def search(
    extractor: Extractor, train: SampleSet, rows: Tensor, queries: Tensor, excluded: Tensor, k: int
) -> Neighbors:
    """Find the k nearest images of ``train[rows]`` for each query (n, D), one chunk of images at a time.

    excluded: (n,) index of the training image that equals the query and is skipped; -1: none.
    """
    distance = queries.new_full((len(queries), k), torch.inf)
    index = torch.full((len(queries), k), -1)
    with exact_fp32():
        for part in rows.split(CHUNK):
            # in float64, cdist's fast matrix-product form is accurate to 1e-7 even for copies
            part_distance = torch.cdist(queries, features(extractor, pixels(train, part)))
            part_distance[excluded[:, None] == part[None]] = torch.inf
            distances = torch.cat([distance, part_distance], 1)
            indices = torch.cat([index, part.expand(len(queries), -1)], 1)
            order = distances.argsort(dim=1, stable=True)[:, :k]
            distance, index = distances.gather(1, order), indices.gather(1, order)
    return Neighbors(distance, index)


def compare(samples: Tensor, baseline: Tensor) -> dict[str, float]:
    """Summary statistics of sample distances (n,) and baseline distances (m,)."""
    q05 = float(baseline.quantile(0.05))
    return {
        "median_sample": float(samples.median()),
        "median_baseline": float(baseline.median()),
        "least_sample": float(samples.min()),
        "least_baseline": float(baseline.min()),
        "q05_baseline": q05,
        "share_below_q05": float((samples < q05).double().mean()),
    }
