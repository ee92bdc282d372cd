"""The built-in classifier of digits, for stacked MNIST: trained by ``scripts/train_digit_net.py``.

Trained on 8,000 of MNIST's 10,000 test digits (the only ones at hand), it names 99.1 % of the other 2,000
with a border of 2 pixels, and 99.3 % enlarged from 28 px (``assets/mnist_digits.json``).
"""

from __future__ import annotations

from torch import Tensor

from ganlab.extractors.cifar import CifarExtractor, FeatureNet, normalized
from ganlab.system.paths import ASSETS
from ganlab.types import Features

WIDTHS = (8, 16, 32, 64)


class MnistExtractor(CifarExtractor):
    """A ``FeatureNet`` that sees each channel of an image as a grey digit, of the packaged weights or others.

    pool: the features of the three digits; logits: the log-probabilities of the 1,000 numbers they can make,
    red digit first: sums of those of the digits.
    """

    name = "mnist"
    suffix = "_mnist"
    feature_dim = 3 * WIDTHS[-1]
    num_classes = 1000
    views = "plain"
    width, packaged_weights, script = (
        WIDTHS[-1],
        ASSETS / "mnist_digits.safetensors",
        "scripts/train_digit_net.py",
    )

    def _features(self, net: FeatureNet, images: Tensor) -> Features:
        rgb = images.expand(-1, 3, -1, -1)
        with self.conv_autocast(self._device):
            maps = net.maps(normalized(rgb.reshape(-1, 1, *rgb.shape[2:])))
        pool, logits = net.read(maps.float())
        a, b, c = logits.log_softmax(1).view(len(rgb), 3, -1).unbind(1)
        numbers = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None]
        return Features(pool.view(len(rgb), -1), numbers.flatten(1))
