"""Equalized learning rates (Karras et al. 2018, arXiv:1710.10196, section 4.1), for both players."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ganlab.methods.base import Method
from ganlab.methods.weights import weighted_layers
from ganlab.schema import checked


class EqualizedLR(Method):
    """w * c with trained w ~ N(0, 1), so that Adam's steps are equally large relative to all weights.

    Args:
        scale: c is ``he``: gain / sqrt(fan_in), He's constant, with the gain that the architecture gives a
            layer, else sqrt(2); or ``rms``: the root mean square of the weights as drawn (the Theano code).
    """

    normalizes_weights = True

    @checked
    def __init__(self, scale: Literal["he", "rms"] = "he") -> None:
        self.scale = scale

    def prepare(self, gan: Any, data: Any = None) -> None:
        for net in (gan.generator, gan.discriminator):
            for name, layer in list(weighted_layers(net)):
                weight: Tensor = layer.weight  # type: ignore[assignment]
                if parametrize.is_parametrized(layer, "weight"):
                    raise ValueError(
                        f"normalization.equalized_lr: layer {name!r} has a normalized weight already"
                    )
                gain = float(getattr(layer, "gain", math.sqrt(2)))
                c = gain / math.sqrt(weight[0].numel())
                if self.scale == "rms":
                    c = float(weight.detach().square().mean().sqrt())
                    weight.data.div_(c)
                else:
                    nn.init.normal_(weight)
                parametrize.register_parametrization(layer, "weight", Scaled(c), unsafe=True)


class Scaled(nn.Module):
    """weight * c."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.c

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight
