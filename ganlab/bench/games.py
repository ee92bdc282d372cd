"""What a child plays of ganlab: engines as a run builds them; and the work of an update, counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ganlab.bench.counting import count
from ganlab.bench.reference import IMAGES, Made, plain
from ganlab.config import compose
from ganlab.experiment import Experiment
from ganlab.sweeps.cost import UpdateTimer
from ganlab.training import trainer


def experiment(words: list[str], resolution: int, count: int = IMAGES) -> Experiment:
    """The experiment that these words of ``ganlab train`` describe, on images of noise."""
    tree = compose.compose(words).tree
    noise = "ganlab.bench.noise.Noise"
    tree["dataset"] = {"_target_": noise, "resolution": resolution, "channels": 3, "count": count}
    built: Experiment = compose.build(tree)
    return built


def ganlab(words: list[str], resolution: int, lanes: int = 1) -> Made:
    """An update of each of ``lanes`` games, that differ in their seeds; the device; what runs them."""
    e = experiment(words, resolution)
    device, images = trainer.prepare(e)
    trials = []
    for seed in range(lanes):
        e.seed = seed
        trials.append(UpdateTimer(e, device, images))

    def update() -> None:
        for trial in trials:
            trial.update()

    return update, device, lambda: trials[0].engine.summary


def counted(spec: dict[str, Any]) -> dict[str, Any]:
    """Operations and floating-point operations of an update, by kind: of ``plain`` and of ``ganlab``.

    Counted at two and at four images a batch, on a CPU, and drawn on to the batch asked for: convolutions and
    products grow with it linearly, and what does not depend on it is told apart.
    """
    torch.set_num_threads(spec["threads"])
    told: dict[str, Any] = {}
    for kind in spec["kinds"]:
        found = []
        for n in (2, 4):
            if kind == "plain":
                sized = {**spec["plain"], "batch_size": n}
                one = {**spec, "device": "cpu", "precision": "fp32", "plain": sized}
                update, _, _ = plain(Path(spec["script"]), one)
            else:
                words = [w for w in spec["words"] if w.partition("=")[0] not in ("batch_size", "device")]
                sized_words = [*words, f"batch_size={n}", "device=cpu"]
                update, _, _ = ganlab(sized_words, spec["resolution"])
            update()
            found.append(count(update))
        each = (found[1].flops - found[0].flops) / 2
        flops = found[0].flops + (spec["batch_size"] - 2) * each
        told[kind] = {"operations": found[0].counts.total(), "flops": flops}
    return told
