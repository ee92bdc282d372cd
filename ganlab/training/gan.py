"""The two players and the rules between them: what a step reads and changes, and what else looks at them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ganlab.distributed import collectives
from ganlab.methods.base import Method
from ganlab.methods.flat_weights import FlatWeights
from ganlab.methods.losses import ClassLoss, Loss
from ganlab.methods.priors import Prior
from ganlab.types import Batch, Shape, Verdict


@dataclass
class GAN:
    """The two players and the rules. ``average``: the moving average of G, or None; ``averaging``: it began.

    ``num_classes`` is 0 in an unconditional game: then nobody sees labels. ``labels`` (N,) are those of the
    training images, wanted by ``fake_labels="data"`` alone. ``together``: real and generated images pass D in
    one batch. ``joint_fakes``: G makes the images of all ``d_steps`` updates in one pass. ``compiled``: what
    stands in for ``d_terms`` and ``g_terms``. Batch sizes are those of all ranks; each plays its share.
    ``shape``: of a sample. ``noise``, ``shift``: unless both are 0 G rests, and fakes are real samples plus
    ``shift`` and noise of that deviation.
    ``apart``: running averages that each rank has of its share, to be averaged after each update. ``flat``:
    what gives G and D their weights in an update, where that is not left to their layers.
    """

    generator: nn.Module
    discriminator: nn.Module
    average: AveragedModel | None
    loss: Loss
    stabilisers: dict[str, Method]
    prior: Prior
    z_dim: int
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    d_steps: int
    d_batch_size: int
    g_batch_size: int
    device: torch.device
    shape: Shape
    bf16: bool = False
    num_classes: int = 0
    fake_labels: Literal["uniform", "data"] = "uniform"
    labels: Tensor | None = None
    class_loss: ClassLoss | None = None
    accumulate: int = 1
    order: Literal["d_first", "g_first"] = "d_first"
    together: bool = False
    joint_fakes: bool = False
    averaging: bool = False
    noise: float = 0.0
    shift: float = 0.0
    apart: list[Tensor] = field(default_factory=list)
    compiled: dict[str, Callable[..., Any]] = field(default_factory=dict)
    flat: dict[nn.Module, FlatWeights] = field(default_factory=dict)

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 for the networks, where the precision asks for it.

        Without autocast's cache of weights: it would hold on to memory of a recorded update.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def fakes(self, n: int, batches: int = 1) -> Batch:
        """``n`` images of G with their labels, for ``batches`` batches; see ``inputs``."""
        return self.generate(*self.inputs(n, batches=batches))

    def inputs(self, n: int, y: Tensor | None = None, batches: int = 1) -> tuple[Tensor, Tensor | None]:
        """(z, y) to train on, from the default generator: of many ranks the share of ``n`` in ``batches``.

        ``y`` where it is given (that of this rank), else drawn as ``fake_labels`` says; None without classes.
        """
        share = partial(collectives.current().shard, parts=batches * self.accumulate)
        z = share(self.prior(n, self.z_dim, self.device))
        return z, share(self.draw_labels(n)) if self.num_classes and y is None else y

    def generate(self, z: Tensor, y: Tensor | None, as_made: bool = False) -> Batch:
        """G's images of latents z (n, Z) and labels y (n,) or None, float32 (n, C, H, W), with the labels.

        ``as_made``: in the precision that G makes them in, for a D that would cast them back to it.
        """
        with self.autocast():
            x: Tensor = self.generator(z, y)
        return Batch(x if as_made else x.float(), y)

    @property
    def fixed(self) -> bool:
        """Whether G rests: see ``moved``."""
        return bool(self.noise or self.shift)

    def moved(self, x: Tensor, noise: Tensor) -> Tensor:
        """The samples of a G that rests: real ones ``x`` (B, ...) moved, ``noise`` ~ N(0, 1) as large."""
        return x + self.shift + self.noise * noise

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

    def verdicts(self, real: Batch, fake: Batch) -> tuple[Verdict, Verdict]:
        """D's verdicts on both, from one pass over both batches if they go ``together``."""
        if not self.together:
            return self.verdict(*real), self.verdict(*fake)
        n, y = len(real.x), None if real.y is None or fake.y is None else torch.cat([real.y, fake.y])
        told = self.verdict(torch.cat([real.x, fake.x]), y)
        halves = [(None, None) if t is None else t.split([n, len(t) - n]) for t in told]
        return Verdict(*(h[0] for h in halves)), Verdict(*(h[1] for h in halves))  # type: ignore[arg-type]

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
