"""A plain eager GAN training loop: the reference for ganlab's speed.

    python scripts/plain_loop.py resnet sn 3   # cnn or resnet; sn, gp, wn or none; generator updates

Comparable to the loops of mimicry and pytorch-gan-collections: SNGAN's networks (arXiv:1802.05957, Tables 3
and 4), NCHW, one power iteration per forward pass, separate D passes for real and generated images,
``loss.backward()``, Adam without foreach or fusion. It has no optimizations and no deliberate waste: D's fake
images are generated without a graph, data is in memory, and losses are not read back. It imports only torch.
``load`` copies the initial weights of ganlab's networks, whose names match, so that both loops produce the
same losses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

EPS = 2e-5  # of batch norm: Chainer's default, as in SNGAN


class SpectralNorm(nn.Module):
    """Layer mixin: ``sn_weight`` is W / sigma(W); with ``per_update``, the loop runs the power iterations."""

    weight: Any
    u: Tensor
    v: Tensor
    per_update = False

    def start(self) -> None:
        self.register_buffer("u", F.normalize(torch.randn(len(self.weight)), dim=0))
        self.register_buffer("v", torch.zeros(self.weight[0].numel()))
        self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration on the (d_out, d_in * kernel) matrix."""
        matrix = self.weight.flatten(1)
        self.v = F.normalize(torch.mv(matrix.t(), self.u), dim=0)
        self.u = F.normalize(torch.mv(matrix, self.v), dim=0)

    def sn_weight(self) -> Tensor:
        if self.training and not self.per_update:
            self.iterate()
        sigma = torch.dot(self.u, torch.mv(self.weight.flatten(1), self.v))
        return self.weight / sigma  # type: ignore[no-any-return]


class SNConv2d(nn.Conv2d, SpectralNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.sn_weight(), self.bias, self.stride, self.padding)


class SNLinear(nn.Linear, SpectralNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.sn_weight(), self.bias)


def make_layer(layer_type: type[nn.Module], method: str, *args: Any) -> nn.Module:
    """Build a layer of D (``nn.Conv2d`` or ``nn.Linear``), with or without weight normalization."""
    if method == "sn":
        sn_layer: SpectralNorm = (SNConv2d if layer_type is nn.Conv2d else SNLinear)(*args)
        sn_layer.start()
        return sn_layer
    layer: Any = layer_type(*args)
    if method == "wn":  # each output row has norm 1, with a fixed gain of 1 (SNGAN, section 4)
        weight_norm(layer).parametrizations.weight.original0.requires_grad_(False).fill_(1.0)
    return layer  # type: ignore[no-any-return]


conv, linear = partial(make_layer, nn.Conv2d), partial(make_layer, nn.Linear)


