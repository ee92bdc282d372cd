"""ganlab from Python: ``ganlab.train``, ``ganlab.load`` and ``ganlab.score``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor, nn

from ganlab.config import compose
from ganlab.config.saved_run import open_run, restore
from ganlab.data.fingerprint import Pixels
from ganlab.data.folder import Folder
from ganlab.errors import ConfigError, DataError
from ganlab.evaluation.evaluator import Evaluator
from ganlab.evaluation.generate import stored_samples
from ganlab.rng import generator
from ganlab.runs.metrics_file import read_metrics
from ganlab.runs.result import score_entry
from ganlab.samples import latents
from ganlab.samples.base import sample_kind
from ganlab.system.hardware import find_device, set_precision
from ganlab.system.paths import cache_dir
from ganlab.training import trainer
from ganlab.types import Shape


class TrainedRun:
    """A checkpoint of a run, opened without changing the run.

    config: as in config.yaml. metrics: the records of metrics.jsonl, in order. step: of the checkpoint.
    generator: z (n, Z) and labels y (n,) or None -> x (n, C, H, W) in [-1, 1]; the moving average if there is
    one. classes: of a conditional generator; 0 without.
    """

    def __init__(self, run: str | Path, checkpoint: str = "last", device: str = "auto") -> None:
        self.folder, self.experiment = open_run(str(run), [f"device={device}"])
        device_ = find_device(self.experiment.device)
        set_precision("fp32", device_, False)
        self._gan, self.step = restore(self.folder, self.experiment, checkpoint, device_)
        self.generator: nn.Module = self._gan.ema_or_generator
        self.classes: int = self._gan.num_classes
        self.config: dict[str, Any] = self.folder.read_config() or {}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder.metrics)

    def sample(self, n: int, seed: int = 0, label: int | None = None) -> Tensor:
        """The samples of ``ganlab sample seed=...``, on the CPU: images uint8 (n, C, H, W).

        label: the class of all samples of a conditional generator; None spreads them over all classes, eight
        in a row. Raises ConfigError for a class that the run does not have.
        """
        gan = self._gan
        if label is not None and not 0 <= label < gan.num_classes:
            has = f"it has {gan.num_classes}, from 0" if gan.num_classes else "it is unconditional"
            raise ConfigError("label", f"this run has no class {label}", has)
        z = latents.latents(self.experiment.prior, gan.z_dim, n, gan.device, seed, 1)
        rows = [label] if label is not None else latents.some_classes(gan.num_classes, -(-n // 8))
        y = latents.row_labels(rows, n, 8, gan.device)
        return stored_samples(self.generator, z, y, sample_kind(gan.shape).to_stored)


def load(run: str | Path, checkpoint: str = "last", device: str = "auto") -> TrainedRun:
    """Open a run folder. checkpoint: ``last``, ``best`` or a step. Raises a GanlabError."""
    return TrainedRun(run, checkpoint, device)


def train(overrides: Sequence[str] = ()) -> TrainedRun:
    """``ganlab train`` with these overrides, such as ``["+experiment=digits", "steps=200"]``; opens the run.

    A run that is finished is only opened. Raises a GanlabError.
    """
    composed = compose.compose([*overrides])
    e = compose.build(composed)
    trainer.train(e, composed.saved, composed.choices, composed.overrides)
    return load(e.run_dir)


def score(images: str | Path | Pixels | Tensor, overrides: Sequence[str]) -> dict[str, Any]:
    """Scores of any images against a dataset, without a run.

    images: a folder, zip or tar of image files, an .npz file, or an array: uint8 (N, H, W, C) or
    (N, C, H, W), of the size of the dataset's. They are taken in an order shuffled by the protocol's seed;
    one that asks for fewer images takes the first. overrides: ``["dataset=cifar10", "metric.protocol=..."]``.

    Returns ``values`` by full name, ``protocol``, ``protocol_id``, and what else an evaluation of a run has.
    Raises a GanlabError: too few images, another size, no weights of the feature network.
    """
    if not any(o.partition("=")[0].lstrip("+") == "dataset" for o in overrides):
        fix = "write dataset=cifar10, or dataset=folder dataset.path=FOLDER"
        raise ConfigError("dataset", "missing: the real images to compare with", fix)
    e = compose.build(compose.compose([*overrides]))
    device = find_device(e.device)
    set_precision("fp32", device, False)
    if e.threads:
        torch.set_num_threads(e.threads)
    protocol = e.metric.protocol
    evaluator = Evaluator(e.metric.extractor, e.metric.scores, protocol, e.dataset, device, cache_dir())
    real = evaluator.images
    fakes, name = stored_images(images, real.shape)
    needed = max((m.n_fake(protocol) for m in evaluator.metrics.values()), default=0)
    if len(fakes) < needed:
        what = f"{protocol.name} scores {needed} images, {name} has {len(fakes)}"
        raise DataError("metric.protocol", what, "choose another, or give more images")
    evaluator.check()
    order = torch.randperm(len(fakes), generator=generator("cpu", protocol.seed, "evaluate")).numpy()

    def generate(n: int, start: int, _: torch.Generator) -> Tensor:
        rows = order.take(np.arange(start, start + n), mode="wrap")  # the last chunk's end is not scored
        return torch.from_numpy(fakes[rows]).to(device)

    return score_entry(evaluator.score(generate, strict=True), every_class=True)


def stored_images(images: str | Path | Pixels | Tensor, shape: Shape) -> tuple[Pixels, str]:
    """Images as uint8 (N, C, H, W) of ``shape``, and their name. Raises DataError."""
    if len(shape) != 3:
        raise DataError("dataset", "its samples are no images", "choose a dataset of images")
    c, h, w = shape
    if isinstance(images, (str, Path)) and Path(images).suffix != ".npz":
        folder = Folder(str(images), resolution=h, channels=c, fit="none", labels=False)  # type: ignore[arg-type]
        return np.asarray(folder.load().images), str(images)
    name = str(images) if isinstance(images, (str, Path)) else "the array"
    try:
        array = read_npz(Path(images)) if isinstance(images, (str, Path)) else np.asarray(images)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(
            name, f"no array of images can be read from it ({error})", "save uint8 images by numpy.savez"
        ) from None
    if array.dtype != np.uint8 or array.shape[1:] not in ((h, w, c), (c, h, w)):
        fix = f"give uint8 of shape (N, {h}, {w}, {c}) or (N, {c}, {h}, {w}), the size of the dataset's"
        raise DataError(name, f"is {array.dtype} of shape {array.shape}", fix)
    return (array.transpose(0, 3, 1, 2) if array.shape[1:] == (h, w, c) else array), name


def read_npz(path: Path) -> Pixels:
    """The images of an .npz file: its array ``arr_0``, ``images``, ``samples`` or ``x``, or its only one."""
    if path.is_file() and not is_zipfile(path):
        raise ValueError("it is no zip file")
    with np.load(path, allow_pickle=False) as file:
        if not file.files:
            raise ValueError("it is empty")
        names = [n for n in ("arr_0", "images", "samples", "x") if n in file.files] or file.files[:1]
        array: Pixels = file[names[0]]
        return array
