"""Residual blocks of SNGAN's ResNets (arXiv:1802.05957, Figure 8) and class-conditional batch norm.

Pre-activation blocks of two 3x3 convolutions, as in sngan_projection: nearest upsampling before the first
convolution, mean pooling after the second; D's first block has no leading ReLU.

While a block's ``folded`` is True its resampling is fused with a convolution (``fused_resampling.py``): the
same function of the same parameters up to rounding, with 0.44 times the multiplications.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.methods.base import FeatureNorm
from ganlab.models.activations import relu
from ganlab.models.base import Norm, activated, glorot_init, maybe
from ganlab.models.fused_resampling import ConvPool, UpConv

EPS = 2e-5  # Chainer's default for batch norm, so sngan_projection's


class PlainNorm(nn.BatchNorm2d):
    """Batch norm that ignores the labels it is called with."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x)


class ConditionalNorm(nn.Module):
    """Batch norm with a scale and an offset per class: gamma[y] * (x - mean) / std + beta[y].

    x (B, C, H, W), y (B,) int64. Statistics are over the whole batch, not per class. gamma is initialized to
    1, beta to 0; eps is added to the variance. Source: Dumoulin et al. 2017, arXiv:1610.07629, as in the code
    of SNGAN and of the projection paper (sngan_projection, categorical_conditional_batch_normalization.py).
    """

    def __init__(self, channels: int, num_classes: int, eps: float = EPS) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.gamma, self.beta = nn.Embedding(num_classes, channels), nn.Embedding(num_classes, channels)
        nn.init.ones_(self.gamma.weight)
        nn.init.zeros_(self.beta.weight)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        x = self.norm(x)
        gamma, beta = (e(y).to(x.dtype)[:, :, None, None] for e in (self.gamma, self.beta))
        return torch.addcmul(beta, x, gamma)


def batch_norm(channels: int, num_classes: int, eps: float) -> nn.Module:
    """G's batch norm, called with (x, y): per class, or plain if ``num_classes`` is 0."""
    return ConditionalNorm(channels, num_classes, eps) if num_classes else PlainNorm(channels, eps=eps)


def replace_norms(net: nn.Module, norm: FeatureNorm) -> int:
    """Put ``norm(channels)`` in the place of each batch norm of ``net``, also of one with scales and offsets
    per class, which stay; returns their number."""
    count = 0
    for name, child in list(net.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(net, name, norm(child.num_features))
            count += 1
        else:
            count += replace_norms(child, norm)
    return count


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 3, 1, 1)
    glorot_init(conv, math.sqrt(2))
    return conv


def conv1(c_in: int, c_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 1)
    glorot_init(conv)
    return conv


class UpBlock(nn.Module):
    """BN-ReLU-up-conv-BN-ReLU-conv plus up-1x1 conv; (B, c_in, H, W) -> (B, c_out, 2H, 2W)."""

    folded = True

    def __init__(self, c_in: int, c_out: int, num_classes: int, eps: float = EPS) -> None:
        super().__init__()
        self.norm1, self.norm2 = batch_norm(c_in, num_classes, eps), batch_norm(c_out, num_classes, eps)
        self.conv1, self.conv2 = conv3(c_in, c_out), conv3(c_out, c_out)
        self.shortcut = conv1(c_in, c_out)
        self.up = UpConv()

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.up(F.relu(self.norm1(x, y)), self.conv1, self.folded)
        h = self.conv2(F.relu(self.norm2(h, y)))
        # a 1x1 convolution commutes with nearest upsampling and is cheaper before it
        up: Tensor = F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")
        return up.add(h)


class DownBlock(nn.Module):
    """ReLU-conv-ReLU-conv(-mean pool) plus 1x1 conv(-mean pool); hidden width is the input's."""

    folded = True

    def __init__(self, c_in: int, c_out: int, down: bool, norm: Norm) -> None:
        super().__init__()
        self.down = down
        self.norm1, self.norm2 = maybe(norm, c_in), maybe(norm, c_in)
        self.conv1, self.conv2 = conv3(c_in, c_in), conv3(c_in, c_out)
        self.shortcut = conv1(c_in, c_out) if down or c_in != c_out else nn.Identity()
        self.pool = ConvPool()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(activated(x, self.norm1, relu))
        h = activated(h, self.norm2, relu)
        if self.down and self.folded:  # a 1x1 convolution commutes with the mean and is cheaper after it
            return self.pool(h, self.conv2, True) + self.shortcut(F.avg_pool2d(x, 2))  # type: ignore[no-any-return]
        out = self.conv2(h) + self.shortcut(x)
        return F.avg_pool2d(out, 2) if self.down else out


class FirstBlock(nn.Module):
    """conv-ReLU-conv-mean pool plus mean pool-1x1 conv; no activation before the image.

    A feature norm is between the two convolutions only if it also follows D's first one (``norm.first``).
    """

    folded = True

    def __init__(self, c_in: int, c_out: int, norm: Norm) -> None:
        super().__init__()
        self.norm = maybe(norm, c_out, first=True)
        self.conv1, self.conv2 = conv3(c_in, c_out), conv3(c_out, c_out)
        self.shortcut = conv1(c_in, c_out)
        self.pool = ConvPool()

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(activated(self.conv1(x), self.norm, relu), self.conv2, self.folded)
        return h + self.shortcut(F.avg_pool2d(x, 2))  # type: ignore[no-any-return]
