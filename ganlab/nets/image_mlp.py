"""A generator of images without convolutions: WGAN's and WGAN-GP's architecture that other GANs fail with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ganlab.types import ImageShape


class MLPGenerator(nn.Module):
    """z (B, Z) -> linear layers of ``hidden`` units with ReLU -> linear, tanh -> (B, C, H, W)."""

    def __init__(self, shape: ImageShape, z_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        for n_in, n_out in zip([z_dim, *hidden], hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        pixels = shape.channels * shape.height * shape.width
        self.body = nn.Sequential(*layers, nn.Linear([z_dim, *hidden][-1], pixels), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(z).view(-1, *self.shape)  # type: ignore[no-any-return]