class CNNGenerator(nn.Module):
    """SNGAN, Table 3."""

    def __init__(self, size: int, z_dim: int, width: float) -> None:
        super().__init__()
        c = [max(1, round(n * width)) for n in (512, 256, 128, 64)]
        self.shape = (c[0], size // 8, size // 8)
        self.dense = nn.Linear(z_dim, c[0] * (size // 8) ** 2)
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(c):
            layers += [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out, eps=EPS), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(c[-1], 3, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.body(self.dense(z).view(-1, *self.shape))  # type: ignore[no-any-return]


class CNNDiscriminator(nn.Module):
    """SNGAN, Table 3."""

    def __init__(self, method: str, size: int, width: float) -> None:
        super().__init__()
        c = [3, *(max(1, round(n * width)) for n in (64, 64, 128, 128, 256, 256, 512))]
        kernels = [(4, 2, 1) if i % 2 else (3, 1, 1) for i in range(7)]
        self.convs = nn.ModuleList(conv(method, c[i], c[i + 1], *kernels[i]) for i in range(7))
        self.dense = linear(method, c[-1] * (size // 8) ** 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.convs:
            x = F.leaky_relu(layer(x), 0.1)
        return self.dense(x.flatten(1)).squeeze(1)  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.BatchNorm2d(channels, eps=EPS) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x)), scale_factor=2.0)
        h = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return h + self.shortcut(F.interpolate(x, scale_factor=2.0))  # type: ignore[no-any-return]


class ResNetGenerator(nn.Module):
    """SNGAN, Table 4."""

    def __init__(self, channels: int, z_dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.dense = nn.Linear(z_dim, channels * 4 * 4)
        self.blocks = nn.ModuleList(UpBlock(channels) for _ in range(3))
        self.norm = nn.BatchNorm2d(channels, eps=EPS)
        self.last = nn.Conv2d(channels, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.dense(z).view(-1, self.channels, 4, 4)
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.last(F.relu(self.norm(h))))


class DownBlock(nn.Module):
    """The ``first`` block has no activation on its input, and pools before the shortcut's convolution."""

    def __init__(self, method: str, c_in: int, c_out: int, down: bool, first: bool) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1, self.conv2 = conv(method, c_in, c_out, 3, 1, 1), conv(method, c_out, c_out, 3, 1, 1)
        self.shortcut = conv(method, c_in, c_out, 1) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.first:
            return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))  # type: ignore[no-any-return]
        h = h + self.shortcut(x)
        return F.avg_pool2d(h, 2) if self.down else h


class ResNetDiscriminator(nn.Module):
    """SNGAN, Table 4."""

    def __init__(self, method: str, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DownBlock(method, channels if i else 3, channels, down=i < 2, first=i == 0) for i in range(4)
        )
        self.dense = linear(method, channels, 1, False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.dense(F.relu(x).sum((2, 3))).squeeze(1)  # type: ignore[no-any-return]


def load(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load ganlab's ``state_dict``; names match except for parametrized weights.

    Raises RuntimeError if names or shapes differ.
    """
    own_state, renamed = net.state_dict(), {}
    for name, value in state.items():
        stem, marker, tail = name.partition("parametrizations.weight.")
        if marker and tail == "original":
            name = f"{name}1" if f"{name}1" in own_state else f"{stem}weight"
        elif marker:
            name = stem + tail.rpartition(".")[2]  # u, v
        renamed[name] = value.detach().clone(memory_format=torch.contiguous_format)
    gains = {name: value for name, value in own_state.items() if name.endswith("weight.original0")}
    net.load_state_dict(renamed | gains)


class Loop:
    """G, D and their optimizers; ``update()`` does ``d_steps`` D updates and one G update.

    Args:
        net: ``cnn`` or ``resnet``. method: ``sn``, ``gp``, ``wn`` or ``none``.
        images: uint8 (N, 3, H, W), on the device.
        loss: ``standard``, ``hinge`` or ``wasserstein``.
        width: multiplies all channels. g_channels, d_channels: channels of the ResNet at width 1.
        per_update: one power iteration per D update instead of one per forward pass.
        bf16: run both networks under bfloat16 autocast.
    """

    def __init__(
        self,
        net: str,
        method: str,
        images: Tensor,
        loss: str = "hinge",
        d_steps: int = 5,
        batch_size: int = 64,
        z_dim: int = 128,
        width: float = 1.0,
        g_channels: int = 256,
        d_channels: int = 128,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        per_update: bool = False,
        bf16: bool = False,
    ) -> None:
        self.images, self.device, self.loss, self.method = images, images.device, loss, method
        self.d_steps, self.batch_size, self.z_dim = d_steps, batch_size, z_dim
        self.per_update, self.bf16 = per_update, bf16
        g: nn.Module
        d: nn.Module
        if net == "cnn":
            size = images.shape[-1]
            g, d = CNNGenerator(size, z_dim, width), CNNDiscriminator(method, size, width)
        else:
            g = ResNetGenerator(max(1, round(g_channels * width)), z_dim)
            d = ResNetDiscriminator(method, max(1, round(d_channels * width)))
        self.generator, self.discriminator = g.to(self.device), d.to(self.device)
        self.sn_layers = [m for m in d.modules() if isinstance(m, SpectralNorm)]
        for m in self.sn_layers:
            m.per_update = per_update
        trained = [p for p in d.parameters() if p.requires_grad]
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), lr, betas, foreach=False)
        self.d_optimizer = torch.optim.Adam(trained, lr, betas, foreach=False)

    def real(self) -> Tensor:
        """A random batch, float32 in [-1, 1]."""
        rows = torch.randint(len(self.images), (self.batch_size,), device=self.device)
        return self.images[rows].float() / 127.5 - 1

    def generate(self) -> Tensor:
        z = torch.randn(self.batch_size, self.z_dim, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            x: Tensor = self.generator(z)
        return x.float() if self.bf16 else x

    def score(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            score: Tensor = self.discriminator(x)
        return score.float() if self.bf16 else score

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """WGAN-GP's gradient penalty (arXiv:1704.00028), weight 10."""
        a = torch.rand(len(real), 1, 1, 1, device=self.device)
        x = (a * real + (1 - a) * fake).requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.discriminator(x).sum(), x, create_graph=True)
        excess: Tensor = gradient.flatten(1).norm(dim=1) - 1
        return 10 * (excess**2).mean()

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.loss == "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        if self.loss == "standard":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        return fake.mean() - real.mean()

    def iterate(self) -> None:
        for m in self.sn_layers if self.per_update else ():
            m.iterate()

    def update(self) -> dict[str, Tensor]:
        """Do one generator update; returns its loss ``g`` and the last D loss ``d``."""
        for _ in range(self.d_steps):
            real = self.real()
            with torch.no_grad():
                fake = self.generate()
            d = self.d_loss(self.score(real), self.score(fake))
            self.d_optimizer.zero_grad()
            (d + self.penalty(real, fake) if self.method == "gp" else d).backward()
            self.d_optimizer.step()
            self.iterate()
        score = self.score(self.generate())
        g = F.softplus(-score).mean() if self.loss == "standard" else -score.mean()
        self.g_optimizer.zero_grad()
        g.backward()
        self.g_optimizer.step()
        return {"d": d.detach(), "g": g.detach()}


if __name__ == "__main__":
    net, method, updates = sys.argv[1:]
    loop = Loop(net, method, torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8))
    for _ in range(int(updates)):
        began = time.perf_counter()
        losses = ", ".join(f"{name} {float(value):.4f}" for name, value in loop.update().items())
        print(f"{losses}, {time.perf_counter() - began:.3f} s")
