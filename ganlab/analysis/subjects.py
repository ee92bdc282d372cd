"""Runs under analysis: their metadata (as read by the report), networks, samples and real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ganlab import rng, text
from ganlab.config import saved_run
from ganlab.data.base import SampleSet
from ganlab.errors import DataError
from ganlab.evaluation.generate import evaluating
from ganlab.experiment import Experiment
from ganlab.papers import labels as labels_module
from ganlab.report.read import cells, collect
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.samples.images import quantize
from ganlab.system.hardware import find_device, set_precision
from ganlab.training.gan import GAN
from ganlab.training.validation import held_out
from ganlab.types import Batch

PIECE = 256  # images per forward pass
DIFFERING = (
    ("setting", "setting {}"),
    ("dataset", "{}"),
    ("architecture", "{}"),
    ("loss", "{}"),
    ("steps", "{} updates"),
    ("d_steps", "{} D steps"),
    ("architecture.width", "width {}"),
    ("architecture.last_factor", "factor {}"),
    ("batch_size", "batch {}"),
    ("normalization.wc.bound", "c = {}"),
    ("seed", "seed {}"),
)


@dataclass(eq=False)
class Subject:
    """A run under analysis: ``run`` as read by the report, and a ``label`` that distinguishes it."""

    run: collect.Run
    overrides: Sequence[str] = ()
    config_dirs: Sequence[str] = ()
    label: str = ""

    @property
    def method(self) -> str:
        return self.run.text("method") or "unknown"

    @property
    def setting(self) -> str:
        return self.run.text("setting")

    @property
    def columns(self) -> dict[str, object]:
        """Columns that identify the run in every table."""
        return {
            "run": self.run.label,
            "method": self.method,
            "setting": self.setting,
            "seed": int(self.run.number("seed") or 0),
        }

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment, built from ``config.yaml``. Raises DataError, ConfigError."""
        return saved_run.open_run(str(self.run.folder), self.overrides, self.config_dirs)[1]

    @cached_property
    def device(self) -> torch.device:
        device = find_device(self.experiment.device)
        set_precision("fp32", device, False)
        return device

    def checkpoints(self) -> list[int]:
        """Steps of the run's checkpoints, ascending."""
        folder = RunFolder(self.run.folder)
        return Checkpoints(folder.checkpoints, folder.run_id).steps()

    def restore(self, checkpoint: str | int = "last") -> tuple[GAN, int]:
        """Load G and D from a checkpoint, anew on each call; also its step. Raises CheckpointError."""
        return saved_run.restore(RunFolder(self.run.folder), self.experiment, str(checkpoint), self.device)

    def images(self, split: str | None = None) -> SampleSet:
        """The real images of a split; None: the training split. Raises DataError."""
        return self.experiment.dataset.load(split=split)

    def real(self, gan: GAN, n: int, seed: int, split: str | None = None) -> Batch:
        """Draw ``n`` real images (or all, if fewer) without replacement, as D receives them in training.

        x: float32 in [-1, 1]; y: only for conditional GANs.
        """
        images = self.images(split)
        order = torch.randperm(len(images), generator=rng.generator("cpu", seed, "analysis", 0))
        rows = order[:n].sort().values.numpy()
        noise = rng.generator(self.device, seed, "analysis", 1)
        pixels = torch.from_numpy(images.images[rows]).to(self.device)
        x = images.to_model_input(pixels, self.experiment.dequantize, generator=noise)
        labeled = bool(getattr(gan, "num_classes", 0)) and images.labels is not None
        y = torch.from_numpy(images.labels[rows]).to(self.device) if labeled else None  # type: ignore[index]
        return Batch(x, y)

    def draw(self, gan: GAN, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Draw (z, y) for ``n`` images; equal for all runs with the same z_dim, seed and device."""
        return gan.draw(n, rng.generator(self.device, seed, "analysis", 2))

    def fake(self, gan: GAN, n: int, seed: int) -> Batch:
        """``n`` generated samples; with a fixed generator, ``n`` perturbed real ones (all if fewer)."""
        if not gan.fixed:
            z, y = self.draw(gan, n, seed)
            return Batch(generate(gan, z, y), y)
        real = self.real(gan, n, seed)
        random = rng.generator(self.device, seed, "analysis", 4)
        noise = torch.randn(real.x.shape, device=self.device, generator=random)
        return real._replace(x=gan.fixed.moved(real.x, noise))

    def held_out(self, requested: str | None) -> str | None:
        """A split unused in training: ``requested``, else test or validation, else None."""
        dataset = self.experiment.dataset
        return held_out(dataset) if requested is None else dataset.resolve_split(requested)


@torch.no_grad()
def generate(gan: GAN, z: Tensor, y: Tensor | None) -> Tensor:
    """Samples of the scored G, float32 (n, C, H, W) in [-1, 1]; G's mode is restored."""
    with evaluating(gan.ema_or_generator):
        return in_pieces(lambda z, y: gan.ema_or_generator(z, y).float(), z, y)


def in_pieces(net: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, y: Tensor | None) -> Tensor:
    """``net(x, y)`` computed for a few samples at a time, to bound the memory."""
    labels = [None] * len(x) if y is None else y.split(PIECE)
    return torch.cat([net(*part) for part in zip(x.split(PIECE), labels, strict=False)])


def as_bytes(x: Tensor) -> Tensor:
    """Convert images in [-1, 1] to uint8 (n, C, H, W) on the CPU; non-finite pixels become gray."""
    return quantize(x.nan_to_num(0.0)).cpu()


def open_runs(
    paths: Sequence[Path], overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()
) -> list[Subject]:
    """Open the readable runs at or under ``paths``, sorted by method (paper's order), setting and seed.

    Raises DataError for a path without a run, and if no run is readable.
    """
    runs = [run for run in collect.collect(paths) if not run.problem]
    if not runs:
        raise DataError(", ".join(map(str, paths)), "contains no readable run", "pass run folders")
    rank, setting_rank = labels_module.method_rank, labels_module.setting_rank
    runs.sort(key=lambda r: (rank(r.text("method")), setting_rank(r.text("setting")), r.by_seed))
    subjects = [Subject(run, overrides, config_dirs) for run in runs]
    for subject, label in zip(subjects, labels(runs), strict=True):
        subject.label = label
    return subjects


def labels(runs: Sequence[collect.Run]) -> list[str]:
    """Label runs by method and what distinguishes them (``SN, setting D``); by folder as a last resort."""
    facts = [_facts(run) for run in runs]
    keys: list[tuple[str, str]] = []
    parts = [run.text("method") for run in runs]
    for key, template in DIFFERING:  # skip keys that add nothing, such as d_steps implied by the setting
        finer = [f"{a}, {f[key]}" for a, f in zip(parts, facts, strict=True)]
        several = len({f[key] for f in facts}) > 1
        if len(set(finer)) > len(set(parts)) or (several and key == "setting"):
            keys, parts = [*keys, (key, template)], finer
    methods = [labels_module.method_label(run.text("method") or "unknown") for run in runs]
    names = [
        ", ".join([method, *(w.format(f[k]) for k, w in keys if f[k])])
        for method, f in zip(methods, facts, strict=True)
    ]
    return [
        f"{label} ({run.label})" if names.count(label) > 1 else label
        for label, run in zip(names, runs, strict=True)
    ]


def common(subjects: Sequence[Subject]) -> str:
    """What all runs share, as in ``CIFAR-10 32×32, CNN, setting D, 1,000 updates, width 0.125``."""
    runs = [s.run for s in subjects]
    titles = {section.title for section in cells.sections(runs)}
    parts = [titles.pop()] if len(titles) == 1 else []
    facts = [_facts(run) for run in runs]
    for key in ("setting", "steps", "architecture.width"):
        values = {f[key] for f in facts}
        if len(values) == 1 and (value := values.pop()):
            parts.append(dict(DIFFERING)[key].format(value))
    return ", ".join(parts)


def _facts(run: collect.Run) -> dict[str, str]:
    """The values used in labels, as text; empty if unknown."""
    facts = {}
    for key, _ in DIFFERING:
        value = run.text(key) or run.config.get(key)
        value = run.number("steps") if key == "steps" and value is None else value
        if isinstance(value, float) and not value.is_integer():
            facts[key] = f"{value:g}"
        elif isinstance(value, (int, float)):
            facts[key] = f"{value:,.0f}"
        else:
            facts[key] = text.clean(value, 24) if value is not None else ""
    return facts
