"""D's loss on images that it was not trained on, beside that on training images. Looking never changes a run.

Figure 5 of WGAN-GP (arXiv:1704.00028) and Figure 15 of SNGAN (arXiv:1802.05957): where the two part, D has
learnt its training images by heart.
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
from ganlab.training.gan import GAN
from ganlab.types import Batch

PIECE = 250  # images that pass D at a time
HELD_OUT = (
    "test",
    "testing",
    "val",
    "validation",
    "valid",
    "dev",
    "eval",
    "rest",
)  # names of splits that are not trained on


def held_out(dataset: Dataset) -> str | None:
    """The split that training does not use: its test or validation split, or what was left out; or None."""
    return next((s for s in HELD_OUT if s in dataset.splits() and s != dataset.split), None)


def split_of(e: Experiment) -> str | None:
    """The split that ``validation`` names; None where it is off. Raises ConfigError."""
    wanted, dataset = e.validation, e.dataset
    if wanted is None or wanted is False:
        return None
    there = [s for s in dataset.splits() if s != dataset.split]
    if wanted is True:
        if (found := held_out(dataset)) is None:
            ways = [dataset.holdout_option or "take another dataset", "validation=null"]
            name = f"name one of {', '.join(there)}" if there else f"{ways[0]}, or {ways[1]}"
            what = f"{dataset.name} {dataset.split} has no test or validation split beside it"
            raise ConfigError("validation", what, name)
        return found
    if wanted == dataset.split:
        fix = f"choose one of {', '.join(there)}" if there else "leave it out"
        raise ConfigError("validation", f"{wanted} is what training uses", fix)
    if wanted not in there:
        what = f"{dataset.name} has no split {wanted!r}"
        raise ConfigError("validation", what, suggest(str(wanted), there) if there else "leave it out")
    return str(wanted)


class Validation:
    """Looks at D with ``n`` fixed images of each set, at most all, against the same generated images.

    All are drawn by the run's seed, from generators of their own. Real images are as in training, but for
    ``flip``. Both networks are in evaluation mode: batch norm by its running averages, no power iterations.
    Raises ConfigError if a conditional D can't judge ``held``.
    """

    def __init__(self, e: Experiment, game: GAN, train: SampleSet, held: SampleSet) -> None:
        self.seed, self.game, self.dequantize = e.seed, game, e.dequantize
        if game.num_classes and (held.labels is None or held.classes != train.classes):
            what = f"{held.name} {held.split} has not the classes of {train.split}"
            raise ConfigError("validation", what, "choose another split, or architecture.head=none")
        n = min(e.validation_n, len(train), len(held))
        self.real = {"train": self._some(train, n, 0), "validation": self._some(held, n, 1)}
        self.z, self.y = game.draw(n, rng.generator(game.device, e.seed, "validation", 2))

    def _some(self, images: SampleSet, n: int, number: int) -> Batch:
        """``n`` of the images as D sees them, drawn without replacement."""
        device, seed = self.game.device, self.seed
        random = rng.generator("cpu", seed, "validation", 3, number)
        rows = torch.randperm(len(images), generator=random)[:n].sort().values.numpy()
        noise = rng.generator(device, seed, "validation", 4, number)
        pixels = torch.from_numpy(images.images[rows]).to(device)
        x = images.to_model_input(pixels, self.dequantize, generator=noise)
        if not self.game.num_classes or images.labels is None:
            return Batch(x)
        return Batch(x, torch.from_numpy(images.labels[rows]).to(device))

    def look(self) -> dict[str, float | None]:
        """``validation/d_train`` and ``validation/d_held_out``: D's adversarial loss, penalties not in it.

        Beside them the loss's own curves (``Loss.curves``), with penalties, as ``..._train`` and
        ``..._validation``. Penalties between real and generated images have their own points, the same for
        both sets and every time. None: not finite.
        """
        found: dict[str, float] = {}
        with self._aside():
            fakes = [self.game.generate(z, y) for z, y in self._pieces(self.z, self.y)]
            for name, real in self.real.items():
                d, penalties = self._losses(real, fakes)
                found[f"validation/d_{'train' if name == 'train' else 'held_out'}"] = d
                found |= {f"{k}_{name}": v for k, v in self.game.loss.curves(d, penalties).items()}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def _losses(self, real: Batch, fakes: list[Batch]) -> tuple[float, float]:
        """D's loss and the sum of its penalties, means over all pieces."""
        game, totals = self.game, [0.0, 0.0]
        rng.seed_default(game.device, self.seed, "validation", 5)
        for (x, y), fake in zip(self._pieces(*real), fakes, strict=True):
            if game.fixed:
                fake = Batch(game.moved(x, torch.randn_like(x)), y)
            part, share = Batch(x, y), len(x) / len(real.x)
            with torch.no_grad():
                d = game.loss.discriminator(game.verdict(*part), game.verdict(*fake))
            added = [
                s.penalty(game.discriminator, part, fake).detach()
                for s in game.stabilisers.values()
                if s.has_penalty
            ]
            for i, terms in enumerate(([d], added)):
                totals[i] += share * math.fsum(map(float, terms))
        return totals[0], totals[1]

    @staticmethod
    def _pieces(x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        parts = x.split(PIECE)
        return zip(parts, [None] * len(parts) if y is None else y.split(PIECE), strict=True)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Inside one process looks by itself; modes, buffers and generators are as before afterwards."""
        game, devices = self.game, [self.game.device] if self.game.device.type == "cuda" else []
        nets = (game.generator, game.discriminator)
        kept = [(b, b.clone()) for net in nets for b in net.buffers()]
        with (
            collectives.use_ranks(collectives.SingleProcess()),
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


def validating(e: Experiment, game: GAN, train: SampleSet, held: SampleSet | None) -> Validation | None:
    """A ``Validation`` with ``held``, or None without."""
    return None if held is None else Validation(e, game, train, held)


def means(told: Mapping[str, float], game: GAN) -> Mapping[str, float]:
    """The loss's own curves of a log line's means: see ``Loss.curves``."""
    added = [told[name] for name, s in game.stabilisers.items() if s.has_penalty]
    return game.loss.curves(told["d"], math.fsum(added))
