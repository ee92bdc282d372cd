"""Run folders made up for the report's tests: as the trainer writes them, without training."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

SETTINGS = {
    "A": (1e-4, 0.5, 0.9, 5),
    "B": (1e-4, 0.5, 0.999, 1),
    "C": (2e-4, 0.5, 0.999, 1),
    "D": (1e-3, 0.5, 0.9, 5),
    "E": (1e-3, 0.5, 0.999, 5),
    "F": (1e-3, 0.9, 0.999, 5),
}
LOSSES = {"wgan-gp": "wasserstein"}
SNGAN = {
    "protocol": "sngan_paper",
    "is_n_fake": 50_000,
    "is_splits": 10,
    "fid_n_fake": 5_000,
    "fid_n_real": 10_000,
    "real_split": "test",
    "quantize": "truncate",
    "bn": "running",
    "generator": "raw",
    "extractor": "inception",
}
TTUR = SNGAN | {"protocol": "ttur50k", "fid_n_fake": 50_000, "fid_n_real": 50_000, "real_split": "train"}
SMALL = SNGAN | {"protocol": "smoke", "is_n_fake": 2_000, "fid_n_fake": 2_000, "extractor": "cifar"}


PAPER = {
    **{"wc": 42.6, "gan-gp": 37.7, "wgan-gp": 40.2, "bn": 56.3},
    **{"ln": 33.9, "wn": 34.7, "orthonormal": 29.0, "sn": 29.3},
}


def _scored(step: int, values: dict[str, float], protocol: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "values": values, "protocol": protocol, "protocol_id": digest(protocol)}


def digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def make_run(
    root: Path,
    method: str = "sn",
    setting: str = "C",
    seed: int = 0,
    *,
    fid: float = 40.0,
    inception: float = 6.0,
    status: str = "finished",
    protocol: dict[str, Any] = SNGAN,
    best: dict[str, Any] | None = None,
    suffix: str = "",
    dataset: str = "cifar10",
    steps: int = 1000,
    width: float = 0.25,
    samples: bool = True,
    folder: str | None = None,
    overrides: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write one run folder; ``changes`` replace keys of result.json, ``overrides`` of config.yaml."""
    run = root / (folder or f"{method}/{setting}-s{seed}")
    run.mkdir(parents=True)
    loss = LOSSES.get(method, "standard")
    reached = steps if status == "finished" else steps // 2
    lr, beta1, beta2, d_steps = SETTINGS.get(setting, SETTINGS["C"])
    values = {f"is{suffix}": inception, f"is_std{suffix}": 0.08, f"fid{suffix}": fid}
    better = {f"is{suffix}": inception * 1.02, f"is_std{suffix}": 0.08, f"fid{suffix}": fid * 0.97}
    result = {
        "format": 1,
        "status": status,
        "name": run.name,
        "experiment": "sngan_cifar",
        "setting": setting,
        "method": method,
        "dataset": dataset,
        "architecture": "cnn",
        "loss": loss,
        "normalization": [] if method == "none" else [method.removeprefix("wgan-").removeprefix("gan-")],
        "seed": seed,
        "steps": steps,
        "step": reached,
        "scores": {
            "last": _scored(reached, values, protocol),
            "best": _scored(int(reached * 0.9), better, best or protocol),
        },
        "it_per_s": 14.2,
        "wall_s": steps / 14.2,
        "eval_share": 0.21,
        "peak_memory_mb": 812.0,
        "parameters": {"generator": 3_812_355, "discriminator": 2_935_873},
        "versions": {"torch": "2.15.0", "python": "3.11.2"},
        "device": "cpu",
        "git": "0f0aac6",
        "error": "step 500: d/loss is not finite" if status == "diverged" else None,
        "started": "2026-11-22T10:00:00Z",
        "updated": "2026-11-22T10:02:00Z",
    }
    config: dict[str, Any] = {
        "_target_": "ganlab.experiment.Experiment",
        "dataset": {"_target_": "ganlab.data.cifar10.CIFAR10", "resolution": 32},
        "architecture": {"_target_": "ganlab.models.cnn.CNN", "width": width},
        "normalization": {method: {"_target_": "ganlab.methods.weight_norms.Norm"}},
        "loss": {"_target_": f"ganlab.methods.losses.{loss.title()}"},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": lr, "betas": [beta1, beta2]},
        "setting": setting,
        "d_steps": d_steps,
        "steps": steps,
        "batch_size": 64,
        "precision": "fp32",
        "seed": seed,
        "run_dir": str(run),
    }
    (run / "result.json").write_text(json.dumps(result | changes))
    (run / "config.yaml").write_text(yaml.safe_dump(config | (overrides or {})))
    _metrics(run, random.Random(f"{method}{setting}{seed}"), result, values)
    if samples:
        _grid(run / "samples" / f"step-{reached:09d}.png", random.Random(f"{method}{setting}"), 32)
    return run


