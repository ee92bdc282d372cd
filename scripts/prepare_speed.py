"""How fast data gets ready, each figure beside the least that has to be done for it, in turns A B A B ...

    python scripts/prepare_speed.py [ready] [prepare] [batches] [--images 2400] [--rounds 3] [--folder DIR]
                                    [--archive FILE]

ready: seconds from ``Cifar10.load`` of a packed set to its first float batch; beside it, reading the file.
prepare: an ImageNet-like tree (500x375 JPEGs of about 75 KB), an LSUN-like database (WebP, shorter side 256),
an STL-10 binary and a tar.xz of small JPEGs (or --archive), each packed into a fresh cache; beside it, a pool
of processes that only decodes the same images (of the tar: unpacks, too), whose start is not counted.
batches: random batches of 64 from a memory map, one thread; beside it numpy's gather into one array. Cold:
the file is not in the page cache. to_float: what makes them float32, without and with ``dequantize``.
Medians, then from the least to the most. CPU: processor time, which other load on the machine moves less; of
all processes. Shares are medians of turns. memory: peak of the main process and of the largest other one.
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

from ganlab.data.packing.pool import num_cores


def measured(what: str, case: str, root: Path, cache: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", what, case, "--folder", str(root)]
    environment = {**os.environ, "GANLAB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compared(
    pair: tuple[str, str], case: str, rounds: int, root: Path, place: Path
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Both of ``pair`` in turns; every preparation into a cache of its own."""
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for i in range(rounds):
        cache = place / f"cache-{case}-{i}" if "prepare" in pair else place / "cache"
        for some, what in zip(found, pair, strict=True):
            some.append(measured(what, case, root, cache))
        if "prepare" in pair:
            shutil.rmtree(cache)
    return found


def middle(some: list[dict[str, float]], name: str, scale: float = 1, digits: int = 0) -> str:
    """ "median (least to most)"."""
    values = sorted(one[name] * scale for one in some)
    shown = [f"{value:,.{digits}f}" for value in (statistics.median(values), values[0], values[-1])]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def share(a: list[dict[str, float]], b: list[dict[str, float]], name: str) -> str:
    """How much of ``b``'s speed ``a`` reaches, by median of turns."""
    by = [x[name] / y[name] if name == "rate" else y[name] / x[name] for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(by):.0%}"


def show_ready(rounds: int, root: Path, place: Path) -> None:
    measured("ready", "", root, place / "cache")  # packs it
    a, b = compared(("ready", "read_alone"), "", rounds, root, place)
    print(
        "\n| CIFAR-10, packed | s to the first batch | CPU s | reading the file alone, s |\n|---|---|---|---|"
    )
    print(f"| 50,000 images | {middle(a, 'seconds', 1, 3)} | {middle(a, 'cpu', 1, 3)} | "
          f"{middle(b, 'seconds', 1, 3)} |", flush=True)  # fmt: skip


def show_prepare(rounds: int, root: Path, place: Path) -> None:
    print("\n| set | s | images/s | decoder alone | share | CPU ms/image | alone | share | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        a, b = compared(("prepare", "decode_alone"), case, rounds, root, place)
        fast = f"{middle(a, 'rate')} | {middle(b, 'rate')} | {share(a, b, 'rate')}"
        cheap = f"{middle(a, 'cpu', 1e3, 2)} | {middle(b, 'cpu', 1e3, 2)} | {share(a, b, 'cpu')}"
        memory = f"{max(x['main'] for x in a):.0f} + {max(x['others'] for x in a):.0f} MB"
        print(f"| {case} | {middle(a, 'seconds', 1, 1)} | {fast} | {cheap} | {memory} |", flush=True)


def show_batches(rounds: int, root: Path, place: Path) -> None:
    print("\n| pixels | batches, images/s | by CPU | gather alone, images/s | by CPU | share of CPU |")
    print("|---|---|---|---|---|---|")
    cold = ["64 px, cold"] if hasattr(os, "posix_fadvise") else []
    for case in [*(f"{side} px" for side in MAPS), *cold]:
        a, b = compared(("batches", "gather_alone"), case, rounds, root, place)
        both = " | ".join(f"{middle(some, 'rate')} | {of_cpu(some)}" for some in (a, b))
        print(f"| {case} | {both} | {share(a, b, 'cpu')} |", flush=True)
    print("\n| to_float | images/s, plain | by CPU | dequantized | by CPU |\n|---|---|---|---|---|")
    for side in MAPS:
        cases = (f"{side} px", f"{side} px, dequantized")
        turns = [[measured("floats", case, root, place) for _ in range(rounds)] for case in cases]
        print(
            f"| {side} px | "
            + " | ".join(f"{middle(some, 'rate')} | {of_cpu(some)}" for some in turns)
            + " |"
        )


def of_cpu(some: list[dict[str, float]]) -> str:
    """Images a second of processor time."""
    return f"{statistics.median(1 / one['cpu'] for one in some):,.0f}"


PARTS = {"ready": show_ready, "prepare": show_prepare, "batches": show_batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--images", type=int, default=2400, help="JPEGs of the ImageNet-like set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="keep the sets here, and use them again")
    parser.add_argument("--archive", help="an archive of 32x32 images in place of the one that is made")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "CASE"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(MEASURES[words.one[0]](words.one[1], Path(words.folder))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(words.folder or temporary)
        root.mkdir(parents=True, exist_ok=True)
        if not map_file(root, max(MAPS)).exists():  # the last of them
            write_sets(root, words.images)
        if words.archive:
            (root / ARCHIVE).unlink(missing_ok=True)
            (root / ARCHIVE).symlink_to(Path(words.archive).resolve())
        for part in words.parts or PARTS:
            print(f"\nload {os.getloadavg()[0]:.1f} on {num_cores()} cores", flush=True)
            PARTS[part](words.rounds, root, Path(temporary))


if __name__ == "__main__":
    main()
