"""Batches of real images: indices are chosen on the host, images gathered and converted on the device."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ganlab.data.batches import Sampler
from ganlab.distributed import collectives
from ganlab.experiment import Experiment
from ganlab.methods.timetable import Round
from ganlab.types import Batch


class Feed:
    """Batches of real images as a function of the step, float32 (B, C, H, W) in [-1, 1], channels last.

    Each rank gets its share of every micro batch. graph_safe: the images are on the device; then ``place``
    writes the update's indices into a buffer, one per number of them, from which its batches are gathered.
    """

    def __init__(self, batches: Sampler, e: Experiment) -> None:
        self.batches, self.e = batches, e
        self.images, self.labels = batches.on_device, batches.labels
        self.graph_safe = self.images is not None
        self.first, self.turn = 0, 0
        self.batch, self.size = e.batch_size, 0  # over all ranks, on this one
        self.indices: dict[int, Tensor] = {}  # by the update's number of images on this rank
        self.gathered: tuple[Tensor, Tensor | None] | None = None  # of the update, in the stored dtype
        team = collectives.current()
        self.draw = partial(team.rand_shard, parts=e.accumulate) if team.size > 1 else torch.rand
        if team.size > 1:
            batches.shard = self._shares

    def place(self, step: int) -> Round:
        """On the host: move to the batches of update number ``step``, counted from 0; returns its round."""
        now = self.e.timetable.round(step)
        self.first, self.turn, self.batch = now.first_sample, 0, now.batch
        self.size = now.batch // collectives.current().size
        if self.images is not None:
            n = (now.d_steps + self.e.extra_batches) * now.batch
            shares = self._shares(self.batches.indices(self.first, n))
            self.index = self.indices.setdefault(len(shares), torch.empty_like(shares))
            self.index.copy_(shares, non_blocking=True)
        return now

    def _shares(self, rows: Tensor) -> Tensor:
        """This rank's rows of one or more global batches."""
        return collectives.current().shard(rows, len(rows) // self.batch * self.e.accumulate)

    def __call__(self) -> Batch:
        """The next batch of the update."""
        e, start = self.e, self.turn * self.size
        self.turn += 1
        if self.images is None:
            x, y = self.batches.batch(self.first + (self.turn - 1) * self.batch, self.batch)
        else:
            if self.gathered is None or not start:
                images = channels_last(self.images[self.index])
                self.gathered = images, None if self.labels is None else self.labels[self.index]
            images, labels = self.gathered
            x, y = (
                images[start : start + self.size],
                None if labels is None else labels[start : start + self.size],
            )
            if start + self.size >= len(self.index):
                self.gathered = None
        x = self.batches.image_set.to_model_input(x, e.dequantize, e.flip, draw=self.draw)
        return Batch(channels_last(x), y)


def channels_last(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in channels-last memory format; other samples unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
