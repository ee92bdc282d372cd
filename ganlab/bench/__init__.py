"""``ganlab bench``: how fast training and scoring are on this machine, beside a plain loop's.

Every path runs in a process of its own, as shipped, and waits for its turn: some updates of each in turn,
A B A B ..., medians over the rounds. ``counting`` counts the work, ``cases`` says what is played, ``child``
plays it, ``turns`` hands the turns out, ``measure`` makes the numbers, ``book`` keeps them, ``estimate``
draws conclusions, ``text`` and ``chart`` show them, ``run`` is the whole.
"""

from __future__ import annotations

from typing import Any

KEYS: dict[str, tuple[Any, str]] = {
    "cases": (
        "main",
        "which: NET-METHOD, as cnn-sn,resnet-gp; NET is cnn or resnet, METHOD sn, sn_per_update, gp "
        "(WGAN-GP), wn, none, or another normalization (bn, ln, wc, ...), of which there is no plain loop. "
        "main: both nets with the five; fig1: the CNN with the methods of SNGAN's Figure 1",
    ),
    "d_steps": ("5,1", "D updates per generator update, of each case"),
    "rounds": (5, "turns of each path that count, after one that does not"),
    "block": ("2", "seconds of a turn, about; at least one update"),
    "width": ("1", "multiplies every channel count"),
    "batch_size": (64, "real, and generated, images per D update; as many generated ones per G update"),
    "device": ("auto", "auto, cpu, cuda or cuda:i"),
    "threads": (0, "CPU threads of each path; 0: as many as cores"),
    "precision": ("", "of ganlab's paths, as fp32,bf16; default: fp32,bf16 on a CPU, tf32,bf16 on a GPU"),
    "engine": (
        "",
        "of ganlab's paths, as eager,graph,compile; default: eager on a CPU, eager,graph on a GPU",
    ),
    "plain": (True, "measure scripts/plain_loop.py too: fp32 on a CPU, TF32 on a GPU"),
    "evaluation": (False, "images scored per second, and the share of scoring in the shipped runs"),
    "packing": (False, "1, 2, 4, 8 runs at once, in one process and in as many"),
    "scaling": (False, "cost against batch, width, resolution and number of scored images"),
    "minutes": (0, "begin no case after so many; 0: all. The same command goes on with the rest"),
    "fresh": (False, "measure again what is in the folder already"),
    "quick": (False, "does it work at all? width 1/16, batch 8, two short rounds, two cases"),
    "out": (None, "folder; default outputs/bench/DEVICE[-quick]"),
}
