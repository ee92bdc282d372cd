"""One generator update and the discriminator updates before it: the only code that changes weights.

It knows no dataset, network, loss or stabiliser by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ganlab.losses import Loss
from ganlab.priors import Prior
from ganlab.types import Batch, Stabiliser, Verdict

Terms = dict[str, Tensor]


@dataclass
class Game:
    """The two players and the rules. ``average`` is the moving average of G, or None.

    ``num_classes`` is 0 in an unconditional game: then nobody sees labels. ``labels`` (N,) are those of the
    training images, wanted by ``fake_labels="data"`` alone.
    """

    generator: nn.Module
    discriminator: nn.Module
    average: AveragedModel | None
    loss: Loss
    stabilisers: dict[str, Stabiliser]
    prior: Prior
    z_dim: int
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    d_steps: int
    g_batch_size: int
    device: torch.device
    bf16: bool = False
    num_classes: int = 0
    fake_labels: Literal["uniform", "data"] = "uniform"
    labels: Tensor | None = None

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 for the networks, where the precision asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def fakes(self, n: int, y: Tensor | None = None) -> Batch:
        """``n`` images of G with their labels, from fresh z of the default generator.

        ``y`` (n,) None: drawn as ``fake_labels`` says, by the default generator too.
        """
        z = self.prior(n, self.z_dim, self.device)
        if self.num_classes and y is None:
            y = self.draw_labels(n)
        with self.autocast():
            x: Tensor = self.generator(z, y)
        return Batch(x.float(), y)

    def draw_labels(self, n: int) -> Tensor:
        """Labels (n,) for G: uniform over the classes, or those of random training images."""
        if self.fake_labels == "uniform":
            return torch.randint(self.num_classes, (n,), device=self.device)
        assert self.labels is not None, "fake_labels=data needs the training images' labels"
        return self.labels[torch.randint(len(self.labels), (n,), device=self.device)]

    def verdict(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        """D's verdict, its score and class logits in float32."""
        with self.autocast():
            told: Verdict = self.discriminator(x, y)
        logits = told.class_logits
        return Verdict(told.score.float(), told.features, None if logits is None else logits.float())

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(z, y) for ``n`` images to look at, from a generator of their own on the device.

        y: int64 (n,), uniform over the classes whatever ``fake_labels`` says; None in an unconditional game.
        """
        z = self.prior(n, self.z_dim, self.device, random)
        if not self.num_classes:
            return z, None
        return z, torch.randint(self.num_classes, (n,), generator=random, device=self.device)

    @property
    def live(self) -> nn.Module:
        """The G that is scored and sampled: the average if there is one."""
        return self.generator if self.average is None else self.average.module


def play_round(game: Game, real: Callable[[], Batch], lr_factor: float = 1.0) -> Terms:
    """Update D ``d_steps`` times, then G once, then the moving average; all in place.

    ``real()`` gives the next batch of real images. Real and generated images pass through D separately, as
    in SNGAN's code: it matters only if D normalises over the batch or per forward pass.
    Returns detached scalars on the device by name, ``d``, ``g`` and the penalties: no host sync here.
    """
    for optimizer in (game.d_optimizer, game.g_optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor

    def seen() -> Batch:
        batch = real()
        return batch if game.num_classes else batch._replace(y=None)

    log: Terms = {}
    for _ in range(game.d_steps):
        log |= update_discriminator(game, seen())
    log |= update_generator(game, seen)
    if game.average is not None:
        game.average.update_parameters(game.generator)
    return log


def update_discriminator(game: Game, real: Batch) -> Terms:
    """One optimiser step of D on ``real`` and as many generated images; then its constraints.

    With ``fake_labels="data"`` the generated images take the labels of the real ones, as in WGAN-GP's code.
    """
    d = game.discriminator
    with torch.no_grad():
        fake = game.fakes(len(real.x), real.y if game.fake_labels == "data" else None)
    for stabiliser in game.stabilisers.values():
        stabiliser.before_update(d)
    told_real, told_fake = game.verdict(*real), game.verdict(*fake)
    terms = {"d": game.loss.discriminator(told_real, told_fake)}
    for name, stabiliser in game.stabilisers.items():
        if stabiliser.has_penalty:
            terms[name] = stabiliser.penalty(d, real, fake)
    log = descend(game.d_optimizer, terms)
    log["d_real"], log["d_fake"] = told_real.score.detach().mean(), told_fake.score.detach().mean()
    for stabiliser in game.stabilisers.values():
        stabiliser.after_update(d)
    return log


def update_generator(game: Game, real: Callable[[], Batch]) -> Terms:
    """One optimiser step of G; D's weights stand still and get no gradients."""
    d = game.discriminator
    for stabiliser in game.stabilisers.values():
        stabiliser.before_update(d)
    with frozen(d.parameters()):
        told_real = game.verdict(*real()) if game.loss.generator_needs_real else None
        told_fake = game.verdict(*game.fakes(game.g_batch_size))
        return descend(game.g_optimizer, {"g": game.loss.generator(told_real, told_fake)})


def descend(optimizer: Optimizer, terms: Terms) -> Terms:
    """One optimiser step on the sum of ``terms``; returns them detached."""
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


class frozen:  # noqa: N801 - reads as a verb phrase in ``with``
    """No gradients for these parameters inside the block."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)
