"""Networks that grow (after Karras et al. 2018, arXiv:1710.10196): a finer scale fades in, with Adam anew."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.methods.timetable import Round, Timetable
from ganlab.models.cnn import CNN


class Phases(Timetable):
    """8 images an update at half the resolution for 6 steps, then 4, while the full one fades in."""

    def round(self, step: int) -> Round:
        first = 8 * min(step, 6) + 4 * max(step - 6, 0)
        size = 8 if step < 6 else 4
        return Round(1, size, size, first, min(max(step - 6, 0) / 4, 1.0))

    def boundary(self, step: int) -> bool:
        return step == 6


class Faded(nn.Module):
    """Images that pass between ``net`` and the world lose their finest scale while progress is below 1."""

    def __init__(self, net: nn.Module, is_g: bool) -> None:
        super().__init__()
        self.net, self.is_g = net, is_g
        self.register_buffer("progress", torch.zeros(()))

    def set_progress(self, t: float) -> None:
        self.progress.fill_(t)

    def fade(self, x: Tensor) -> Tensor:
        return torch.lerp(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0), x, self.progress)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.fade(self.net(x, y)) if self.is_g else self.net(self.fade(x), y)


class GrowingCNN(CNN):
    """The cnn, growing."""

    def generator(self, shape: Any, num_classes: int) -> nn.Module:
        return Faded(super().generator(shape, num_classes), True)

    def discriminator(self, shape: Any, num_classes: int, norm: Any) -> nn.Module:
        return Faded(super().discriminator(shape, num_classes, norm), False)
