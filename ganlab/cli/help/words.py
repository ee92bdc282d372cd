"""The commands, their own keys with defaults, and the exit codes, as ``--help`` tells them."""

from __future__ import annotations

COMMANDS = {
    "train": "train one GAN, or a grid of them (-m); again: continue, or report",
    "sweep": "run a paper's whole grid: skips what is done, continues, tries again",
    "status": "how far the runs and grids below a folder are",
    "check": "verify every checkpoint of runs, without training: could they go on?",
    "evaluate": "score a run's checkpoint again, under any protocol",
    "sample": "draw images from a run: a grid, single PNGs, interpolations",
    "report": "put runs side by side: HTML, Markdown, CSV and figures",
    "analyze": "one figure of runs and its numbers: spectra, gradients, speed, samples, ...",
    "explain": "how a run differs from the paper's recipe, and where each value comes from",
    "data": "prepare or check a dataset, or tell what is prepared",
    "bench": "how fast it is on this machine, beside a plain loop: tables, JSON, charts",
    "doctor": "what is installed, prepared and missing on this machine",
}
EXIT_CODES = """\
  0  done                                    5  environment: device, package, disk, permission,
  1  a bug of ganlab's (see crash.txt)          network, weights
  2  config or command line                  6  diverged
  3  dataset or another input file           7  run folder in use
  4  checkpoint unusable                     8  a sweep ended with failed jobs
  128+N  stopped by signal N, the state saved (130: Ctrl-C)"""
OPTIONS = {
    "-m, --multirun": "one run for each combination: setting=A,B seed=0,1 or 'seed=range(0,3)'",
    "--config-dir DIR": "a folder of your own groups and experiments, beside ganlab's; may be repeated",
    "--cfg job [--resolve]": "print the composed config, check it, and run nothing",
    "-p, --package KEY": "with --cfg: only that part",
    "--cfg hydra|all, --info [WHAT], --hydra-help": "Hydra's own, passed on",
    "-h, --help": "this text",
}
CHECKPOINT = ("checkpoint=last", "last, best, or a step")
SAMPLE = {
    "n": (64, "images"),
    "out": (None, "folder; default RUN/samples/step-N-seedS"),
    "seed": (0, "of the latents"),
    "checkpoint": ("last", "last, best, or a step"),
    "columns": (8, "images in a row of the grid, and in one interpolation"),
    "classes": (None, "of a conditional run, as 0,3,7: rows of the grid; default: spread over all"),
    "interpolations": (8, "pairs of latents to go between; 0: none"),
    "singles": (True, "each image as a PNG of its own too"),
}
REPORT = {
    "out": (None, "folder; default outputs/report"),
    "thresholds": (None, "of success, as 2,3.5, for grids that count it; default: the paper's, or deciles"),
}
STATUS = {"watch": (False, "again every 5 seconds, until all are over")}
_RULES: dict[str, tuple[object, str]] = {
    "max_jobs": (1000, "more cells than this are refused, with their number"),
    "retry": ("failed", "what failed in an earlier sweep is run again; never: it is only listed"),
    "stall_minutes": (
        "60",
        "a cell that shows no progress for so long is ended, and tried again; a slow one shows some "
        "with each update and each batch that is scored; 0: never",
    ),
}
RULES = {f"sweep.{key}": told for key, told in _RULES.items()}
SWEEP = {
    "grid": (None, "which; a file of configs/grid"),
    "scale": (None, "UPDATES or UPDATES,WIDTH: fractions, as scale=0.01,0.125"),
    "jobs": (
        None,
        "processes at a time, among which CPU threads or GPUs are divided; default 1, or one a GPU",
    ),
    "per_gpu": ("1", "cells at a time in each process, on one GPU; auto: measured while they run"),
    "gpus": (None, "which GPUs the processes are spread over, as gpus=[0,1]; default all, if jobs is over 1"),
    "dry_run": (False, "print the cells and what they would cost by a measured rate; run nothing"),
    "out": (None, "folder; default outputs/GRID[-SCALE][-HASH of other overrides]"),
    **_RULES,
}
