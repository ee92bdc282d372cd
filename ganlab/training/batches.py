"""Batches of real images: indices are chosen on the host, images gathered and converted on the device."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ganlab.data.batches import Sampler
from ganlab.distributed import collectives
from ganlab.experiment import Experiment
from ganlab.types import Batch


class Feed:
    """Batches of real images as a function of the step, float32 (B, C, H, W) in [-1, 1], channels last.

    per_update: batches per update; a warm-up of D has more (``Experiment.d_steps_of``). Each rank gets its
    share of every micro batch. graph_safe: the images are on the device; then ``place`` writes the update's
    indices into one fixed buffer, from which its batches are gathered.
    """

    def __init__(self, batches: Sampler, e: Experiment, per_update: int) -> None:
        self.batches, self.e, self.per_update = batches, e, per_update
        self.images, self.labels = batches.on_device, batches.labels
        self.graph_safe = self.images is not None
        self.first, self.turn = 0, 0
        self.n = 0  # this rank's images of the update
        self.gathered: tuple[Tensor, Tensor | None] | None = None  # of the update, in the stored dtype
        team = collectives.current()
        self.size = e.batch_size // team.size
        self.draw = partial(team.rand_shard, parts=e.accumulate) if team.size > 1 else torch.rand
        if team.size > 1:
            batches.shard = self._shares
        if self.images is not None:
            n = (per_update - e.d_steps + max(e.d_steps, e.d_warmup_steps)) * self.size
            self.index = torch.zeros(n, dtype=torch.int64, device=self.images.device)

    def place(self, step: int) -> None:
        """On the host: move to the batches of update number ``step``, counted from 0."""
        e = self.e
        n = (self.per_update - e.d_steps + e.d_steps_of(step)) * e.batch_size
        self.first, self.turn = (step * self.per_update + e.extra_d_steps(step)) * e.batch_size, 0
        if self.images is not None:
            shares = self._shares(self.batches.indices(self.first, n))
            self.index[: len(shares)].copy_(shares, non_blocking=True)
            self.n = len(shares)

    def _shares(self, rows: Tensor) -> Tensor:
        """This rank's rows of one or more global batches."""
        return collectives.current().shard(rows, len(rows) // self.e.batch_size * self.e.accumulate)

    def __call__(self) -> Batch:
        """The next batch of the update."""
        e, start = self.e, self.turn * self.size
        self.turn += 1
        if self.images is None:
            x, y = self.batches.batch(self.first + (self.turn - 1) * e.batch_size, e.batch_size)
        else:
            if self.gathered is None or not start:
                rows = self.index[: self.n]
                images = channels_last(self.images[rows])
                self.gathered = images, None if self.labels is None else self.labels[rows]
            images, labels = self.gathered
            x, y = (
                images[start : start + self.size],
                None if labels is None else labels[start : start + self.size],
            )
            if start + self.size >= self.n:
                self.gathered = None
        x = self.batches.image_set.to_model_input(x, e.dequantize, e.flip, draw=self.draw)
        return Batch(channels_last(x), y)


def channels_last(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in channels-last memory format; other samples unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
