"""Everything a run checks and loads before its folder exists: device, samples, evaluators."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from ganlab.data.base import SampleSet
from ganlab.distributed import collectives
from ganlab.errors import ConfigError, DataError, EnvError, Mistake
from ganlab.evaluation.evaluator import Evaluator, require_split
from ganlab.experiment import NO_LABELS, Experiment
from ganlab.metrics.protocol import Protocol
from ganlab.samples.base import sample_kind
from ganlab.system.hardware import disable_malloc_trim, find_device, set_precision
from ganlab.system.packages import RUN_PACKAGES, require
from ganlab.system.paths import cache_dir
from ganlab.training.batches import require_labels
from ganlab.training.build import require_size
from ganlab.training.optimizers import require_usable
from ganlab.training.rank_zero import require_same_on_ranks
from ganlab.training.validation import split_of


class Inputs(NamedTuple):
    """What a run needs before its folder exists. ``held_out``: the samples of ``validation``, if it is on."""

    device: torch.device
    images: SampleSet
    held_out: SampleSet | None
    evaluators: dict[Protocol, Evaluator]


def prepare(e: Experiment) -> Inputs:
    """Check and load what a run needs. Raises ConfigError, EnvError or DataError."""
    team = collectives.current()
    with team.agree_on_errors():
        require_divisible(e)
        inputs = _prepare_locally(e)
    team.set_device(inputs.device)
    require_same_on_ranks(e, inputs.device, inputs.images)
    return inputs


def require_possible(e: Experiment) -> None:
    """Raise ConfigError or DataError for a split that the dataset does not have. Reads no images.

    A dataset that is not on this machine, though it may be on another, is not checked.
    """
    try:
        splits = e.dataset.splits()
    except (DataError, EnvError):
        return
    for protocol in dict.fromkeys([e.metric.progress, e.metric.protocol]):
        require_split(protocol, e.dataset.name, splits)
    split_of(e)


def require_divisible(e: Experiment) -> None:
    """Raise ConfigError unless each rank gets the same share of every micro batch."""
    size, mistakes, group = collectives.current().size, [], e.architecture.group
    parts, least = size * e.accumulate * group, 1 if e.sync_bn else 2
    for batch, key in e.batch_sizes().items():
        if size > 1 and (batch % parts or batch // parts < least):
            of = f" x accumulate={e.accumulate}" if e.accumulate > 1 else ""
            of += f" in groups of {group}" if group > 1 else ""
            what = f"{batch} can't be split over {size} ranks{of}, at least {least} images each"
            mistakes.append(Mistake(key, what, f"choose a multiple of {parts}, at least {least * parts}"))
    if mistakes:
        raise ConfigError(mistakes)


def _prepare_locally(e: Experiment) -> Inputs:
    require(*RUN_PACKAGES)
    device = find_device(e.device)
    require_size(e)
    require_usable(e.optimizer, device)
    require_usable(e.optimizer_of_d, device, "d_optimizer")
    set_precision(e.precision, device, e.deterministic)
    if device.type == "cpu":
        disable_malloc_trim()
    if e.threads:
        torch.set_num_threads(e.threads)
    split = split_of(e)  # an unknown split is reported before the data are read
    images = e.dataset.load(split=e.dataset.split)
    held_out = None if split is None else e.dataset.load(split=split)
    if e.architecture.conditional and images.labels is None:
        raise ConfigError("dataset", *NO_LABELS.format(f"{images.name} {images.split}").split("; "))
    if e.architecture.conditional and len(images.classes) < 2:
        what = f"{images.name} {images.split} has one class, but this architecture is conditional"
        raise ConfigError("dataset", what, "use a dataset with several, or architecture.head=none")
    metric, mistakes = e.metric, dict[Mistake, None]()  # of both protocols, without duplicates
    evaluators = {
        protocol: Evaluator(metric.extractor, metric.scores, protocol, e.dataset, device, cache_dir())
        for protocol in (metric.progress, metric.protocol)
    }
    for evaluator in evaluators.values():
        try:
            evaluator.check()
        except DataError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise DataError(mistakes)
    if texts := [f"{key}: {text}" for key, m in e.methods.items() for text in m.mistakes(e, images)]:
        raise ConfigError(Mistake(*re.split(": |; ", text, maxsplit=2)) for text in texts)
    require_labels(images, e)
    batch, key = max((size, key) for size, key in e.batch_sizes().items() if key != "g_batch_size")
    if len(images) < batch and not images.is_stream:
        noun = sample_kind(images.shape).noun
        what = f"{batch} is more than the {len(images)} {noun} of {images.name} {images.split}"
        raise ConfigError(key, what, f"use at most {len(images)}")
    return Inputs(device, images, held_out, evaluators)