def _metrics(run: Path, rng: random.Random, result: dict[str, Any], values: dict[str, float]) -> None:
    lines = []
    reached = result["step"]
    diverged = result["status"] == "diverged"
    for step in range(10, reached + 1, 10):
        late = step / reached
        d = 1.3 - 0.5 * late + rng.gauss(0, 0.08) + (40 * late**30 if diverged else 0)
        g = 0.7 + 1.2 * late + rng.gauss(0, 0.15)
        times = {"it_per_s": 14.2, "wall_s": step / 14}
        lines.append({"step": step, "kind": "train", "loss/d": d, "loss/g": g} | times)
        if step % (reached // 10) == 0:
            scores = {k: _path(k, v, late, rng) for k, v in values.items()}
            ident = result["scores"]["last"]["protocol_id"]
            lines.append({"step": step, "kind": "eval", "scores": scores, "protocol_id": ident} | times)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _path(name: str, end: float, late: float, rng: random.Random) -> float:
    """A score on its way to ``end``."""
    if "_std" in name:
        return end
    start = 300.0 if name.startswith("fid") else 1.2
    return end + (start - end) * math.exp(-4.5 * late) * (1 - late**6) + rng.gauss(0, 0.01) * end * (late < 1)


def _grid(path: Path, rng: random.Random, size: int, padding: int = 2, tiles: int = 8) -> None:
    """A sample grid as the trainer saves it: tiles with white padding, here colored blobs."""
    path.parent.mkdir(exist_ok=True)
    pitch = size + padding
    image = Image.new("RGB", (tiles * pitch + padding,) * 2, "white")
    pen = ImageDraw.Draw(image)
    for i in range(tiles * tiles):
        x, y = padding + i % tiles * pitch, padding + i // tiles * pitch
        pen.rectangle((x, y, x + size - 1, y + size - 1), fill=tuple(rng.randrange(256) for _ in range(3)))
        a, b = rng.randrange(size // 2), rng.randrange(size // 2)
        pen.ellipse((x + a, y + b, x + a + 14, y + b + 14), fill=tuple(rng.randrange(256) for _ in range(3)))
    image.save(path)


def make_grid(root: Path, **kwargs: Any) -> None:
    """SNGAN's Figure 1 made up: 8 methods x 6 settings x 2 seeds, some diverged."""
    for m, (method, fid) in enumerate(PAPER.items()):
        for s, setting in enumerate("ABCDEF"):
            for seed in (0, 1):
                rng = random.Random(f"{method}{setting}{seed}")
                robust = method in ("sn", "orthonormal")
                hard = 1 + 0.06 * s if robust else (1.0, 1.05, 1.0, 1.5, 2.0, 3.0)[s]
                value = fid * hard * (1 + rng.gauss(0, 0.05))
                status = "finished"
                if method in ("wc", "bn", "wn") and setting == "F" and (seed == 0 or method == "bn"):
                    status = "diverged"
                if method == "ln" and setting == "E" and seed == 1:
                    status = "running"
                score = 8.6 - 0.035 * value
                run = {"fid": value, "inception": max(1.3, score), "status": status} | kwargs
                make_run(root, method, setting, seed, samples=(m + s) % 11 != 10, **run)


def make_pairs(
    root: Path,
    scores: dict[str, tuple[float | None, float | None]],
    labels: tuple[str, str] = ("gan", "wgan-gp"),
    axis: str = "method",
    count: str = "successes",
    suffix: str = "",
    protocol: dict[str, Any] = TTUR,
    missing: tuple[str, ...] = (),
    **changes: Any,
) -> None:
    """A grid that compares two by two: member -> scores of its runs, None: diverged; ``missing``: no run."""
    cells = []
    nets = {"gan": ("bn", "C"), "wgan-gp": ("wgan-gp", "A")}
    for number, (name, values) in enumerate(scores.items()):
        chosen = {"architecture.g_depth": "4" if number % 2 else "12", "d_norm": "norm"}
        for label, value in zip(labels, values, strict=True):
            cell = f"{name}-{label}"
            cells.append({"name": cell, "run": cell, "axes": {"draw": name, axis: label}, "chosen": chosen})
            if cell in missing:
                continue
            method, setting = nets.get(label, ("wgan-gp", "A"))
            outcome = {"status": "diverged"} if value is None else {"inception": value}
            net = {"width": 0.25, "g_depth": chosen["architecture.g_depth"], "z_dim": 8 + number}
            keys = {"architecture": net, "penalty": label}
            own = {"folder": cell, "suffix": suffix, "protocol": protocol, "overrides": keys} | changes
            make_run(root, method, setting, number, **(own | outcome))
    pairs = {"axis": axis, "count": count, "paper": "wgan_gp"}
    drawn = {"n": len(scores), "seed": 0, "of": 9216}
    record = {"title": "Random architectures", "pairs": pairs, "random": drawn, "cells": cells}
    (root / "grid.json").write_text(json.dumps(record))


def make_crossing(root: Path, down: list[str], across: list[str], **cells: dict[str, Any]) -> None:
    """A grid of two axes, ``pair`` and ``method``; ``cells``: changes by ``pair_method``, {} for no run."""
    listed = []
    nets = {"dcgan": ("bn", "C"), "lsgan": ("none", "C"), "wgan": ("wc", "A"), "wgan-gp": ("wgan-gp", "A")}
    for pair in down:
        for method in across:
            name = f"{pair}-{method}"
            listed.append({"name": name, "run": name, "axes": {"pair": pair, "method": method, "seed": "s0"}})
            changes = cells.get(f"{pair}_{method.replace('-', '_')}", {"status": "finished"})
            if changes:
                own = {"folder": name, "overrides": {"architecture": {"width": 0.25, "pair": pair}}}
                make_run(root, *nets[method], **(own | changes))
    (root / "grid.json").write_text(json.dumps({"title": "Pairs of nets", "cells": listed}))
