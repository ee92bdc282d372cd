"""What ``--help`` prints. Reads YAML and docstrings as text: no torch, no Hydra, no waiting."""

from __future__ import annotations

import ast
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ganlab import __version__, analysis
from ganlab.bench import KEYS as BENCH
from ganlab.config_files import GRIDS, NAMED, find, groups, options_of, read, user_dirs
from ganlab.paths import PACKAGE, config_dir

COMMANDS = {
    "train": "train one GAN, or a grid of them (-m); again: continue, or report",
    "sweep": "run a paper's whole grid: skips what is done, continues, tries again",
    "status": "how far the runs and grids below a folder are",
    "evaluate": "score a run's checkpoint again, under any protocol",
    "sample": "draw images from a run: a grid, single PNGs, interpolations",
    "report": "put runs side by side: HTML, Markdown, CSV and figures",
    "analyze": "one figure of runs and its numbers: spectra, gradients, speed, samples, ...",
    "explain": "how a run differs from the paper's recipe, and where each value comes from",
    "data": "prepare a dataset, or tell what is prepared",
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
STATUS = {"watch": (False, "again every 5 seconds, until all are over")}
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
}


def program() -> str:
    """``ganlab --help``."""
    return "\n".join(
        [
            f"ganlab {__version__}: train, score and compare GANs, by the papers' recipes",
            "",
            "usage: ganlab COMMAND [arguments]      ganlab COMMAND --help",
            "",
            "commands",
            *_table(COMMANDS.items()),
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
            *_table(
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
            _head("train", "[+experiment=NAME] [group=option ...] [key=value ...] [options]"),
            *_wrap(
                "With neither an experiment nor a dataset, the demo: +experiment=digits. The run folder "
                "follows from the config: the same command continues an unfinished run, and reports a "
                "finished one."
            ),
            "",
            "experiments: +experiment=NAME",
            *_table((name, _title(f"experiment/{name}", dirs)) for name in known.get("experiment", [])),
            "",
            "groups: group=option (* is the default; several as normalization=[sn,gp])",
            *_table((g, _marked(known[g], defaults.get(g))) for g in names if g in known and "/" not in g),
            "",
            "keys: key=default",
            *_table((f"{k}={_shown(root, k)}", keys[k]) for k in keys if k not in {*known, "optimizer"}),
            *_table((f"metric.{k}={_plain(v)}", scoring[k]) for k, v in metric.items()),
            *_wrap(
                "The parts have keys of their own, as optimizer.lr, dataset.path, dataset.resolution and "
                "architecture.width; 'ganlab train --cfg job [choices]' shows those of your choice."
            ),
            "",
            "options",
            *_table(OPTIONS.items()),
            *_table(
                [(f"hydra/launcher={launchers}", "with -m: one cell after the other, or several at once")]
            ),
            "",
            "examples",
            "  ganlab train steps=200 run_dir=outputs/try",
            "  ganlab train +experiment=sngan_cifar setting=B normalization=gp loss=wasserstein",
            "  ganlab train dataset=folder dataset.path=photos.zip architecture=resnet",
            "  ganlab train -m +experiment=sngan_cifar normalization=sn,wn,gp setting=A,D",
        ]
    )


def _title(name: str, dirs: Sequence[Path]) -> str:
    """The first comment of a config file, to the end of the sentence that its first line ends in."""
    path = find(name, dirs)
    lines = path.read_text("utf-8", "replace").splitlines() if path else []
    comments = [line for line in lines if line.startswith("#") and "@package" not in line]
    first, *more = [line.removeprefix("#").strip() for line in comments] or [""]
    text = " ".join([first, *more[: sum(1 for _ in takewhile(_goes_on, comments[1:]))]])
    for end in re.finditer(r"[.:](?= |$)", text):
        head = text[: end.start()]
        if end.end() >= len(first) and head.count("(") == head.count(")"):
            return head + end.group().replace(":", "")
    return text


def _goes_on(comment: str) -> bool:
    return re.match(r"# ?\S", comment) is not None  # a table or an example is indented


def sweep(config_dirs: Sequence[str] = ()) -> str:
    """``ganlab sweep --help``."""
    dirs = user_dirs(config_dirs)
    return "\n".join(
        [
            _head(
                "sweep",
                "grid=NAME [AXIS=a,b] [key=value ...] [scale=...] [jobs=N] [per_gpu=K] [dry_run=true]",
            ),
            *_wrap(
                "Each cell is a run in a folder of its own, and in a process of its own unless per_gpu packs "
                "several into one: these share data, feature network and statistics, each has its stream on "
                "the GPU, and each is what it is alone. jobs x per_gpu cells go on at once. On a CPU "
                "processes with a thread each are faster than packing: jobs=CORES. The same command again "
                "skips what is finished, continues what is not, and runs what failed; within one sweep a "
                "failed cell is tried twice. Several sweeps of one folder share the work. cells.csv in the "
                "folder holds the table; 'ganlab status' shows it live, 'ganlab report' draws it."
            ),
            "",
            "grids",
            *_table((name, _title(f"{GRIDS}/{name}", dirs)) for name in options_of(GRIDS, dirs)),
            "",
            "keys",
            *_table((f"{k}={_plain(default)}", text) for k, (default, text) in SWEEP.items()),
            *_table([("AXIS=a,b", "only these of an axis, as method=sn,wn; or other values, as seed=0,1,2")]),
            *_table([("key=value", "for every cell, as in 'ganlab train --help'; unscaled")]),
            "",
            "options",
            *_table([("--config-dir DIR", OPTIONS["--config-dir DIR"]), ("-h, --help", "this text")]),
            "",
            "examples",
            "  ganlab sweep grid=sngan_fig1_cifar dry_run=true",
            "  ganlab sweep grid=sngan_fig1_cifar method=sn,wn seed=0,1,2",
            "  ganlab sweep grid=sngan_fig1_cifar scale=0.01,0.0625 jobs=2 metric.extractor=cifar",
            "  ganlab sweep grid=sngan_fig1_cifar per_gpu=auto gpus=[0,1]",
        ]
    )


def status() -> str:
    """``ganlab status --help``."""
    return "\n".join(
        [
            _head("status", "[FOLDER...] [watch=true]"),
            *_wrap(
                "A line for each run at or below the folders (default: outputs): state, step, speed, time "
                "left, last scores. packed: how many runs shared its process. killed: its process is gone; "
                "the same command continues it. Only files are read: safe beside running sweeps, on any "
                "machine that sees them."
            ),
            "",
            "keys",
            *_table((f"{k}={_plain(default)}", text) for k, (default, text) in STATUS.items()),
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
            _head("evaluate", "RUN [checkpoint=last|best|STEP] [metric overrides] [device=...]"),
            *_wrap(
                "Scores a checkpoint of the run folder RUN again, without training; prints the scores and "
                "keeps them in RUN/evaluations/."
            ),
            "",
            "overrides",
            *_table(
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
            *_table([("--config-dir DIR", OPTIONS["--config-dir DIR"]), ("-h, --help", "this text")]),
            "",
            "examples",
            "  ganlab evaluate outputs/sngan_cifar/C-s0 metric.protocol=ttur50k",
            "  ganlab evaluate outputs/sngan_cifar/C-s0 protocols=sngan_paper,ttur50k",
            "  ganlab evaluate outputs/digits/C-s0 checkpoint=best metric.extractor=cifar device=cpu",
        ]
    )


def sample() -> str:
    return "\n".join(
        [
            _head("sample", "RUN [n=64] [out=DIR] [key=value ...]"),
            *_wrap("Draws images from a checkpoint's generator: grid.png, single PNGs, interpolation.png."),
            "",
            "keys",
            *_table((f"{k}={_plain(default)}", text) for k, (default, text) in SAMPLE.items()),
            "  device=auto|cpu|cuda[:i]",
            "",
            "example",
            "  ganlab sample outputs/digits/C-s0 n=64 out=samples",
        ]
    )


def report() -> str:
    return "\n".join(
        [
            _head("report", "RUN... [out=outputs/report]"),
            *_wrap(
                "Reads run folders, and folders that hold some; writes report.html (one file, nothing from "
                "the network), report.md, CSV files and figures: bars by method and setting, curves, "
                "samples; published values, other implementations' and ours side by side, each with its "
                "protocol and whether it is like for like; the order of methods and their robustness beside "
                "the paper's; whether differences are more than seed noise; one checkpoint under several "
                "protocols."
            ),
            "",
            "example",
            "  ganlab report outputs/sngan_cifar outputs/wgan_gp_cifar out=benchmarks/cifar",
        ]
    )


def analyze(chosen: str | None = None) -> str:
    """``ganlab analyze --help``; with ``analysis=NAME`` also what that one is and its keys."""
    known = analysis.catalogue()
    lines = [
        _head("analyze", "RUN... analysis=NAME [out=DIR] [key=value ...]"),
        *_wrap(
            "Reads run folders, and folders that hold some; draws NAME.png and writes its numbers to "
            "NAME.csv, in RUN/analysis, for several paths in outputs/analysis. The runs stay as they are."
        ),
        "",
    ]
    for name in analysis.chosen(chosen) if chosen and chosen != analysis.ALL else ():
        lines += [f"analysis={name}: {known[name].title}", *_wrap(_body(known[name].doc)), "", "its keys"]
        told = described(known[name].doc)
        lines += _table((f"{k}={_default(v)}", told.get(k, "")) for k, v in known[name].keys.items())
        lines.append("")
    if chosen and chosen != analysis.ALL:
        return "\n".join(lines[:-1])
    return "\n".join(
        [
            *lines,
            "analyses (their keys: ganlab analyze analysis=NAME --help)",
            *_table((name, entry.title) for name, entry in known.items()),
            *_table([("all", "every one that fits the runs; says why the others do not")]),
            "",
            "keys",
            *_table(
                [
                    ("out=DIR", "where to write"),
                    ("checkpoint=last", "last, best, or a step; for those that look at networks"),
                    ("dataset.path=PATH", "where the images lie now"),
                    ("device, threads", "as in 'ganlab train --help'"),
                ]
            ),
            "",
            "examples",
            "  ganlab analyze outputs/sngan_cifar analysis=singular_values",
            "  ganlab analyze outputs/sngan_cifar/C-s0 analysis=nearest,scores,gradient_norm",
            "  ganlab analyze outputs/sngan_fig4 analysis=feature_dim out=figures",
            "  ganlab analyze analysis=speed +experiment=sngan_cifar architecture.width=0.25",
        ]
    )


def _default(source: str) -> str:
    """A default as a user would write it: ``a,b`` for a tuple."""
    value = ast.literal_eval(source)
    return ",".join(map(str, value)) if isinstance(value, tuple) else _plain(value)


def _body(doc: str) -> str:
    """The paragraphs of a docstring between its first line and its arguments, as one."""
    return " ".join(doc.partition("\n")[2].partition("Args:")[0].split()).replace("``", "")


def explain() -> str:
    return "\n".join(
        [
            _head("explain", "RUN | [+experiment=NAME] [group=option ...] [key=value ...] [--json]"),
            *_wrap(
                "Lists every key in which a run folder, or what the overrides would run, differs from the "
                "paper's recipe; where the recipe's values come from (paper, authors' code, our choice); "
                "and where paper and code disagree or the paper is silent. The recipe is that of the run's "
                "experiment, else of the nearest shipped one."
            ),
            "",
            "options",
            *_table(
                [
                    ("--json", "the same as JSON"),
                    ("--config-dir DIR", OPTIONS["--config-dir DIR"]),
                    ("-h, --help", "this text"),
                ]
            ),
            "",
            "examples",
            "  ganlab explain outputs/sngan_cifar/C-s0",
            "  ganlab explain +experiment=sngan_cifar setting=D steps=1000",
        ]
    )


def data() -> str:
    return "\n".join(
        [
            _head("data", "prepare|info DATASET [key=value ...]"),
            *_wrap(
                "prepare: download (checked, resumable) or read a local source on every core, and pack it "
                "into one file of pixels with a manifest. Stopped or killed, the same command goes on and "
                "ends in the same bytes. info: what is prepared, counts, shape, classes, checksums."
            ),
            "",
            "datasets",
            *_wrap(", ".join(groups([]).get("dataset", []))),
            "",
            "keys",
            *_table(
                [
                    (
                        "path=, split=, ...",
                        "the dataset's own; split=all: every split",
                    ),
                    ("verify=true", "with info: read every prepared file and compare its checksum"),
                    ("dataset.verify=false", "cifar10, stl10: admit a set of your own in their format"),
                ]
            ),
            "",
            "examples",
            "  ganlab data prepare cifar10",
            "  ganlab data prepare folder path=photos.zip resolution=64",
            "  ganlab data prepare imagenet path=/data/ILSVRC2012 split=all",
            "  ganlab data prepare lsun path=/data/lsun category=bedroom resolution=128",
            "  ganlab data info cifar10 verify=true",
        ]
    )


def bench() -> str:
    """``ganlab bench --help``."""
    return "\n".join(
        [
            _head("bench", "[cases=...] [key=value ...]"),
            *_wrap(
                "Plays updates of each case by each path, in processes of their own that take turns, and "
                "tells updates per second, times the plain loop's (scripts/plain_loop.py), floating-point "
                "operations, the share of what the chip could do, dispatched operations, memory, and the "
                "seconds to the first update. Images are noise: no data is needed. Each case is kept in "
                "bench.json when it is measured; the same command again goes on with the cases that are not "
                "there, and measures anew what another commit, version or thread count measured. bench.md "
                "and PNGs lie beside it."
            ),
            "",
            "keys",
            *_table((f"{k}={_plain(default)}", text) for k, (default, text) in BENCH.items()),
            "",
            "options",
            *_table([("--config-dir DIR", OPTIONS["--config-dir DIR"]), ("-h, --help", "this text")]),
            "",
            "examples",
            "  ganlab bench quick=true",
            "  ganlab bench cases=cnn-sn,resnet-sn d_steps=5 rounds=3",
            "  ganlab bench minutes=25                       and again, until all is measured",
            "  ganlab bench cases=cnn-sn d_steps=1 evaluation=true packing=true scaling=true",
            "  ganlab bench device=cuda engine=eager,graph,compile precision=tf32,bf16",
        ]
    )


def doctor() -> str:
    return "\n".join(
        [
            _head("doctor", "[--json]"),
            *_wrap(
                "Tells what is installed, which devices, datasets and weights are there, and what is "
                "missing: its size and checksum, and where to put it. Exit code 5 if something required "
                "is broken."
            ),
        ]
    )


def arguments(name: str) -> dict[str, str]:
    """Argument -> description, from the "Args:" of a class in experiment.py, which is not imported."""
    tree = ast.parse((PACKAGE / "experiment.py").read_text("utf-8"))
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    return described(ast.get_docstring(found[0]) or "" if found else "")


def described(text: str) -> dict[str, str]:
    """Argument -> description, from the "Args:" of a docstring."""
    told: dict[str, str] = {}
    current = ""
    for line in text.partition("Args:")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            current, _, words = line.strip().partition(":")
            told[current] = words.strip()
        elif current and line.strip():
            told[current] += f" {line.strip()}"
    return {k: v.replace("``", "") for k, v in told.items()}


def _head(command: str, usage: str) -> str:
    return f"ganlab {command}: {COMMANDS[command]}\n\nusage: ganlab {command} {usage}\n"


def _shown(root: dict[str, Any], key: str) -> str:
    return _plain(root[key]) if key in root else "(setting's)" if key in ("d_steps", "setting") else "..."


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _marked(options: list[str], default: Any) -> str:
    chosen = default if isinstance(default, list) else [default]
    return " ".join(f"*{o}" if o in chosen else o for o in options)


def _width() -> int:
    return max(60, min(110, shutil.get_terminal_size((100, 24)).columns))


def _wrap(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _table(rows: Iterable[tuple[str, str]], column: int = 26) -> list[str]:
    lines: list[str] = []
    for name, text in rows:
        body = textwrap.wrap(text, _width() - column - 2, break_on_hyphens=False) or [""]
        if len(name) > column - 2:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{column}}{body.pop(0)}".rstrip())
        lines += [" " * (column + 2) + line for line in body]
    return lines
