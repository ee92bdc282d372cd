"""Does G remember? Each sample's nearest training images, and how near images that G never saw are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ganlab import rng, text
from ganlab.analysis import drawing, sheet, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject, as_bytes, generate
from ganlab.data.base import SampleSet
from ganlab.errors import DataError
from ganlab.extractors.base import Extractor, exact_fp32
from ganlab.report.draw import style
from ganlab.schema import Count, Steps, checked

CHUNK = 500  # real images at a time


class Near(NamedTuple):
    """The k nearest training images of n queries: distances (n, k), ascending, and their rows (n, k)."""

    distance: Tensor
    rows: Tensor


class Nearest(Analysis):
    """nearest training images of samples in feature space (memorisation check), held-out images as baseline

    Euclidean distance of the pooled features of the run's extractor (``metric.extractor``). The picture shows
    the samples that lie nearest to a training image: the likeliest copies. The baseline is the same distance
    of held-out images, or, where the dataset has none, of training images to the nearest other one: a G that
    remembers is nearer than that.

    Args:
        checkpoint: last, best, or a step.
        n: samples, and baseline images.
        k: nearest images of each.
        rows: samples shown, of the n.
        n_real: training images searched, the first of a random order; 0: all.
        split: the held-out images; null: the test or validation split, if the dataset has one.
        seed: of everything drawn.
    """

    kinds = ("images",)
    runs = (1, 1)

    @checked
    def __init__(
        self,
        checkpoint: str | int = "last",
        n: Count = 256,
        k: Count = 6,
        rows: Count = 8,
        n_real: Steps = 50_000,
        split: str | None = None,
        seed: Steps = 0,
    ) -> None:
        self.checkpoint, self.n, self.k, self.shown = str(checkpoint), n, k, rows
        self.n_real, self.split, self.seed = n_real, split, seed

    def make(self, runs: Sequence[Subject]) -> Finding:
        subject = runs[0]
        e = subject.experiment
        extractor = e.metric.extractor.to(subject.device)
        extractor.check()
        train = subject.images()
        if len(train) < self.k + 1:
            raise DataError("k", f"{self.k} neighbours of {len(train)} training images", "lower k")
        order = torch.randperm(len(train), generator=rng.generator("cpu", self.seed, "analysis", 5))
        searched = (order[: self.n_real] if self.n_real else order).sort().values
        game, step = subject.restore(self.checkpoint)
        samples = as_bytes(generate(game, *subject.draw(game, self.n, self.seed)))
        split = subject.held_out(self.split)
        held = subject.images(split) if split else train
        others = torch.randperm(len(held), generator=rng.generator("cpu", self.seed, "analysis", 6))
        others = others[: self.n].sort().values
        queries = [features(extractor, samples), features(extractor, pixels(held, others))]
        own = torch.cat([torch.full((len(samples),), -1), torch.full_like(others, -1) if split else others])
        print(f"nearest: features of {len(searched):,} training images by the {extractor.name} network ...")
        near = search(extractor, train, searched, torch.cat(queries), own, self.k)
        made, base = (
            Near(d, i) for d, i in zip(*(t.split([len(samples), len(others)]) for t in near), strict=True)
        )
        baseline = f"held-out images ({split})" if split else "training images, to the nearest other one"
        rows: list[Row] = [
            {**subject.columns, "step": step, "kind": kind, "query": int(q), "rank": r + 1,
             "train_index": int(found.rows[i, r]), "distance": float(found.distance[i, r])}
            for kind, found, names in (("sample", made, range(len(samples))), ("baseline", base, others))
            for i, q in enumerate(names)
            for r in range(self.k)
        ]  # fmt: skip
        numbers = compare(made.distance[:, 0], base.distance[:, 0])
        summary: list[Row] = [
            {**subject.columns, "step": step, "extractor": extractor.name, "searched": len(searched),
             "training_images": len(train), "baseline": split or "leave-one-out", **numbers}
        ]  # fmt: skip
        says = [
            f"distance to the nearest of {len(searched):,} training images ({extractor.name} features), "
            f"median: samples {numbers['median_sample']:.4g}, {baseline} {numbers['median_baseline']:.4g}",
            f"samples nearer than the nearest 5 % of the baseline: {100 * numbers['share_below_q05']:.1f} % "
            "(5 % where G remembers nothing and its images are like the data)",
        ]
        picture = self._draw(subject, step, samples, train, made, base, baseline)
        return Finding(picture, rows, says, {"summary": summary})

    def _draw(
        self,
        subject: Subject,
        step: int,
        samples: Tensor,
        train: SampleSet,
        made: Near,
        base: Near,
        name: str,
    ) -> bytes:
        closest = made.distance[:, 0].argsort()[: self.shown]
        tiles = torch.stack(
            [
                image
                for i in closest
                for image in (samples[i], *pixels(train, made.rows[i]))
            ]
        )  # fmt: skip
        picture = np.asarray(sheet.block(tiles, self.k + 1))
        pitch = (picture.shape[1] + sheet.PADDING) / (self.k + 1)
        height = 0.62 * len(closest) + 1.2
        with drawing.style():
            figure = Figure(figsize=(0.62 * (self.k + 1) + 4.6, max(height, 3.6)), layout="constrained")
            left, right = figure.subplots(1, 2, width_ratios=[0.62 * (self.k + 1), 3.4])
            left.imshow(picture, interpolation="nearest")
            left.axvline(pitch - sheet.PADDING / 2 - 0.5, color=style.ALARM, lw=1.5)
            at = [(i + 0.5) * pitch for i in range(max(len(closest), self.k + 1))]
            left.set_yticks(at[: len(closest)], [f"{made.distance[i, 0]:.3g}" for i in closest])
            left.set_xticks(at[: self.k + 1], ["sample", *(str(r) for r in range(1, self.k + 1))])
            left.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
            left.set_ylabel("distance to the nearest")
            for spine in left.spines.values():
                spine.set_visible(False)
            values = torch.cat([made.distance[:, 0], base.distance[:, 0]])
            edges = np.linspace(0, float(values.max()) * 1.02 or 1.0, 41)
            for found, color, label in ((base, "#0072b2", name), (made, "#d55e00", "samples")):
                numbers = found.distance[:, 0].numpy()
                right.hist(numbers, edges, density=True, color=color, alpha=0.35, label=label)
                right.axvline(float(np.median(numbers)), color=color, lw=1.2, ls=(0, (4, 2)))
            right.set_yticks([])
            right.spines["left"].set_visible(False)
            right.set_xlabel("distance to the nearest training image\n(dashed: median)")
            right.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=7.5)
            told = f"{text.plain(subject.label)}, step {step:,}, {subjects.common([subject])}"
            drawing.titled(figure, f"Nearest training images: {told}")
            return drawing.png(figure)


def pixels(images: SampleSet, rows: Tensor) -> Tensor:
    """uint8 (n, C, H, W) of some images."""
    return torch.from_numpy(images.images[rows.numpy()])


def features(extractor: Extractor, images: Tensor) -> Tensor:
    """Pooled features (n, D), float64 on the CPU, of uint8 images (n, 1 or 3, H, W)."""
    parts = [extractor(part.expand(-1, 3, -1, -1).contiguous()).pool for part in images.split(CHUNK)]
    return torch.cat([part.double().cpu() for part in parts])


def search(
    extractor: Extractor, train: SampleSet, rows: Tensor, queries: Tensor, own: Tensor, k: int
) -> Near:
    """The k nearest of ``train``'s images ``rows`` to each query (n, D), a chunk of images at a time.

    own: (n,) the training image that a query is itself, and that does not count; -1: none.
    """
    distance = queries.new_full((len(queries), k), torch.inf)
    index = torch.full((len(queries), k), -1)
    with exact_fp32():
        for part in rows.split(CHUNK):
            # in float64 the quick form, by a matrix product, is exact to 1e-7 for copies too
            there = torch.cdist(queries, features(extractor, pixels(train, part)))
            there[own[:, None] == part[None]] = torch.inf
            every = torch.cat([distance, there], 1)
            names = torch.cat([index, part.expand(len(queries), -1)], 1)
            order = every.argsort(dim=1, stable=True)[:, :k]
            distance, index = every.gather(1, order), names.gather(1, order)
    return Near(distance, index)


def compare(made: Tensor, base: Tensor) -> dict[str, float]:
    """Distances of samples (n,) beside the baseline's (m,)."""
    q05 = float(base.quantile(0.05))
    return {
        "median_sample": float(made.median()),
        "median_baseline": float(base.median()),
        "least_sample": float(made.min()),
        "least_baseline": float(base.min()),
        "q05_baseline": q05,
        "share_below_q05": float((made < q05).double().mean()),
    }
