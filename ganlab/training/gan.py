"""The GAN: generator, discriminator, their losses and optimizers, as ``step.py`` updates them."""

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
from ganlab.methods.base import Method, Player, Scene
from ganlab.methods.flat_weights import FlatWeights
from ganlab.methods.losses import ClassLoss, Loss
from ganlab.methods.modes import evaluating
from ganlab.methods.priors import Prior
from ganlab.methods.timetable import Round
from ganlab.training.fakes import Generated, Moved
from ganlab.types import Batch, Shape, Verdict


@dataclass
class GAN:
    """Generator, discriminator and all that an update needs. Batch sizes are global, over all ranks.

    ema: the moving average of G, or None; ``ema_started``: whether it has been updated.
    num_classes: 0 in an unconditional GAN, which ignores labels.
    labels: (N,) those of the training images, needed for ``fake_labels="data"`` only.
    joint_pass: real and generated images pass D in one batch.
    source: where the samples come from that D is trained on.
    unsynced_bn_stats: batch norm's running averages that differ between ranks and are averaged after each
        update.
    methods: by name, in the order in which their hooks are called: ``loss``, ``class_loss``, then those of
        ``normalization`` and ``technique`` by their names. needs: all that they and D's modules need
        (``methods/base.Method``).
    keys: of the methods in the config, as ``normalization.gp``, by their names.
    scheduled: values that a schedule moves, by key: as configured, and a 0-dim tensor that is read.
    compiled: replacements of ``d_terms`` and ``g_terms``.
    flat: the flat weight vectors of G and D, where updates use them.
    """

    generator: nn.Module
    discriminator: nn.Module
    methods: dict[str, Method]
    prior: Prior
    z_dim: int
    d_steps: int
    d_batch_size: int
    g_batch_size: int
    device: torch.device
    shape: Shape
    bf16: bool = False
    num_classes: int = 0
    fake_labels: Literal["uniform", "data"] = "uniform"
    labels: Tensor | None = None
    accumulate: int = 1
    order: Literal["d_first", "g_first", "together"] = "d_first"
    needs: frozenset[str] = frozenset()
    joint_pass: bool = False
    source: Generated | Moved = field(default_factory=Generated)
    ema: AveragedModel | None = None
    ema_started: bool = False
    unsynced_bn_stats: list[Tensor] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    scheduled: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    compiled: dict[str, Callable[..., Any]] = field(default_factory=dict)
    flat: dict[nn.Module, FlatWeights] = field(default_factory=dict)
    g_optimizer: Optimizer = field(init=False)
    d_optimizer: Optimizer = field(init=False)

    @property
    def loss(self) -> Loss:
        """The adversarial loss."""
        return self.methods["loss"]  # type: ignore[return-value]

    def terms(self, player: Player, scene: Scene) -> dict[str, Tensor]:
        """The terms of a player's loss by their names in the log: ``d``, ``d_class``, and penalties' own.

        ``g`` is the term that replaces the adversarial loss, where a method does."""
        terms, names = {}, {"loss": player, "class_loss": f"{player}_class"}
        other = next((name for name, m in self.methods.items() if m.replaces_g_loss and player == "g"), None)
        if other is not None:
            names[other] = "g"
        for name, method in self.methods.items():
            if name == "loss" and other is not None:
                continue
            term = method.d_term(scene) if player == "d" else method.g_term(scene)
            if term is not None:
                terms[names.get(name, name if player == "d" else f"g_{name}")] = term
        return terms

    def schedule(self, key: str, factor: float) -> None:
        """Set a scheduled value to ``factor`` times the configured one: on the host, before an update."""
        if key != "optimizer.lr":
            configured, value = self.scheduled[key]
            value.fill_(configured * factor)
            return
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                rate = group["initial_lr"] * factor
                if isinstance(group["lr"], Tensor):  # a recorded update reads its storage
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def scores(self) -> dict[str, float | None]:
        """The methods' measures of convergence; lower is better."""
        return {name: value for method in self.methods.values() for name, value in method.scores().items()}

    def scale_rates(self, factor: Tensor) -> None:
        """Multiply the configured learning rates by ``factor`` (0-dim); on a GPU without a sync."""
        for optimizer in (self.g_optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].copy_(factor * group["initial_lr"])
                else:
                    group["lr"] = group["initial_lr"] * float(factor)

    def trained(self, player: Player) -> tuple[list[nn.Parameter], FlatWeights | None]:
        """The parameters of a player's optimizer, and its flat weights where updates use them."""
        net, optimizer = self.generator, self.g_optimizer
        if player == "d":
            net, optimizer = self.discriminator, self.d_optimizer
        return [p for group in optimizer.param_groups for p in group["params"]], self.flat.get(net)

    def begin(self, now: Round) -> None:
        """Take a round's sizes, and hand its progress to networks that have ``set_progress``."""
        self.d_steps, self.d_batch_size, self.g_batch_size = now.d_steps, now.batch, now.g_batch
        for net in (self.generator, self.discriminator, self.ema and self.ema.module):
            if hasattr(net, "set_progress"):
                net.set_progress(now.progress)  # type: ignore[union-attr, operator]

    @property
    def scores_alone(self) -> bool:
        """Whether D's terms see its verdicts alone, and never the samples, which may then be in bfloat16."""
        verdicts_only = (Method.d_term, Loss.d_term, ClassLoss.d_term)
        return all(type(method).d_term in verdicts_only for method in self.methods.values())

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 autocast for the networks if ``bf16``, without its weight cache.

        The cache would keep memory of a recorded update alive.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def fakes(self, n: int, batches: int = 1) -> Batch:
        """Generate ``n`` images with their labels, for ``batches`` batches; see ``inputs``."""
        return self.generate(*self.inputs(n, batches=batches))

    def inputs(self, n: int, y: Tensor | None = None, batches: int = 1) -> tuple[Tensor, Tensor | None]:
        """Draw (z, y) to train on from the default generator: this rank's share of ``n``, in ``batches``.

        y: the argument (this rank's) unless it is None, else drawn by ``fake_labels``; None without classes.
        """
        shard = partial(collectives.current().shard, parts=batches * self.accumulate)
        z = shard(self.prior(n, self.z_dim, self.device))
        return z, shard(self.draw_labels(n)) if self.num_classes and y is None else y

    def generate(self, z: Tensor, y: Tensor | None, keep_dtype: bool = False) -> Batch:
        """G's images for latents z (n, Z) and labels y (n,) or None: float32 (n, C, H, W), with the labels.

        ``keep_dtype``: in autocast's dtype, for a D that would cast them back to it.
        """
        with self.autocast():
            x: Tensor = self.generator(z, y)
        return Batch(x if keep_dtype else x.float(), y)

    @property
    def joint_modules(self) -> list[nn.Module]:
        """D's modules that need ``joint_batch``."""
        if "joint_batch" not in self.needs:
            return []
        return [m for m in self.discriminator.modules() if "joint_batch" in getattr(m, "needs", ())]

    @property
    def fixed(self) -> Moved | None:
        """The source of a fixed G's samples; None where G is trained."""
        return self.source if isinstance(self.source, Moved) else None

    def draw_labels(self, n: int) -> Tensor:
        """Labels (n,) for G: uniform over the classes, or those of random training images."""
        if self.fake_labels == "uniform":
            return torch.randint(self.num_classes, (n,), device=self.device)
        assert self.labels is not None, "fake_labels=data needs the training images' labels"
        return self.labels[torch.randint(len(self.labels), (n,), device=self.device)]

    def verdict(self, x: Tensor, y: Tensor | None = None) -> Verdict:
        """D's verdict, with score and class logits in float32; in training on augmented samples."""
        return self._judge(self._augment(x), y)

    def _augment(self, x: Tensor) -> Tensor:
        for method in self.methods.values() if self.discriminator.training else ():
            x = method.augment(x)
        return x

    def _judge(self, x: Tensor, y: Tensor | None) -> Verdict:
        with self.autocast():
            verdict: Verdict = self.discriminator(x, y)
        logits = verdict.class_logits
        return Verdict(verdict.score.float(), verdict.features, None if logits is None else logits.float())

    def verdicts(self, real: Batch, fake: Batch, joint: bool | None = None) -> tuple[Verdict, Verdict]:
        """D's verdicts on both batches, from one pass if ``joint``; None: if ``joint_pass``.

        Modules of D that need ``joint_batch`` are told the number of real samples, ``n_real``."""
        if not (self.joint_pass if joint is None else joint):
            return self.verdict(*real), self.verdict(*fake)
        for module in self.joint_modules:
            module.n_real = len(real.x)  # type: ignore[assignment]
        n, y = len(real.x), None if real.y is None or fake.y is None else torch.cat([real.y, fake.y])
        collectives.current().parts = 2
        verdict = self._judge(torch.cat([self._augment(real.x), self._augment(fake.x)]), y)
        collectives.current().parts = 1
        for module in self.joint_modules:
            module.n_real = None  # type: ignore[assignment]
        halves = [(None, None) if t is None else t.split([n, len(t) - n]) for t in verdict]
        return Verdict(*(h[0] for h in halves)), Verdict(*(h[1] for h in halves))  # type: ignore[arg-type]

    def seen(self, batch: Batch) -> Batch:
        """``batch`` as the networks see it: without labels if unconditional, at their stage of growth."""
        batch = batch if self.num_classes else batch._replace(y=None)
        at_stage = getattr(self.discriminator, "real", None)
        return batch if at_stage is None else batch._replace(x=at_stage(batch.x))

    def draw(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw (z, y) for ``n`` images to score or save, from the generator ``random`` on the device.

        y: int64 (n,), uniform over the classes whatever ``fake_labels`` is; None in an unconditional GAN.
        """
        z = self.prior(n, self.z_dim, self.device, random)
        if not self.num_classes:
            return z, None
        return z, torch.randint(self.num_classes, (n,), generator=random, device=self.device)

    def class_logits(self, x: Tensor) -> Tensor:
        """D's class logits (n, K) of samples x (n, ...), in evaluation mode."""
        with torch.no_grad(), evaluating(self.discriminator):
            logits = self.verdict(x).class_logits
        assert logits is not None, "D has no class logits"
        return logits

    @property
    def classifier(self) -> Callable[[Tensor], Tensor] | None:
        """``class_logits`` of a D that classifies without a label as input; None for others."""
        return self.class_logits if "class_loss" in self.methods and not self.num_classes else None

    @property
    def ema_or_generator(self) -> nn.Module:
        """The generator that is scored and sampled: the moving average if there is one."""
        return self.generator if self.ema is None else self.ema.module
