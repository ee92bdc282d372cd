"""What ``--help`` prints. Reads YAML and docstrings as text: no torch, no Hydra, no waiting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ganlab import __version__
from ganlab.cli.help.looking import analyze, bench, check, data, doctor, explain, report, sample
from ganlab.cli.help.page import arguments, head, marked, plain, shown, table, title, wrap
from ganlab.cli.help.words import (
    CHECKPOINT,
    COMMANDS,
    EXIT_CODES,
    OPTIONS,
    REPORT,
    RULES,
    SAMPLE,
    STATUS,
    SWEEP,
)
from ganlab.config.files import GRIDS, NAMED, groups, options_of, read, user_dirs
from ganlab.system.paths import config_dir


def program() -> str:
    """``ganlab --help``."""
    return "\n".join(
        [
            f"ganlab {__version__}: train, score and compare GANs, by the papers' recipes",
            "",
            "usage: ganlab COMMAND [arguments]      ganlab COMMAND --help",
            "",
            "commands",
            *table(COMMANDS.items()),
            "",
            "examples",
            "  ganlab train                                        the demo: digits, minutes on a CPU",
            "  ganlab train +experiment=sngan_cifar setting=B      a published row",
            "  ganlab train -m +experiment=sngan_cifar setting=A,B,C seed=0,1",
            "  ganlab sweep grid=sngan_fig1_cifar dry_run=true      a paper's grid, and what it costs",
            "  ganlab report outputs",
            "",
            "exit codes",
            EXIT_CODES,
            "",
            "environment",
            *table(
                [
                    ("GANLAB_CACHE", "prepared datasets, weights, statistics (default ~/.cache/ganlab)"),
                    ("GANLAB_CONFIGS", f"more --config-dir folders, joined by '{os.pathsep}'"),
                    ("GANLAB_OFFLINE=1", "never try to download"),
                    ("GANLAB_DEBUG=1", "print tracebacks"),
                ]
            ),
        ]
    )


def train(dirs: Sequence[Path] = ()) -> str:
    """``ganlab train --help``: all groups with their options, all top-level keys with default and meaning."""
    root, _ = read(config_dir() / "train.yaml")
    defaults = {k.split()[-1]: v for d in root["defaults"] if isinstance(d, dict) for k, v in d.items()}
    known, keys, scoring = groups(dirs), arguments("Experiment"), arguments("Scoring")
    names = [*defaults, *(g for g in known if g not in {*defaults, *NAMED.values(), "experiment"})]
    metric = {k: v for k, v in (root.get("metric") or {}).items() if k in scoring}
    launchers = "|".join(["basic", "joblib", *known.get("hydra/launcher", [])])
    return "\n".join(
        [
            head("train", "[+experiment=NAME] [group=option ...] [key=value ...] [options]"),
            *wrap(
                "With neither an experiment nor a dataset, the demo: +experiment=digits. The run folder "
                "follows from the config: the same command continues an unfinished run, and reports a "
                "finished one."
            ),
            "",
            "experiments: +experiment=NAME",
            *table((name, title(f"experiment/{name}", dirs)) for name in known.get("experiment", [])),
            "",
            "groups: group=option (* is the default; several as normalization=[sn,gp])",
            *table((g, marked(known[g], defaults.get(g))) for g in names if g in known and "/" not in g),
            "",
            "keys: key=default",
            *table((f"{k}={shown(root, k)}", keys[k]) for k in keys if k not in {*known, "optimizer"}),
            *table((f"metric.{k}={plain(v)}", scoring[k]) for k, v in metric.items()),
            *wrap(
                "The parts have keys of their own, as optimizer.lr, dataset.path, dataset.resolution and "
                "architecture.width; 'ganlab train --cfg job [choices]' shows those of your choice."
            ),
            "",
            "options",
            *table(OPTIONS.items()),
            *table(
                [
                    (f"hydra/launcher={launchers}", "with -m: one cell after the other, or several at once"),
                    (
                        "hydra/launcher=submitit_slurm|submitit_local",
                        "with -m: on SLURM, or as if; pip install 'ganlab[slurm]'",
                    ),
                    ("hydra/launcher=ray", "with -m: on Ray; pip install 'ganlab[ray]'"),
                    *((f"{k}={plain(default)}", f"with -m: {text}") for k, (default, text) in RULES.items()),
                ]
            ),
            "",
            "examples",
            "  ganlab train steps=200 run_dir=outputs/try",
            "  ganlab train +experiment=sngan_cifar setting=B normalization=gp loss=wasserstein",
            "  ganlab train dataset=folder dataset.path=photos.zip architecture=resnet",
            "  ganlab train -m +experiment=sngan_cifar normalization=sn,wn,gp setting=A,D",
        ]
    )


def sweep(config_dirs: Sequence[str] = ()) -> str:
    """``ganlab sweep --help``."""
    dirs = user_dirs(config_dirs)
    return "\n".join(
        [
            head(
                "sweep",
                "grid=NAME [AXIS=a,b] [key=value ...] [scale=...] [jobs=N] [per_gpu=K] [dry_run=true]",
            ),
            *wrap(
                "Each cell is a run in a folder of its own, and in a process of its own unless per_gpu packs "
                "several into one: these share data, feature network and statistics, each has its stream on "
                "the GPU, and each is what it is alone. jobs x per_gpu cells go on at once. On a CPU "
                "processes with a thread each are faster than packing: jobs=CORES. The same command again "
                "skips what is finished, continues what is not, and runs what failed; within one sweep a "
                "failed cell is tried twice, unless its config, data or checkpoint is at fault (exit codes 2 "
                "to 4). Several sweeps of one folder share the work: a SLURM array of this command, too. "
                "cells.csv in the folder holds the table, .sweep/CELL.log what a cell said; 'ganlab status' "
                "shows it live, 'ganlab report' draws it."
            ),
            "",
            "grids",
            *table((name, title(f"{GRIDS}/{name}", dirs)) for name in options_of(GRIDS, dirs)),
            "",
            "keys",
            *table((f"{k}={plain(default)}", text) for k, (default, text) in SWEEP.items()),
            *table([("AXIS=a,b", "only these of an axis, as method=sn,wn; or other values, as seed=0,1,2")]),
            *table([("n=, seed=", "of a grid that samples: how many of its random set, and the set's seed")]),
            *table([("key=value", "for every cell, as in 'ganlab train --help'; unscaled")]),
            "",
            "options",
            *table([("--config-dir DIR", OPTIONS["--config-dir DIR"]), ("-h, --help", "this text")]),
            "",
            "examples",
            "  ganlab sweep grid=sngan_fig1_cifar dry_run=true",
            "  ganlab sweep grid=sngan_fig1_cifar method=sn,wn seed=0,1,2",
            "  ganlab sweep grid=sngan_fig1_cifar scale=0.01,0.0625 jobs=2 metric.extractor=cifar",
            "  ganlab sweep grid=sngan_fig1_cifar per_gpu=auto gpus=[0,1]",
            "  ganlab sweep grid=wgan_gp_random_architectures n=12 seed=0",
        ]
    )


def status() -> str:
    """``ganlab status --help``."""
    return "\n".join(
        [
            head("status", "[FOLDER...] [watch=true]"),
            *wrap(
                "A line for each run at or below the folders (default: outputs): state, step, speed, time "
                "left, last scores. packed: how many runs shared its process. killed: its process is gone; "
                "the same command continues it. no checkpoint: its result says finished, and that step's "
                "checkpoint is not there. Only files are read: safe beside running sweeps, on any machine "
                "that sees them."
            ),
            "",
            "keys",
            *table((f"{k}={plain(default)}", text) for k, (default, text) in STATUS.items()),
            "",
            "example",
            "  ganlab status outputs/sngan_fig1_cifar watch=true",
        ]
    )


def evaluate() -> str:
    scoring = arguments("Scoring")
    known = groups([])
    return "\n".join(
        [
            head("evaluate", "RUN [checkpoint=last|best|STEP] [metric overrides] [device=...]"),
            *wrap(
                "Scores a checkpoint of the run folder RUN again, without training; prints the scores and "
                "keeps them in RUN/evaluations/."
            ),
            "",
            "overrides",
            *table(
                [
                    CHECKPOINT,
                    (
                        "protocols=NAME,NAME",
                        "several protocols, one after the other: the same checkpoint's scores side by side",
                    ),
                    (f"metric.protocol={'|'.join(known.get('protocol', []))}", scoring.get("protocol", "")),
                    (
                        f"metric.extractor={'|'.join(known.get('extractor', []))}",
                        scoring.get("extractor", ""),
                    ),
                    ("metric.weights=PATH", scoring.get("weights", "")),
                    (f"metric=[{','.join(known.get('metric', []))}]", "which scores"),
                    ("device, threads, data_memory_gb", "as in 'ganlab train --help'"),
                    ("dataset.path=PATH", "where the images lie now"),
                ]
            ),
            "",
            "options",
            *table([("--config-dir DIR", OPTIONS["--config-dir DIR"]), ("-h, --help", "this text")]),
            "",
            "examples",
            "  ganlab evaluate outputs/sngan_cifar/C-s0 metric.protocol=ttur50k",
            "  ganlab evaluate outputs/sngan_cifar/C-s0 protocols=sngan_paper,ttur50k",
            "  ganlab evaluate outputs/digits/C-s0 checkpoint=best metric.extractor=cifar device=cpu",
        ]
    )


__all__ = [
    "COMMANDS",
    "REPORT",
    "RULES",
    "SAMPLE",
    "STATUS",
    "SWEEP",
    "analyze",
    "arguments",
    "bench",
    "check",
    "data",
    "doctor",
    "evaluate",
    "explain",
    "program",
    "report",
    "sample",
    "status",
    "sweep",
    "train",
]
