"""SNGAN (arXiv:1802.05957), Figure 10: training time of each method, measured on this machine."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.config import compose
from ganlab.config.files import find, groups, read, user_dirs
from ganlab.errors import ConfigError, DataError, suggest
from ganlab.experiment import Experiment
from ganlab.papers import labels
from ganlab.report.draw import style
from ganlab.runs.folder import RunFolder
from ganlab.schema import Count
from ganlab.sweeps.cost import UpdateTimer, in_turn
from ganlab.system.hardware import device_name, find_device, set_precision

LOSSES = {"wgan-gp": ("gp", "wasserstein"), "gan-gp": ("gp", "")}  # method -> normalization, loss


class Speed(Analysis):
    """seconds per 100 generator updates by method, and the ratio to vanilla (SNGAN, Figure 10)

    Benchmarks this machine: runs short blocks of updates of each method in turn (A B A B ...) and takes
    medians over the rounds, after one warm-up round. Networks, batch size and loss come from the given run or
    from config overrides (+experiment=sngan_cifar architecture.width=0.25). Images are random, of the
    dataset's shape and already on the device, so no data is needed and loading is not timed.

    Args:
        methods: normalizations, combined as in sn+gp; none: vanilla; gan-gp, wgan-gp: gp with that loss.
        d_steps: discriminator updates per generator update.
        updates: generator updates per block.
        rounds: timed blocks of each method.
    """

    runs = (0, 1)
    composes = True
    methods: tuple[str, ...] = ("none", "sn", "wn", "wgan-gp")
    d_steps: Count = 5
    updates: Count = 4
    rounds: Count = 5

    def make(self, runs: Sequence[Subject]) -> Finding:
        if not self.methods:
            raise ConfigError("methods", "must not be empty", "use, for example, methods=none,sn")
        dirs = user_dirs(self.config_dirs)
        tree = self._tree(runs)
        experiments = {m: compose.build(with_method(tree, m, dirs)) for m in dict.fromkeys(self.methods)}
        e = experiments[self.methods[0]]
        device = find_device(e.device)
        set_precision(e.precision, device, e.deterministic)
        threads = torch.get_num_threads()
        try:
            if e.threads:
                torch.set_num_threads(e.threads)
            blocks = {m: self._block(experiment, device) for m, experiment in experiments.items()}
            times = time_in_turn(blocks, self.rounds)
            facts = {
                "d_steps": self.d_steps,
                "batch_size": e.batch_size,
                "g_batch_size": e.g_batch_size,
                "images": "x".join(map(str, e.shape)),
                "architecture": type(e.architecture).__name__.lower(),
                "width": getattr(e.architecture, "width", 1.0),
                "precision": e.precision,
                "device": device_name(device),
                "threads": torch.get_num_threads(),
            }
        finally:
            torch.set_num_threads(threads)
        base = "none" if "none" in times else self.methods[0]
        machine = _describe(facts)
        result = Finding(
            report=[f"seconds per 100 generator updates of {self.d_steps} D updates each; {machine}"]
        )
        for method, seconds in times.items():
            per_100 = [100 / self.updates * s for s in seconds]
            ratios = [s / b for s, b in zip(seconds, times[base], strict=True)]
            row = {
                **{"method": method, "seconds_per_100": statistics.median(per_100)},
                **{"least": min(per_100), "most": max(per_100), "ratio": statistics.median(ratios)},
                **{"ratio_least": min(ratios), "ratio_most": max(ratios), "ratio_to": base},
                **{"updates": self.updates, "rounds": self.rounds, **facts},
            }
            result.rows.append(row)
            median, ratio = f"{row['seconds_per_100']:.4g} s", f"{row['ratio']:.2f} x {label(base)}"
            result.report.append(f"  {label(method)}: {median}, {ratio}")
        result.png = _draw(result.rows, machine)
        return result

    def _tree(self, runs: Sequence[Subject]) -> dict[str, Any]:
        """The config of the timed blocks, with the requested ``d_steps``."""
        if runs:
            config = RunFolder(runs[0].run.folder).read_config()
            if config is None:
                raise DataError(str(runs[0].run.folder), "has no config.yaml", "choose another run")
            tree = compose.reopen(config, self.overrides, self.config_dirs)
        else:
            tree = copy.deepcopy(compose.compose(self.overrides, self.config_dirs).tree)
        return {**tree, "d_steps": self.d_steps, "run_dir": None}

    def _block(self, e: Experiment, device: torch.device) -> Callable[[], None]:
        """Return a function that trains for ``updates`` updates, as a run would, on fixed images."""
        timer = UpdateTimer(e, device)
        timer.warm_up()

        def block() -> None:
            for _ in range(self.updates):
                timer.update()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return block


def time_in_turn(blocks: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time each block ``rounds`` times in turn, after a warm-up round; returns seconds by name."""

    def timed(block: Callable[[], None]) -> float:
        began = time.perf_counter()
        block()
        return time.perf_counter() - began

    return in_turn({name: functools.partial(timed, block) for name, block in blocks.items()}, rounds)


def with_method(tree: dict[str, Any], method: str, dirs: Sequence[Path]) -> dict[str, Any]:
    """The config with another normalization and, for ``wgan-gp``, its loss. Raises ConfigError."""
    available = groups(dirs).get("normalization", [])
    name, loss = LOSSES.get(method, (method, ""))
    normalization: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in available or (path := find(f"normalization/{part}", dirs)) is None:
            fix = suggest(part, [*available, *LOSSES])
            raise ConfigError("methods", f"unknown normalization {part!r}", fix)
        normalization |= read(path)[0]
    changed = {**copy.deepcopy(tree), "normalization": normalization}
    if loss and (path := find(f"loss/{loss}", dirs)) is not None:
        changed["loss"] = read(path)[0]
    return changed


def label(method: str) -> str:
    return "vanilla" if method == "none" else labels.method_label(method)


def _describe(facts: dict[str, Any]) -> str:
    return (
        f"{facts['architecture']} of width {facts['width']:g}, {facts['images']} images, "
        f"batch {facts['batch_size']}, {facts['precision']}, {facts['device']}, "
        f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    )


def _draw(rows: Sequence[dict[str, Any]], subtitle: str) -> bytes:
    with drawing.Picture("Time per update by method", 5.6, 0.42 * len(rows) + 1.5) as picture:
        (ax,) = picture.panels()
        ax.grid(axis="y", visible=False)
        for i, row in enumerate(rows):
            color = style.METHOD_COLORS.get(row["method"], "#332288")
            value = row["seconds_per_100"]
            spread = [[value - row["least"]], [row["most"] - value]]
            ax.barh(i, value, 0.68, color=color, alpha=0.85)
            ax.errorbar(value, i, xerr=spread, color=style.GREY, lw=0.9, capsize=2)
            words, at = f"{value:.3g} s  ({row['ratio']:.2f} x)", (row["most"], i)
            ax.annotate(words, at, (5, 0), textcoords="offset points", va="center", fontsize=7.5)
        ax.set_yticks(range(len(rows)), [label(row["method"]) for row in rows])
        ax.invert_yaxis()
        ax.set_xlim(0, max(row["most"] for row in rows) * 1.3)
        first = rows[0]
        ax.set_xlabel(
            f"seconds per 100 generator updates, {first['d_steps']} D updates each "
            f"(ratio to {label(first['ratio_to'])})\n"
            f"medians and range of {first['rounds']} interleaved rounds",
            fontsize=7.5,
        )
        ax.set_title(style.wrap(subtitle, 95, 2), loc="left", fontsize=7.2, color=style.GREY)
    return picture.png
