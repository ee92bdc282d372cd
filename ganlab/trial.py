"""Updates to be timed: a game on random images, played by a run's engine; and blocks of work in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch

from ganlab import engine
from ganlab.data.base import ImageSet, fingerprint
from ganlab.experiment import Experiment
from ganlab.facts import set_precision
from ganlab.feed import Feed
from ganlab.setup import build_game

CLASSES = 10  # of a conditional net, whose labels are not read here
T = TypeVar("T")


class Trial:
    """A game of an experiment on random images, played by the engine that a run would have.

    ``images``: to share, of the experiment's shape; None: made here, four batches of them.
    """

    def __init__(self, e: Experiment, device: torch.device, images: ImageSet | None = None) -> None:
        set_precision(e.precision, device, e.deterministic)
        if e.threads:
            torch.set_num_threads(e.threads)
        self.e, self.device = e, device
        every = e.d_warmup_every  # the usual updates are timed: those after a warm-up of D
        self.step = -(-e.d_warmup_updates // every) * every + 1 if every else e.d_warmup_updates
        if images is None:  # points and text are small: they are loaded
            images = random_images(e) if e.shape.kind == "images" else e.dataset.load()
        self.game = build_game(e, device, CLASSES, images.shape)
        if self.game.num_classes and images.labels is not None:
            self.game.labels = torch.from_numpy(images.labels).to(device)
        batches = images.batches(device, e.seed, e.data_memory_gb)
        feed = Feed(batches, e, e.d_steps + self.game.loss.generator_needs_real)
        self.engine = engine.make(e, self.game, feed)

    def update(self) -> None:
        """One update. On a GPU it is only begun."""
        self.engine.update(self.step)
        self.step += 1


def random_images(e: Experiment) -> ImageSet:
    """Four batches of uniform noise with random labels, the same ones each time."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4 * e.batch_size, *e.shape), dtype=np.uint8)
    labels = random.integers(0, CLASSES, len(pixels))
    names = [str(label) for label in range(CLASSES)]
    return ImageSet(pixels, labels, names, fingerprint(pixels, labels), "random", "train")


def in_turn(blocks: Mapping[str, Callable[[], T]], rounds: int, warm: int = 1) -> dict[str, list[T]]:
    """What each block returns, ``rounds`` times in turn, after ``warm`` rounds that do not count."""
    found: dict[str, list[T]] = {name: [] for name in blocks}
    for i in range(-warm, rounds):
        for name, block in blocks.items():
            told = block()
            if i >= 0:
                found[name].append(told)
    return found
