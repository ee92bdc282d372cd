"""``--help`` of the commands that look at runs, data and the machine."""

from __future__ import annotations

from ganlab import analysis
from ganlab.bench import KEYS as BENCH
from ganlab.cli.help.page import argument_descriptions, body, default, head, plain, table, wrap
from ganlab.cli.help.words import OPTIONS, REPORT, SAMPLE
from ganlab.config.files import groups


def analyze(chosen: str | None = None) -> str:
    """``ganlab analyze --help``; with ``analysis=NAME`` also what that one is and its keys."""
    known = analysis.catalogue()
    lines = [
        head("analyze", "RUN... analysis=NAME [out=DIR] [key=value ...]"),
        *wrap(
            "Reads run folders, and folders that hold some; draws NAME.png and writes its numbers to "
            "NAME.csv, in RUN/analysis, for several paths in outputs/analysis. The runs stay as they are."
        ),
        "",
    ]
    for name in analysis.select(chosen) if chosen and chosen != analysis.ALL else ():
        lines += [f"analysis={name}: {known[name].title}", *wrap(body(known[name].doc)), "", "its keys"]
        told = argument_descriptions(known[name].doc)
        lines += table((f"{k}={default(v)}", told.get(k, "")) for k, v in known[name].keys.items())
        lines.append("")
    if chosen and chosen != analysis.ALL:
        return "\n".join(lines[:-1])
    return "\n".join(
        [
            *lines,
            "analyses (their keys: ganlab analyze analysis=NAME --help)",
            *table((name, entry.title) for name, entry in known.items()),
            *table([("all", "every one that fits the runs; says why the others do not")]),
            "",
            "keys",
            *table(
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


def check() -> str:
    """``ganlab check --help``."""
    return "\n".join(
        [
            head("check", "RUN... [--json]"),
            *wrap(
                "Reads every checkpoint of the run folders, and of those in folders that hold some (a "
                "sweep's): its seal, sizes, sha256, content, finite numbers, and whether it fits the run's "
                "config. A line for each step: good, damaged and why, or other run's; then config.yaml, "
                "run.json and metrics.jsonl, and what kills, quarantines and resume= have left. Nothing is "
                "written. Exit code 0: all could go on; 4: something is damaged, or there is nothing to go "
                "on from; 3: no run."
            ),
            "",
            "options",
            *table([("--json", "the same as JSON"), ("-h, --help", "this text")]),
            "",
            "examples",
            "  ganlab check outputs/sngan_cifar/C-s0",
            "  ganlab check outputs/sngan_fig1_cifar --json",
        ]
    )


def explain() -> str:
    return "\n".join(
        [
            head("explain", "RUN | [+experiment=NAME] [group=option ...] [key=value ...] [--json]"),
            *wrap(
                "Lists every key in which a run folder, or what the overrides would run, differs from the "
                "paper's recipe; where the recipe's values come from (paper, authors' code, our choice); "
                "and where paper and code disagree or the paper is silent. The recipe is that of the run's "
                "experiment, else of the nearest shipped one."
            ),
            "",
            "options",
            *table(
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
            head("data", "prepare|check|info DATASET [key=value ...]"),
            *wrap(
                "prepare: download (checked, resumable) or read a local source on every core, and pack it "
                "into one file of pixels with a manifest. Stopped or killed, the same command goes on and "
                "ends in the same bytes. check: look at every file of the source: "
                "broken, odd and equal ones, counts. info: what is prepared, counts, classes, checksums."
            ),
            "",
            "datasets",
            *wrap(", ".join(groups([]).get("dataset", []))),
            "",
            "keys",
            *table(
                [
                    (
                        "path=, split=, ...",
                        "the dataset's own; split=all: every split",
                    ),
                    (
                        "hash=write",
                        "with check: write the sha256 of every file beside the source (sha256sum's format)",
                    ),
                    ("hash=verify", "with check: compare with them; finds rotten bits that decode unnoticed"),
                    ("manifest=FILE", "with hash: another place for them"),
                    ("out=FILE", "with check: all that was found, as JSON"),
                    ("verify=true", "with info: read every prepared file and compare its checksum"),
                    (
                        "dataset.verify=false",
                        "cifar10, stl10, mnist: admit a set of your own in their format",
                    ),
                ]
            ),
            "",
            "examples",
            "  ganlab data prepare cifar10",
            "  ganlab data prepare folder path=photos.zip resolution=64",
            "  ganlab data prepare imagenet path=/data/ILSVRC2012 split=all",
            "  ganlab data prepare lsun path=/data/lsun category=bedroom resolution=128",
            "  ganlab data check folder path=photos hash=write",
            "  ganlab data check folder path=photos hash=verify",
            "  ganlab data info cifar10 verify=true",
            "",
            *wrap(
                "Environment: GANLAB_CACHE (where packs and downloads lie), GANLAB_OFFLINE=1 (download "
                "nothing), GANLAB_DATA_TIMEOUT (seconds after which a process that reads and says nothing is "
                "given up; 120)."
            ),
        ]
    )


def bench() -> str:
    """``ganlab bench --help``."""
    return "\n".join(
        [
            head("bench", "[cases=...] [key=value ...]"),
            *wrap(
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
            *table((f"{k}={plain(default)}", text) for k, (default, text) in BENCH.items()),
            "",
            "options",
            *table([("--config-dir DIR", OPTIONS["--config-dir DIR"]), ("-h, --help", "this text")]),
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
            head("doctor", "[--json]"),
            *wrap(
                "Tells what is installed, which devices, datasets and weights are there, and what is "
                "missing: its size and checksum, and where to put it. Exit code 5 if something required "
                "is broken."
            ),
        ]
    )


def report() -> str:
    return "\n".join(
        [
            head("report", "RUN... [out=outputs/report] [thresholds=a,b,...]"),
            *wrap(
                "Reads run folders, and folders that hold some; writes report.html (one file, nothing from "
                "the network), report.md, CSV files and figures: bars by method and setting, curves, "
                "samples; published values, other implementations' and ours side by side, each with its "
                "protocol and whether it is like for like; the order of methods and their robustness beside "
                "the paper's; whether differences are more than seed noise; one checkpoint under several "
                "protocols. Of a grid that compares its cells two by two (random architectures) it prints "
                "and writes the counts beside the paper's."
            ),
            "",
            "keys",
            *table((f"{k}={plain(default)}", text) for k, (default, text) in REPORT.items()),
            "",
            "examples",
            "  ganlab report outputs/sngan_cifar outputs/wgan_gp_cifar out=benchmarks/cifar",
            "  ganlab report outputs/wgan_gp_random_architectures thresholds=2,3,4",
        ]
    )


def sample() -> str:
    return "\n".join(
        [
            head("sample", "RUN [n=64] [out=DIR] [key=value ...]"),
            *wrap(
                "Draws from a checkpoint's generator. Images: grid.png, single PNGs, interpolation.png; "
                "text: samples.txt, interpolation.txt; points: points.csv, grid.png, interpolation.csv."
            ),
            "",
            "keys",
            *table((f"{k}={plain(default)}", text) for k, (default, text) in SAMPLE.items()),
            "  device=auto|cpu|cuda[:i]",
            "",
            "example",
            "  ganlab sample outputs/digits/C-s0 n=64 out=samples",
        ]
    )
