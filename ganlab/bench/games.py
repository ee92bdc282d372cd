"""ganlab's updates for the benchmark subprocess, and operation counts of an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ganlab.bench.counting import count
from ganlab.bench.reference import IMAGES, Updates, plain_updates
from ganlab.config import compose
from ganlab.experiment import Experiment
from ganlab.sweeps.cost import UpdateTimer
from ganlab.training import trainer


def experiment(overrides: list[str], resolution: int, count: int = IMAGES) -> Experiment:
    """Build the experiment of these ``ganlab train`` overrides, on noise images."""
    tree = compose.compose(overrides).tree
    noise = "ganlab.bench.noise.Noise"
    tree["dataset"] = {"_target_": noise, "resolution": resolution, "channels": 3, "count": count}
    built: Experiment = compose.build(tree)
    return built


def ganlab_updates(overrides: list[str], resolution: int, lanes: int = 1) -> Updates:
    """An update of each of ``lanes`` GANs with different seeds, the device, and the engine's status."""
    e = experiment(overrides, resolution)
    device, images = trainer.prepare(e)
    trials = []
    for seed in range(lanes):
        e.seed = seed
        trials.append(UpdateTimer(e, device, images))

    def update() -> None:
        for trial in trials:
            trial.update()

    return update, device, lambda: trials[0].engine.summary


def count_work(spec: dict[str, Any]) -> dict[str, Any]:
    """Count operations and FLOPs of an update, by kind (``plain``, ``ganlab``).

    FLOPs are counted on a CPU at batch sizes 2 and 4 and extrapolated linearly to the requested batch size.
    """
    torch.set_num_threads(spec["threads"])
    counts: dict[str, Any] = {}
    for kind in spec["kinds"]:
        measured = []
        for n in (2, 4):
            if kind == "plain":
                plain_options = {**spec["plain"], "batch_size": n}
                plain_spec = {**spec, "device": "cpu", "precision": "fp32", "plain": plain_options}
                update, _, _ = plain_updates(Path(spec["script"]), plain_spec)
            else:
                overrides = [w for w in spec["words"] if w.partition("=")[0] not in ("batch_size", "device")]
                small_overrides = [*overrides, f"batch_size={n}", "device=cpu"]
                update, _, _ = ganlab_updates(small_overrides, spec["resolution"])
            update()
            measured.append(count(update))
        per_image = (measured[1].flops - measured[0].flops) / 2
        flops = measured[0].flops + (spec["batch_size"] - 2) * per_image
        counts[kind] = {"operations": measured[0].counts.total(), "flops": flops}
    return counts
