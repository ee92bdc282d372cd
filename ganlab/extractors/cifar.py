"""The built-in feature network: small, offline, trained on CIFAR-10 (``scripts/train_feature_net.py``).

Its features are averaged over an image and its mirror image. Its accuracy on CIFAR-10's test images is 90.2 %
(JPEG-recompressed, like its training data; see ``assets/cifar_features.json``). Its scores have the suffix
``_cifar`` and are not comparable with published ones: they compare runs with each other, fast and offline.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.errors import EnvError
from ganlab.extractors.base import NetworkExtractor, Precision, check_images, exact_fp32
from ganlab.schema import checked
from ganlab.system.paths import ASSETS, expanded
from ganlab.types import Features

WEIGHTS = ASSETS / "cifar_features.safetensors"
WIDTHS = (24, 64, 240, 256)
RESOLUTION = 32
CPU_BATCH = 100  # the feature maps fit in a CPU's caches: 1.4 times as fast as 1,000 at once
# mean and standard deviation of CIFAR-10's training pixels: red, green, blue, in [0, 255]
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


class FeatureNet(nn.Module):
    """2x2 convolution, then three blocks of [3x3 conv, max-pool by 2, GELU, 3x3 conv, GELU], then the mean.

    After airbench94 (Jordan 2024, arXiv:2404.00498), but narrower, and with the mean, not the maximum,
    over the last 3x3 map. widths: channels of the stem and of each block; the last is D, of the features.
    norm: ``channels -> module`` after each 3x3 convolution, for training; None for the folded network,
    whose convolutions have biases instead. A norm's scale must be positive, or max-pool would not commute.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        norm: Callable[[int], nn.Module] | None = None,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 2)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for before, after in pairwise(widths):
            for channels in (before, after):
                self.convs.append(nn.Conv2d(channels, after, 3, padding=1, bias=norm is None))
                self.norms.append(nn.Identity() if norm is None else norm(after))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Features:
        """Normalized images (B, 3, 32, 32) to pool (B, D) and logits (B, K)."""
        return self.read(self.maps(x))

    def maps(self, x: Tensor) -> Tensor:
        """The last maps (B, D, 3, 3)."""
        x = F.gelu(self.stem(x))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            if i % 2 == 0:
                x = F.max_pool2d(x, 2)
            x = F.gelu(norm(x))
        return x

    def read(self, maps: Tensor) -> Features:
        """Pool and logits of the last maps."""
        pool = maps.mean((2, 3))
        return Features(pool, self.head(pool))


def normalized(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) to the network's input, float32 (B, 3, 32, 32), channels last.

    Other sizes are resized to 32x32 by bilinear interpolation, antialiased when shrinking; the
    aspect ratio is not kept. Grayscale images are repeated to three channels.
    """
    x = images.float().contiguous(memory_format=torch.channels_last)
    if x.shape[2:] != (RESOLUTION, RESOLUTION):
        x = F.interpolate(x, size=(RESOLUTION, RESOLUTION), mode="bilinear", antialias=True)
    mean, std = pixel_statistics(x.device)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@functools.cache
def pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """``MEAN`` and ``STD`` as (1, 3, 1, 1), copied to the device once: a copy blocks the host."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return mean, std


def both_views(net: FeatureNet, x: Tensor, autocast: AbstractContextManager[Any] | None = None) -> Features:
    """The mean of the outputs for normalized images and for their mirror images.

    ``autocast``: for the convolutions; means and logits are in fp32.
    """
    with autocast or contextlib.nullcontext():
        maps = [net.maps(view) for view in (x, x.flip(3))]
    plain, mirrored = (net.read(m.float()) for m in maps)
    return Features((plain.pool + mirrored.pool) / 2, (plain.logits + mirrored.logits) / 2)


def widths_of(state: dict[str, Tensor]) -> tuple[int, ...]:
    """The ``widths`` of a folded network's state. Raises KeyError if it is the state of another network."""
    blocks = sum(name.endswith(".weight") for name in state if name.startswith("convs.")) // 2
    return (len(state["stem.weight"]), *(len(state[f"convs.{2 * i}.weight"]) for i in range(blocks)))


class CifarExtractor(NetworkExtractor):
    """The packaged network, or another one made by ``scripts/train_feature_net.py``.

    weights: a safetensors file; None: the packaged one. The JSON file beside it (optional for other files)
    has its sha256. Read at first use; raises EnvError, one line, if it is missing, damaged or of another
    network. precision: ``bf16`` is faster if the processor supports it, but a different protocol: the names
    of its scores end in ``_cifar_bf16``. Also accepts grayscale images, uint8 (B, 1, H, W).
    """

    name = "cifar"
    suffix = "_cifar"
    feature_dim = WIDTHS[-1]
    num_classes = 10
    views = "mirrored"
    width, packaged_weights, script = WIDTHS[-1], WEIGHTS, "scripts/train_feature_net.py"

    @checked
    def __init__(self, weights: str | None = None, precision: Precision = "fp32") -> None:
        super().__init__(precision)
        self.path = self.packaged_weights if weights is None else expanded(weights)
        self.packaged = weights is None

    def identity(self) -> dict[str, str | int | float]:
        self._load()
        resize = f"bilinear-antialias-{RESOLUTION}"
        return {
            "name": self.name,
            "weights": self._sha256,
            "layer": "mean",
            "views": self.views,
            "resize": resize,
            **self.precision_record,
        }

    def __call__(self, images: Tensor) -> Features:
        check_images(images, (1, 3))
        net = self._load()
        with exact_fp32(self._device.type):
            images = images.to(self._device, non_blocking=True)
            parts = images.split(CPU_BATCH) if self._device.type == "cpu" else (images,)
            pools, logits = zip(*(self._features(net, part) for part in parts), strict=True)
            return Features(torch.cat(pools), torch.cat(logits))

    def _features(self, net: FeatureNet, images: Tensor) -> Features:
        return both_views(net, normalized(images), self.conv_autocast(self._device))

    def _read(self) -> tuple[nn.Module, str]:
        content, sha256 = self._verified()
        try:
            state = {name: value.float() for name, value in load(content).items()}
            net = FeatureNet(widths_of(state))
            net.load_state_dict(state)
        except (SafetensorError, RuntimeError, KeyError, ValueError) as e:
            what = f"not weights of the {self.name} feature network"
            raise EnvError(str(self.path), what, self._fix()) from e
        if net.head.in_features != self.width:
            what = f"has {net.head.in_features} features, expected {self.width}"
            raise EnvError(str(self.path), what, self._fix())
        return net.eval().requires_grad_(False), sha256

    def _verified(self) -> tuple[bytes, str]:
        """The file's content and its sha256, which equals that in the JSON file."""
        about = self.path.with_suffix(".json")
        try:
            content = self.path.read_bytes()
            expected = json.loads(about.read_bytes())["sha256"] if self.packaged or about.is_file() else None
        except OSError as e:
            raise EnvError(str(e.filename or self.path), e.strerror or "not readable", self._fix()) from e
        except (ValueError, KeyError, TypeError) as e:
            raise EnvError(str(about), "not the JSON that states the weights' sha256", self._fix()) from e
        sha256 = hashlib.sha256(content).hexdigest()
        if expected not in (None, sha256):
            what = f"damaged: sha256 {sha256[:12]}..., {about.name} says {str(expected)[:12]}..."
            raise EnvError(str(self.path), what, self._fix())
        return content, sha256

    def _fix(self) -> str:
        if self.packaged:
            return f"reinstall ganlab, or write the file with {self.script}"
        return f"give metric.weights a file of {self.script}, or null for the packaged one"
