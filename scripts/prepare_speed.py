"""Benchmark data preparation and loading against a minimal baseline, alternating A B A B ...

    python scripts/prepare_speed.py [ready] [prepare] [batches] [--images 2400] [--rounds 3] [--folder DIR]
                                    [--archive FILE]

ready: seconds from ``Cifar10.load`` of a packed dataset to its first float batch; baseline: reading the file.
prepare: packs an ImageNet-like tree (500x375 JPEGs of about 75 KB), an LSUN-like database (WebP, shorter side
256), an STL-10 binary and a tar.xz of small JPEGs (or --archive) into a fresh cache; baseline: a process pool
that only decodes the same images (and unpacks the tar), not counting its start.
batches: random batches of 64 from a memory map, one thread; baseline: numpy's gather into one array. Cold:
the file is not in the page cache. to_float: conversion to float32, with and without ``dequantize``.
Values are medians with ranges. CPU: CPU time of all processes, which is less sensitive to other load. Shares
are medians over rounds. memory: peak of the main process and of the largest other process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from speed_measures import CASES, MEASURES
from speed_sets import ARCHIVE, MAPS, map_file, write_sets

from ganlab.data.packing.worker import num_cores


def measure(name: str, case: str, root: Path, cache: Path) -> dict[str, float]:
    """Run one measurement in its own process."""
    command = [sys.executable, __file__, "--one", name, case, "--folder", str(root)]
    environment = {**os.environ, "GANLAB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(process.stdout)
    return result


def compare(
    pair: tuple[str, str], case: str, rounds: int, root: Path, temporary: Path
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Run both measurements of ``pair`` in turn; each preparation gets a fresh cache."""
    both: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for i in range(rounds):
        cache = temporary / f"cache-{case}-{i}" if "prepare" in pair else temporary / "cache"
        for results, name in zip(both, pair, strict=True):
            results.append(measure(name, case, root, cache))
        if "prepare" in pair:
            shutil.rmtree(cache)
    return both


def median_range(results: list[dict[str, float]], name: str, scale: float = 1, digits: int = 0) -> str:
    """Format as ``median (minimum to maximum)``."""
    values = sorted(result[name] * scale for result in results)
    texts = [f"{value:,.{digits}f}" for value in (statistics.median(values), values[0], values[-1])]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def relative_speed(a: list[dict[str, float]], b: list[dict[str, float]], name: str) -> str:
    """Speed of ``a`` relative to ``b``, as the median over rounds."""
    ratios = [x[name] / y[name] if name == "rate" else y[name] / x[name] for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(ratios):.0%}"


def show_ready(rounds: int, root: Path, temporary: Path) -> None:
    measure("ready", "", root, temporary / "cache")  # packs it
    a, b = compare(("ready", "read_alone"), "", rounds, root, temporary)
    print(
        "\n| CIFAR-10, packed | s to the first batch | CPU s | reading the file alone, s |\n|---|---|---|---|"
    )
    print(f"| 50,000 images | {median_range(a, 'seconds', 1, 3)} | {median_range(a, 'cpu', 1, 3)} | "
          f"{median_range(b, 'seconds', 1, 3)} |", flush=True)  # fmt: skip


def show_prepare(rounds: int, root: Path, temporary: Path) -> None:
    print("\n| set | s | images/s | decoder alone | share | CPU ms/image | alone | share | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        a, b = compare(("prepare", "decode_alone"), case, rounds, root, temporary)
        fast = f"{median_range(a, 'rate')} | {median_range(b, 'rate')} | {relative_speed(a, b, 'rate')}"
        cpu_ms = f"{median_range(a, 'cpu', 1e3, 2)} | {median_range(b, 'cpu', 1e3, 2)}"
        cheap = f"{cpu_ms} | {relative_speed(a, b, 'cpu')}"
        memory = f"{max(x['main'] for x in a):.0f} + {max(x['others'] for x in a):.0f} MB"
        print(f"| {case} | {median_range(a, 'seconds', 1, 1)} | {fast} | {cheap} | {memory} |", flush=True)


def show_batches(rounds: int, root: Path, temporary: Path) -> None:
    print("\n| pixels | batches, images/s | by CPU | gather alone, images/s | by CPU | share of CPU |")
    print("|---|---|---|---|---|---|")
    cold = ["64 px, cold"] if hasattr(os, "posix_fadvise") else []
    for case in [*(f"{side} px" for side in MAPS), *cold]:
        a, b = compare(("batches", "gather_alone"), case, rounds, root, temporary)
        both = " | ".join(f"{median_range(results, 'rate')} | {cpu_rate(results)}" for results in (a, b))
        print(f"| {case} | {both} | {relative_speed(a, b, 'cpu')} |", flush=True)
    print("\n| to_float | images/s, plain | by CPU | dequantized | by CPU |\n|---|---|---|---|---|")
    for side in MAPS:
        cases = (f"{side} px", f"{side} px, dequantized")
        turns = [[measure("floats", case, root, temporary) for _ in range(rounds)] for case in cases]
        print(
            f"| {side} px | "
            + " | ".join(f"{median_range(results, 'rate')} | {cpu_rate(results)}" for results in turns)
            + " |"
        )


def cpu_rate(results: list[dict[str, float]]) -> str:
    """Images per second of CPU time."""
    return f"{statistics.median(1 / result['cpu'] for result in results):,.0f}"


PARTS = {"ready": show_ready, "prepare": show_prepare, "batches": show_batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--images", type=int, default=2400, help="number of JPEGs in the ImageNet-like dataset"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="keep the datasets here and reuse them")
    parser.add_argument("--archive", help="use this archive of 32x32 images instead of a generated one")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(MEASURES[args.one[0]](args.one[1], Path(args.folder))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.folder or temporary)
        root.mkdir(parents=True, exist_ok=True)
        if not map_file(root, max(MAPS)).exists():  # written last
            write_sets(root, args.images)
        if args.archive:
            (root / ARCHIVE).unlink(missing_ok=True)
            (root / ARCHIVE).symlink_to(Path(args.archive).resolve())
        for part in args.parts or PARTS:
            print(f"\nload {os.getloadavg()[0]:.1f} on {num_cores()} cores", flush=True)
            PARTS[part](args.rounds, root, Path(temporary))


if __name__ == "__main__":
    main()
