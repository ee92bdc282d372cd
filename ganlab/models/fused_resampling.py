"""Nearest upsampling before a 3x3 convolution, or mean pooling after one, as a single 4x4 convolution.

This is exact. In one dimension, with taps w0, w1, w2: over an upsampled signal the even outputs are
w0 x[m-1] + (w1 + w2) x[m] and the odd ones (w0 + w1) x[m] + w2 x[m+1], which is a transposed convolution of
stride 2 with 4 taps; the mean of two neighboring outputs is a convolution of stride 2 with the taps
w0, w0 + w1, w1 + w2, w2, halved. This takes 16 instead of 36 multiplications per 2x2 pixels of the larger
map. Bias, zero padding and gradients are unchanged; float64 agrees to 1e-14.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpConv(nn.Module):
    """Nearest upsampling by 2, then ``conv`` (3x3, padding 1): (B, C, H, W) to (B, C', 2H, 2W).

    Has no parameters: ``conv`` is the block's and passed with each call.
    """

    taps: Tensor
    low_taps: Tensor  # for bfloat16 weights; exact in bfloat16

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", _sums().flip(0), persistent=False)
        self.register_buffer("low_taps", self.taps.bfloat16(), persistent=False)

    def forward(self, x: Tensor, conv: nn.Conv2d, folded: bool) -> Tensor:
        if not folded:
            return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
        kernel = _fold(conv.weight, self).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


class ConvPool(nn.Module):
    """``conv`` (3x3, padding 1), then means over 2x2: (B, C, H, W) to (B, C', H/2, W/2); see ``UpConv``."""

    taps: Tensor
    low_taps: Tensor  # for bfloat16 weights; exact in bfloat16

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", _sums() / 4, persistent=False)
        self.register_buffer("low_taps", self.taps.bfloat16(), persistent=False)

    def forward(self, x: Tensor, conv: nn.Conv2d, folded: bool) -> Tensor:
        if not folded:
            return F.avg_pool2d(conv(x), 2)
        return F.conv2d(x, _fold(conv.weight, self), conv.bias, stride=2, padding=1)


def _fold(weight: Tensor, of: UpConv | ConvPool) -> Tensor:
    """(O, I, 3, 3) to the 4x4 kernel (O, I, 4, 4), in the weight's precision, channels last."""
    o, i = weight.shape[:2]
    taps = of.low_taps if weight.dtype == torch.bfloat16 else of.taps
    with torch.autocast(weight.device.type, enabled=False):
        kernel = taps @ weight.permute(0, 2, 3, 1).reshape(o, 9, i)
    return kernel.view(o, 4, 4, i).permute(0, 3, 1, 2)


def _sums() -> Tensor:
    """The matrix (16, 9) that sums the 9 taps into the 16, both in row-major order."""
    line = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
    return (line[:, None, :, None] * line[None, :, None, :]).reshape(16, 9)
