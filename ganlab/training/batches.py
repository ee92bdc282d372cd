"""Batches of real images: indices are chosen on the host, images gathered and converted on the device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ganlab.data.base import SampleSet
from ganlab.data.batches import Sampler
from ganlab.data.fingerprint import Labels, fingerprint
from ganlab.distributed import collectives
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.methods.timetable import Round
from ganlab.rng import generator
from ganlab.types import Batch


class Feed:
    """Batches of real images as a function of the step, float32 (B, C, H, W) in [-1, 1], channels last.

    ``place`` writes the update's images into a buffer, one per number of them, so that a recorded update
    reads them from the same place each time. Each rank gets its share of every micro batch.
    """

    def __init__(self, batches: Sampler, e: Experiment) -> None:
        self.batches, self.e = batches, e
        self.batch, self.size, self.turn = e.batch_size, 0, 0  # over all ranks, on this one; batches taken
        self.buffers: dict[int, Batch] = {}  # by the update's number of images on this rank, as stored
        team = collectives.current()
        self.draw = partial(team.rand_shard, parts=e.accumulate) if team.size > 1 else torch.rand
        if team.size > 1:
            batches.shard = self._shares
        self.labelled = LabelledStream(batches, e) if e.labelled_per_class else None

    def place(self, step: int) -> Round:
        """On the host: move to the batches of update number ``step``, counted from 0; returns its round."""
        now = self.e.timetable.round(step)
        self.turn, self.batch, self.size = 0, now.batch, now.batch // collectives.current().size
        if self.labelled is not None:
            self.labelled.place(now, self.e.extra_batches)
        turns = now.d_steps + self.e.extra_batches
        for i in range(turns):
            x, y = self.batches.batch(now.first_sample + i * now.batch, now.batch)
            if (n := turns * len(x)) not in self.buffers:
                like = x.new_empty((n, *x.shape[1:]))
                self.buffers[n] = Batch(channels_last(like), None if y is None else y.new_empty(n))
            self.current, rows = self.buffers[n], slice(i * len(x), (i + 1) * len(x))
            self.current.x[rows].copy_(x)
            if y is not None and self.current.y is not None:
                self.current.y[rows].copy_(y)
        return now

    def _shares(self, rows: Tensor) -> Tensor:
        """This rank's rows of one or more global batches."""
        return collectives.current().shard(rows, len(rows) // self.batch * self.e.accumulate)

    def __call__(self) -> Batch:
        """The next batch of the update."""
        e, rows = self.e, slice(self.turn * self.size, (self.turn + 1) * self.size)
        self.turn += 1
        x, y = self.current
        x = self.batches.image_set.to_model_input(x[rows], e.dequantize, e.flip, draw=self.draw)
        return Batch(channels_last(x), None if y is None else y[rows])


class LabelledStream:
    """D's labelled batches: shuffled epochs of ``labelled_per_class`` samples of each class, on the device.

    A batch may hold a sample more than once where it is larger than the set. Raises as ``require_labels``.
    """

    def __init__(self, batches: Sampler, e: Experiment) -> None:
        images, rows = batches.image_set, require_labels(batches.image_set, e)
        assert images.labels is not None
        assert rows is not None
        labels, pixels = images.labels[rows], np.ascontiguousarray(images.images[rows])
        few = replace(images, images=pixels, labels=labels, fingerprint=fingerprint(pixels, labels))
        self.sampler, self.few, self.e = Sampler(few, "cpu", e.seed), few, e
        self.images, self.labels = (torch.from_numpy(a).to(batches.device) for a in (pixels, labels))
        self.index: dict[int, Tensor] = {}  # by the update's number of samples on this rank
        self.turn = self.size = 0

    def place(self, now: Round, extra: int) -> None:
        """On the host: move to the round's labelled batches."""
        team = collectives.current()
        first = now.first_sample * now.d_steps // (now.d_steps + extra)
        rows = team.shard(
            self.sampler.indices(first, now.d_steps * now.batch), now.d_steps * self.e.accumulate
        )
        self.turn, self.size = 0, now.batch // team.size
        shares = rows.to(self.images.device)
        self.now = self.index.setdefault(len(shares), torch.empty_like(shares))
        self.now.copy_(shares, non_blocking=True)

    def __call__(self) -> Batch:
        """The labelled batch of the round's next update of D."""
        rows = self.now[self.turn * self.size : (self.turn + 1) * self.size]
        self.turn += 1
        e, images = self.e, channels_last(self.images[rows])
        team = collectives.current()
        draw = partial(team.rand_shard, parts=e.accumulate) if team.size > 1 else torch.rand
        x = self.few.to_model_input(images, e.dequantize, e.flip, draw=draw)
        return Batch(channels_last(x), self.labels[rows])


def require_labels(images: SampleSet, e: Experiment) -> Labels | None:
    """The indices of the labelled samples; None where all are. Raises ConfigError if there are too few."""
    if e.labelled_per_class is None:
        return None
    if images.labels is None:
        what = f"{images.name} {images.split} has no labels"
        raise ConfigError("labelled_per_class", what, "use a split with labels")
    return stratified(images.labels, len(images.classes), e.labelled_per_class, e.label_seed)


def stratified(labels: Labels, classes: int, count: int, seed: int) -> Labels:
    """Indices of the first ``count`` samples of each class after a shuffle by ``seed``, class by class.

    Raises ConfigError for a class with fewer.
    """
    order = torch.randperm(len(labels), generator=generator("cpu", seed, "order")).numpy()
    shuffled = labels[order]
    rows = [order[shuffled == c][:count] for c in range(classes)]
    if (fewest := min(map(len, rows))) < count:
        what = f"{count}, but one class has only {fewest} samples"
        raise ConfigError("labelled_per_class", what, f"use at most {fewest}")
    return np.concatenate(rows)


def channels_last(x: Tensor) -> Tensor:
    """Images (B, C, H, W) in channels-last memory format; other samples unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
