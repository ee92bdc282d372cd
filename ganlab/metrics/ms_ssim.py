"""MS-SSIM of pairs of generated images: near 1 they are copies of each other, lower is better.

Used on pairs within a class to detect mode collapse: Odena et al. 2017 (AC-GAN), arXiv:1610.09585, on 100
random pairs per class, next to the value of the real images. MS-SSIM itself: Wang et al. 2003,
"Multiscale structural similarity for image quality assessment".

Library versions of MS-SSIM need sides above 160 pixels, for an 11x11 window at the smallest of five scales.
GAN papers at 128 pixels and below use the TensorFlow authors' script (as ProGAN does), whose window shrinks
with the image and which averages colors early; so does this one. For grayscale images of 176 pixels or more
it agrees with the libraries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ganlab.metrics.base import Accumulator, Fakes, Metric, MetricError, Protocol, Real
from ganlab.schema import Count, checked

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, largest first (Wang et al.)
WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MIN_SIDE = 2 ** (len(WEIGHTS) - 1)  # pixels: the smallest scale has one pixel
PAIRS = 100  # compared at a time: 250 MB at 128x128


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of each pair of uint8 images x and y (B, C, H, W): (B,) float64 in [0, 1]; 1: equal.

    The window is Gaussian, 11x11 with sigma 1.5, without padding; at a scale with a side below 11 pixels
    it shrinks to that side, sigma in proportion. Scales are halved by 2x2 means. Negative terms count as
    0. Channels are averaged before the scales are multiplied. Raises MetricError below 16 pixels.
    """
    if min(x.shape[2:]) < MIN_SIDE:
        raise MetricError(f"five scales need images of at least {MIN_SIDE} pixels a side")
    x, y = x.double(), y.double()
    value = torch.ones(len(x), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = halved(x), halved(y)
        similarity, contrast = ssim(x, y)
        term = similarity if scale == len(WEIGHTS) - 1 else contrast
        value = value * term.clamp(min=0) ** weight
    return value


def ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM and mean contrast-structure term of float64 images (B, C, H, W) in [0, 255]: (B,) each.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    size = min(WINDOW, *x.shape[2:])
    rows, columns = (blur(side, size, x) for side in x.shape[2:])

    def mean(z: Tensor) -> Tensor:
        return rows @ z @ columns.T

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) + mean(y * y) - mean_x * mean_x - mean_y * mean_y
    covariance = mean(x * y) - mean_x * mean_y
    contrast = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


def blur(side: int, size: int, like: Tensor) -> Tensor:
    """The Gaussian window along one axis as a matrix (side - size + 1, side), to be multiplied with."""
    at = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    window = torch.softmax(-(at * at) / (2 * (SIGMA * size / WINDOW) ** 2), 0)
    matrix = like.new_zeros(side - size + 1, side)
    for i in range(len(matrix)):
        matrix[i, i : i + size] = window
    return matrix


def halved(x: Tensor) -> Tensor:
    """2x2 means of (B, C, H, W); an odd last row or column counts twice."""
    odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    return F.avg_pool2d(F.pad(x, odd, mode="replicate") if any(odd) else x, 2)


class RunningSimilarity(Accumulator):
    """Mean MS-SSIM of the first ``pairs`` pairs of images, two consecutive images each."""

    def __init__(self, name: str, pairs: int) -> None:
        self.name, self.left = name, 2 * pairs
        self.values: list[Tensor] = []

    def add(self, fakes: Fakes) -> None:
        images = fakes.samples[: self.left]
        self.left -= len(images)
        for pairs in images.split(2 * PAIRS) if len(images) else ():
            self.values.append(ms_ssim(pairs[0::2], pairs[1::2]))

    def value(self) -> dict[str, float]:
        return {self.name: float(torch.cat(self.values).mean())}


class MSSSIM(Metric[None]):
    """Mean MS-SSIM of ``pairs`` pairs of generated images, the same images as FID's, in order.

    Uninformative for data with many classes, whose images differ anyway: see ``IntraMSSSIM``.
    """

    names = ("ms_ssim",)
    better = "lower"
    needs = frozenset({"samples"})
    own_record = True

    @checked
    def __init__(self, pairs: Count = 1000) -> None:
        self.pairs = pairs

    def options(self) -> dict[str, Any]:
        fixed = {"window": "min(11, side), sigma 1.5 in proportion", "scales": len(WEIGHTS)}
        return super().options() | fixed

    def n_fake(self, protocol: Protocol) -> int:
        return 2 * self.pairs

    def check(self, protocol: Protocol, real: Real) -> None:
        if real.shape is not None and min([*real.shape][1:]) < MIN_SIDE:
            what = f"five scales need images of at least {MIN_SIDE} pixels a side, not {real.shape}"
            raise MetricError(what)

    def start(self, real: None, protocol: Protocol) -> Accumulator:
        return RunningSimilarity(self.names[0], self.pairs)


class IntraMSSSIM(MSSSIM):
    """Mean over the classes of the mean MS-SSIM of ``pairs`` pairs within the class.

    The details give the same for real pairs: a higher score means that G is less diverse than the data.
    """

    names = ("intra_ms_ssim",)
    needs = frozenset({"labels", "samples"})
    per_class = True
    protocol_fields = ("intra_classes",)

    @checked
    def __init__(self, pairs: Count = 100) -> None:
        super().__init__(pairs)
