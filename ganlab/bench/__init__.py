"""``ganlab bench``: speed of training and scoring on this machine, compared with a plain PyTorch loop.

Each path runs in its own process, and paths take turns (A B A B ...); results are medians over rounds.
``cases`` defines the benchmarks, ``child`` runs one path in a subprocess, ``turns`` controls the
subprocesses, ``counting`` counts operations, ``measure`` computes the numbers, ``book`` stores them,
``estimate`` extrapolates, ``text`` and ``chart`` present them, and ``run`` ties it together.
"""

from __future__ import annotations

from typing import Any

KEYS: dict[str, tuple[Any, str]] = {
    "cases": (
        "main",
        "NET-METHOD, such as cnn-sn,resnet-gp; NET is cnn or resnet; METHOD is sn, sn_per_update, gp "
        "(WGAN-GP), wn, none, or another normalization (bn, ln, wc, ...) without a plain-loop reference. "
        "main: both networks with the first five; fig1: the CNN with the methods of SNGAN's Figure 1",
    ),
    "d_steps": ("5,1", "D updates per generator update, for each case"),
    "rounds": (5, "timed turns of each path, after one warm-up"),
    "block": ("2", "approximate seconds per turn; at least one update"),
    "width": ("1", "multiplies all channel counts"),
    "batch_size": (64, "real and generated images per D update; generated images per G update"),
    "device": ("auto", "auto, cpu, cuda or cuda:i"),
    "threads": (0, "CPU threads of each path; 0: one per core"),
    "precision": ("", "precisions of ganlab's paths; default: fp32,bf16 on a CPU, tf32,bf16 on a GPU"),
    "engine": (
        "",
        "engines of ganlab's paths: eager, graph, compile; default: eager on a CPU, eager,graph on a GPU",
    ),
    "plain": (True, "also measure scripts/plain_loop.py: fp32 on a CPU, TF32 on a GPU"),
    "evaluation": (False, "also measure images scored per second, and the share of scoring in shipped runs"),
    "packing": (False, "also measure 1, 2, 4 and 8 concurrent runs, in one process and in separate ones"),
    "scaling": (False, "also measure cost against batch size, width, resolution and number of scored images"),
    "minutes": (0, "start no case after this many minutes; 0: no limit. Rerun the command for the rest"),
    "fresh": (False, "measure again even if results exist"),
    "quick": (False, "smoke test: width 1/16, batch 8, two short rounds, two cases"),
    "out": (None, "output folder; default: outputs/bench/DEVICE[-quick]"),
}
