"""D's loss on held-out images beside that on training images, without changing the run.

Figure 5 of WGAN-GP (arXiv:1704.00028) and Figure 15 of SNGAN (arXiv:1802.05957): where the two curves part, D
has memorized its training images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ganlab import rng
from ganlab.data.base import Dataset, SampleSet
from ganlab.distributed import collectives
from ganlab.errors import ConfigError, suggest
from ganlab.evaluation.generate import evaluating
from ganlab.experiment import Experiment
from ganlab.methods.base import Scene
from ganlab.training.gan import GAN
from ganlab.types import Batch

CHUNK = 250  # images per pass of D
HELD_OUT = (
    "test",
    "testing",
    "val",
    "validation",
    "valid",
    "dev",
    "eval",
    "rest",
)  # split names that training does not use


def held_out(dataset: Dataset) -> str | None:
    """The test or validation split of ``dataset``, or the images that ``limit`` left out; None without."""
    return next((s for s in HELD_OUT if s in dataset.splits() and s != dataset.split), None)


def split_of(e: Experiment) -> str | None:
    """The split that ``validation`` names; None if it is off. Raises ConfigError."""
    requested, dataset = e.validation, e.dataset
    if requested is None or requested is False:
        return None
    splits = [s for s in dataset.splits() if s != dataset.split]
    if requested is True:
        if (split := held_out(dataset)) is None:
            ways = [dataset.holdout_option or "use another dataset", "validation=null"]
            name = f"name one of {', '.join(splits)}" if splits else f"{ways[0]}, or {ways[1]}"
            what = f"{dataset.name} {dataset.split} has no test or validation split"
            raise ConfigError("validation", what, name)
        return split
    if requested == dataset.split:
        fix = f"choose one of {', '.join(splits)}" if splits else "leave it out"
        raise ConfigError("validation", f"{requested} is the training split", fix)
    if requested not in splits:
        what = f"{dataset.name} has no split {requested!r}"
        raise ConfigError("validation", what, suggest(str(requested), splits) if splits else "leave it out")
    return str(requested)


class Validation:
    """Evaluates D on ``validation_n`` fixed images of each split, or all, and the same generated images.

    All are drawn by the run's seed, from separate generators. Real images are as in training, without
    ``flip``. Both networks are in evaluation mode: batch norm uses running averages, no power iterations.
    Raises ConfigError if the classes of ``held`` are not those of a conditional D.
    """

    def __init__(self, e: Experiment, gan: GAN, train: SampleSet, held: SampleSet) -> None:
        self.seed, self.gan, self.dequantize = e.seed, gan, e.dequantize
        if gan.num_classes and (held.labels is None or held.classes != train.classes):
            what = f"{held.name} {held.split} does not have the classes of {train.split}"
            raise ConfigError("validation", what, "choose another split, or architecture.head=none")
        n = min(e.validation_n, len(train), len(held))
        self.real = {"train": self._some(train, n, 0), "validation": self._some(held, n, 1)}
        self.z, self.y = gan.draw(n, rng.generator(gan.device, e.seed, "validation", 2))

    def _some(self, images: SampleSet, n: int, number: int) -> Batch:
        """``n`` images as D's input, drawn without replacement."""
        device, seed = self.gan.device, self.seed
        random = rng.generator("cpu", seed, "validation", 3, number)
        rows = torch.randperm(len(images), generator=random)[:n].sort().values.numpy()
        noise = rng.generator(device, seed, "validation", 4, number)
        x = images.to_model_input(
            torch.from_numpy(images.images[rows]).to(device), self.dequantize, generator=noise
        )
        if images.labels is None or not (self.gan.num_classes or "labelled" in self.gan.needs):
            return Batch(x)
        return Batch(x, torch.from_numpy(images.labels[rows]).to(device))

    def look(self) -> dict[str, float | None]:
        """``validation/d_train`` and ``validation/d_held_out``: D's adversarial loss without penalties.

        Adds the loss's own curves (``Loss.curves``), with penalties, as ``..._train`` and ``..._validation``.
        Penalties use the same random points for both splits, every time. None: not finite.
        """
        values: dict[str, float] = {}
        with self._isolated():
            fakes = [self.gan.generate(z, y) for z, y in self._chunks(self.z, self.y)]
            for name, real in self.real.items():
                d, penalties = self._losses(real, fakes)
                values[f"validation/d_{'train' if name == 'train' else 'held_out'}"] = d
                values |= {f"{k}_{name}": v for k, v in self.gan.loss.curves(d, penalties).items()}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def _losses(self, real: Batch, fakes: list[Batch]) -> tuple[float, float]:
        """D's loss and the sum of its penalties, means over all chunks."""
        gan, totals = self.gan, [0.0, 0.0]
        rng.seed_default(gan.device, self.seed, "validation", 5)
        for (x, y), fake in zip(self._chunks(*real), fakes, strict=True):
            if gan.fixed:
                fake = Batch(gan.fixed.moved(x, torch.randn_like(x)), y)
            part, share = Batch(x, y), len(x) / len(real.x)
            with torch.no_grad():
                labelled = part if "labelled" in gan.needs else None
                part = gan.seen(part)
                verdicts = gan.verdicts(part, fake, "joint_batch" in gan.needs)
                scene = Scene(gan, part, fake, *verdicts, labelled)
            losses = gan.terms("d", scene)
            d, added = losses["d"], [losses[name] for name in gan.methods.keys() & losses.keys()]
            for i, terms in enumerate(([d], added)):
                totals[i] += share * math.fsum(float(t.detach()) for t in terms)
        return totals[0], totals[1]

    @staticmethod
    def _chunks(x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        parts = x.split(CHUNK)
        return zip(parts, [None] * len(parts) if y is None else y.split(CHUNK), strict=True)

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Run as a single process, and restore modes, buffers and random states afterwards."""
        gan, devices = self.gan, [self.gan.device] if self.gan.device.type == "cuda" else []
        nets = (gan.generator, gan.discriminator)
        kept = [(b, b.clone()) for net in nets for b in net.buffers()]
        with (
            collectives.use_ranks(collectives.Ranks()),
            torch.random.fork_rng(devices),
            evaluating(nets[0]),
            evaluating(nets[1]),
        ):
            try:
                yield
            finally:
                for buffer, before in kept:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


def build_validation(e: Experiment, gan: GAN, train: SampleSet, held: SampleSet | None) -> Validation | None:
    """A ``Validation`` with ``held``, or None if that is None."""
    return None if held is None else Validation(e, gan, train, held)


def curves(losses: Mapping[str, float], gan: GAN) -> Mapping[str, float]:
    """The loss's own curves from mean losses; see ``Loss.curves``."""
    added = [losses[name] for name in gan.methods if name in losses]
    return gan.loss.curves(losses["d"], math.fsum(added))
