"""One generator update and the discriminator updates before it: the only code that changes weights.

It knows no dataset, network, loss or stabiliser by name.

With ``accumulate`` n each update runs over n micro batches and averages their gradients. For losses that are
means over samples this is the update of the whole batch, but for three things. Batch norm takes each micro
batch's statistics, and its running averages move n times; for G the paper's own ImageNet runs were like that:
four GPUs with 16 real and 32 generated images each, batch norm not synchronised (sngan_projection,
train_mn.py). What else looks at a whole batch (minibatch features) sees a micro batch. Spectral norms iterate
in the first micro batch alone, as often for each update as without accumulation: from the second on they
stand where the first left them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ganlab.losses import ClassLoss, Loss
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
    class_loss: ClassLoss | None = None
    accumulate: int = 1
    order: Literal["d_first", "g_first"] = "d_first"

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 for the networks, where the precision asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def fakes(self, n: int, y: Tensor | None = None) -> Batch:
        """``n`` images of G with their labels, from fresh z of the default generator.

        ``y`` (n,) None: drawn as ``fake_labels`` says, by the default generator too.
        """
        return self.generate(*self.inputs(n, y))

    def inputs(self, n: int, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(z, y) to train on, from the default generator; ``y`` where it is given, None without classes."""
        z = self.prior(n, self.z_dim, self.device)
        return z, self.draw_labels(n) if self.num_classes and y is None else y

    def generate(self, z: Tensor, y: Tensor | None) -> Batch:
        """G's images of latents z (n, Z) and labels y (n,) or None, float32 (n, C, H, W), with the labels."""
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
    """Update D ``d_steps`` times, then G once (or G first), then the moving average; all in place.

    ``real()`` gives the next batch of real images. Real and generated images pass through D separately, as
    in SNGAN's code: it matters only if D normalises over the batch or per forward pass.
    Returns detached scalars on the device by name, ``d``, ``g``, the penalties and the class losses: no host
    sync here.
    """
    for optimizer in (game.d_optimizer, game.g_optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor

    def seen() -> Batch:
        batch = real()
        return batch if game.num_classes else batch._replace(y=None)

    log: Terms = update_generator(game, seen) if game.order == "g_first" else {}
    for _ in range(game.d_steps):
        log |= update_discriminator(game, seen())
    if game.order == "d_first":
        log |= update_generator(game, seen)
    if game.average is not None:
        game.average.update_parameters(game.generator)
    return log


def update_discriminator(game: Game, real: Batch) -> Terms:
    """One optimiser step of D on ``real`` and as many generated images; then its constraints.

    With ``fake_labels="data"`` the generated images take the labels of the real ones, as in WGAN-GP's code.
    """
    d = game.discriminator
    z, y = game.inputs(len(real.x), real.y if game.fake_labels == "data" else None)
    stabilisers = game.stabilisers.items()

    def parts() -> Iterator[tuple[Terms, Terms]]:
        for real_x, real_y, part_z, part_y in pieces(game.accumulate, real.x, real.y, z, y):
            real_part = Batch(real_x, real_y)
            with torch.no_grad():
                fake = game.generate(part_z, part_y)
            told_real, told_fake = game.verdict(*real_part), game.verdict(*fake)
            terms = {"d": game.loss.discriminator(told_real, told_fake)}
            if game.class_loss is not None:
                terms["d_class"] = game.class_loss.discriminator(told_real, real_y, told_fake, fake.y)
            for name, stabiliser in stabilisers:
                if stabiliser.has_penalty:
                    terms[name] = stabiliser.penalty(d, real_part, fake)
            yield terms, {"d_real": told_real.score.mean(), "d_fake": told_fake.score.mean()}

    for _, stabiliser in stabilisers:
        stabiliser.before_update(d)
    log = descend(game.d_optimizer, parts(), game)
    for _, stabiliser in stabilisers:
        stabiliser.after_update(d)
    return log


def update_generator(game: Game, real: Callable[[], Batch]) -> Terms:
    """One optimiser step of G; D's weights stand still and get no gradients."""
    d = game.discriminator
    needs_real = game.loss.generator_needs_real

    def parts() -> Iterator[tuple[Terms, Terms]]:
        given = (*(real() if needs_real else (None, None)), *game.inputs(game.g_batch_size))
        for real_x, real_y, z, y in pieces(game.accumulate, *given):
            told_real = game.verdict(real_x, real_y) if needs_real else None
            fake = game.generate(z, y)
            told_fake = game.verdict(*fake)
            terms = {"g": game.loss.generator(told_real, told_fake)}
            if game.class_loss is not None:
                terms["g_class"] = game.class_loss.generator(told_fake, fake.y)
            yield terms, {}

    for stabiliser in game.stabilisers.values():
        stabiliser.before_update(d)
    with frozen(d.parameters()):
        return descend(game.g_optimizer, parts(), game)


def descend(optimizer: Optimizer, parts: Iterator[tuple[Terms, Terms]], game: Game) -> Terms:
    """One optimiser step on the mean over the micro batches of the sum of their terms.

    ``parts`` makes the micro batches' (terms, other numbers to tell) one at a time, so that only one lies in
    memory. Power iterations of D's weights happen in the first alone. Returns the means of all, detached.
    """
    log: Terms = {}
    optimizer.zero_grad(set_to_none=True)
    with ExitStack() as stack:
        for i, (terms, others) in enumerate(parts, 1):
            (torch.stack(list(terms.values())).sum() / game.accumulate).backward()
            for name, value in (terms | others).items():
                mean = value.detach() / game.accumulate
                log[name] = log[name] + mean if name in log else mean
            if i == 1 < game.accumulate:
                stack.enter_context(still(game.discriminator))
    optimizer.step()
    return log


def pieces(n: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """``n`` times the next n-th of every tensor along its first axis; None stays None."""
    return zip(*([None] * n if t is None else t.chunk(n) for t in tensors), strict=True)


@contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """Inside: ``net``'s weight parametrisations behave as in evaluation: no power iteration."""
    lists = [m for m in net.modules() if isinstance(m, ParametrizationList)]
    modes = [(m, m.training) for parametrizations in lists for m in parametrizations.modules()]
    try:
        for m, _ in modes:
            m.training = False
        yield
    finally:
        for m, mode in modes:
            m.training = mode


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
