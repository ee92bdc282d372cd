"""The real images of a run, update by update: chosen on the host, gathered and converted on the device."""

from __future__ import annotations

import torch

from ganlab.data.base import Batches, to_float
from ganlab.experiment import Experiment
from ganlab.types import Batch


class Feed:
    """Batches of real images by their place in the run, as float32 (B, C, H, W) in [-1, 1], channels last.

    per_update: batches in an update. capturable: the images lie on the device; then ``place`` writes the
    update's indices to one buffer and a batch is gathered by them, all in memory that stays where it is.
    """

    def __init__(self, batches: Batches, e: Experiment, per_update: int) -> None:
        self.batches, self.e, self.per_update = batches, e, per_update
        self.images, self.labels = batches.on_device, batches.labels
        self.capturable = self.images is not None
        self.first, self.turn = 0, 0
        if self.images is not None:
            n = per_update * e.batch_size
            self.index = torch.zeros(n, dtype=torch.int64, device=self.images.device)

    def place(self, step: int) -> None:
        """On the host: what follows are the batches of update number ``step``, counted from 0."""
        n = self.per_update * self.e.batch_size
        self.first, self.turn = step * n, 0
        if self.images is not None:
            self.index.copy_(self.batches.indices(self.first, n), non_blocking=True)

    def __call__(self) -> Batch:
        """The next batch of the update."""
        e, at = self.e, self.turn * self.e.batch_size
        self.turn += 1
        if self.images is None:
            x, y = self.batches.batch(self.first + at, e.batch_size)
        else:
            rows = self.index[at : at + e.batch_size]
            x, y = self.images[rows], None if self.labels is None else self.labels[rows]
        return Batch(to_float(x, e.dequantize, e.flip).contiguous(memory_format=torch.channels_last), y)
