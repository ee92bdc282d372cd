"""Sources of the generated samples that D is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ganlab.distributed import collectives
from ganlab.types import Batch


class Generated:
    """Samples of G, from a pass for each update of D.

    joint: from one pass for all updates of a step, whose batch norm then sees all of them.
    """

    trains_g = True

    def __init__(self, joint: bool = False) -> None:
        self.joint, self.ready = joint, list[tuple[Tensor, Tensor | None]]()
        self.latest: tuple[Tensor, Tensor | None] | None = None

    def begin(self, gan: Any) -> None:
        """Called before D's updates of a step."""
        if self.joint:
            n = gan.d_steps
            with torch.no_grad():
                self.ready = [*micro_batches(n, *gan.fakes(n * gan.d_batch_size, n))]

    def fakes_for(self, gan: Any, real: Batch) -> Iterator[Batch]:
        """Micro batches of as many samples as ``real`` has, with its labels under fake_labels=data."""
        if self.joint:
            yield from map(Batch._make, micro_batches(gan.accumulate, *self.ready.pop(0)))
            return
        labels = real.y if gan.num_classes and gan.fake_labels == "data" else None
        inputs = gan.inputs(len(real.x) * collectives.current().size, labels)
        self.latest = inputs if gan.order == "together" else None
        keep_dtype = not gan.joint_pass and gan.scores_alone
        for z, y in micro_batches(gan.accumulate, *inputs):
            with torch.no_grad():
                fake = gan.generate(z, y, keep_dtype)
            yield fake

    def inputs(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The latents and labels of the samples that D saw last, for an update of both players."""
        assert self.latest is not None
        return self.latest


class Moved:
    """Samples of a fixed G, which has no loss: real ones, shifted, plus N(0, noise^2).

    WGAN-GP's Figure 1a; its released code (gan_toy.py) has no shift.
    """

    trains_g = False

    def __init__(self, noise: float, shift: float) -> None:
        self.noise, self.shift = noise, shift

    def begin(self, gan: Any) -> None:
        """Nothing to prepare."""

    def fakes_for(self, gan: Any, real: Batch) -> Iterator[Batch]:
        """Micro batches of the samples of ``real``, moved."""
        team, shape = collectives.current(), real.x.shape
        noise = torch.randn(shape[0] * team.size, *shape[1:], device=real.x.device)
        x = self.moved(real.x, team.shard(noise, gan.accumulate))
        yield from map(Batch._make, micro_batches(gan.accumulate, x, real.y if gan.num_classes else None))

    def moved(self, x: Tensor, noise: Tensor) -> Tensor:
        """Samples (B, ...) from real ``x`` and ``noise`` ~ N(0, 1) of its shape."""
        return x + self.shift + self.noise * noise


def micro_batches(n: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Split every tensor into ``n`` chunks along its first axis and zip them; None stays None."""
    return zip(*([None] * n if t is None else t.chunk(n) for t in tensors), strict=True)
