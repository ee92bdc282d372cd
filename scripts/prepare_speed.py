"""How fast data sets are prepared, and how near that is to the decoder alone on all cores.

    python scripts/prepare_speed.py [--images 600] [--rounds 3] [--folder DIR]

Writes an ImageNet-like tree (500x375 JPEGs of about 75 KB), an LSUN-like database (WebP, shorter side 256)
and an STL-10 binary out of scikit-learn's two photos; prepares each in a fresh cache, in turns with a pool of
processes that only decodes the same images (A B A B ...); prints medians as a Markdown table. Shares: of the
rates, and of the processor time per image, which other load on the machine moves less. Preparing includes
the start of its processes, the pool not. map: random batches of 64 from the packed set, as training reads
what does not fit its memory. memory: peak of the main process and of the largest other one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.crew import num_cores
from ganlab.data.imagenet import ImageNet
from ganlab.data.imagenet_rule import ImageNetRule
from ganlab.data.images import Rule, decode, resize_block
from ganlab.data.lsun import Lsun
from ganlab.data.stl10 import IMAGE_BYTES, SIDE, Stl10

CLASSES = 10
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "ImageNet 128, paper": ("imagenet", ImageNet, {"resolution": 128}),
    "ImageNet 64, plain": ("imagenet", ImageNet, {"resolution": 64, "preprocess": "plain"}),
    "LSUN 64": ("lsun", Lsun, {"resolution": 64}),
    "STL-10 48": ("stl", Stl10, {"verify": False}),
}


def pictures(size: tuple[int, int], number: int) -> Iterator[Any]:
    """Pillow images: random pieces of two real photographs, with a little noise against equal files."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    for i in range(number):
        photo = photographs[i % 2]
        scale = random.uniform(0.6, 1)
        width, height = min(int(640 * scale), 640), min(int(640 * scale * size[1] / size[0]), 427)
        left, top = int(random.integers(0, 641 - width)), int(random.integers(0, 428 - height))
        piece = photo.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(piece, np.int16) + random.integers(-6, 7, (size[1], size[0], 3), dtype=np.int16)
        yield Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_sets(root: Path, number: int) -> None:
    """``number`` JPEGs, twice as many WebPs, and eight times as many pictures of STL-10's size."""
    import lmdb

    for i, picture in enumerate(pictures((500, 375), number)):
        wnid = f"n{i % CLASSES:08d}"
        folder = root / "imagenet" / "train" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{wnid}_{i}.JPEG", quality=92)
    database = root / "lsun" / "bedroom_train_lmdb"
    database.mkdir(parents=True)
    with lmdb.open(str(database), map_size=1 << 34) as env, env.begin(write=True) as transaction:
        for i, picture in enumerate(pictures((341, 256), 2 * number)):
            out = io.BytesIO()
            picture.save(out, "WEBP", quality=75)
            transaction.put(f"{i * 7919:040x}".encode(), out.getvalue())
    (root / "stl").mkdir()
    with open(root / "stl" / "unlabeled_X.bin", "wb") as file:
        for picture in pictures((SIDE, SIDE), number):
            file.write(np.asarray(picture).transpose(2, 1, 0).tobytes() * 8)


def prepare(case: str, root: Path) -> dict[str, float]:
    """A: in this process, as ``ganlab data prepare`` does."""
    folder, dataset, options = CASES[case]
    before, start = _processor(), time.perf_counter()
    images = len(dataset(str(root / folder), **options).load())
    seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return _told(images, seconds, _processor() - before) | {"main": peaks[0], "others": peaks[1]}


def decode_alone(case: str, root: Path) -> dict[str, float]:
    """B: a pool that decodes the same images and throws them away; its start is not counted."""
    folder, _, options = CASES[case]
    jobs: list[tuple[Any, ...]]
    if folder == "stl":
        count = (root / "stl" / "unlabeled_X.bin").stat().st_size // IMAGE_BYTES
        jobs = [(_resize_some, str(root / "stl" / "unlabeled_X.bin"), i, 64) for i in range(0, count, 64)]
    else:
        rule = Rule(options["resolution"]) if folder == "lsun" else ImageNetRule(**options)
        files = _contents(root, folder)
        jobs = [(_decode_some, files[i : i + 32], rule) for i in range(0, len(files), 32)]
    with ProcessPoolExecutor(num_cores(), mp_context=get_context("spawn")) as pool:
        list(pool.map(_warm, range(4 * num_cores())))
        start = time.perf_counter()
        done = [pool.submit(*job) for job in jobs]
        told = [future.result() for future in done]
        seconds = time.perf_counter() - start
    return _told(sum(n for n, _ in told), seconds, sum(cpu for _, cpu in told))


def read_batches(case: str, root: Path) -> dict[str, float]:
    """Random batches of 64 from the memory map, as training reads what does not fit ``data_memory_gb``."""
    from ganlab.data.base import Batches

    folder, dataset, options = CASES[case]
    images = dataset(str(root / folder), **options).load()
    batches = Batches(images, "cpu", seed=0, data_memory_gb=0)
    size, number = min(64, len(images)), 200
    batches.batch(0, size)
    start = time.perf_counter()
    for i in range(1, number + 1):
        batches.batch(size * i, size)
    seconds = time.perf_counter() - start
    batches.close()
    return _told(size * number, seconds, 0.0)


def _contents(root: Path, folder: str) -> list[bytes]:
    if folder == "imagenet":
        return [path.read_bytes() for path in sorted((root / folder).rglob("*.JPEG"))]
    import lmdb

    path = str(root / "lsun" / "bedroom_train_lmdb")
    with lmdb.open(path, readonly=True, lock=False) as env, env.begin() as transaction:
        return [value for _, value in transaction.cursor()]


def _decode_some(files: list[bytes], rule: Rule) -> tuple[int, float]:
    start = time.process_time()
    for data in files:
        decode(data, rule)
    return len(files), time.process_time() - start


def _resize_some(path: str, first: int, number: int) -> tuple[int, float]:
    start = time.process_time()
    raw = np.fromfile(path, np.uint8, number * IMAGE_BYTES, offset=first * IMAGE_BYTES)
    images = raw.reshape(-1, 3, SIDE, SIDE).transpose(0, 1, 3, 2)
    resize_block(images, 48, "bilinear")
    return len(images), time.process_time() - start


def _warm(_: int) -> None:
    time.sleep(0.05)


def _processor() -> float:
    """Seconds of processor time of this process and of those it has waited for."""
    return sum(os.times()[:4])


def _told(images: int, seconds: float, processor: float) -> dict[str, float]:
    return {"rate": images / seconds, "cpu": processor / images}


MEASURES = {"prepare": prepare, "decode": decode_alone, "read": read_batches}


def measured(what: str, case: str, root: Path, cache: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", what, case, "--folder", str(root)]
    environment = {**os.environ, "GANLAB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=600, help="JPEGs of the ImageNet-like set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="keep the sets here, and use them again")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "CASE"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(MEASURES[words.one[0]](words.one[1], Path(words.folder))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(words.folder or temporary)
        if not (root / "stl").is_dir():
            write_sets(root, words.images)
        print("| set | images/s | decoder alone | share | CPU ms/image | alone | share | map | memory |")
        print("|---|---|---|---|---|---|---|---|---|")
        for case in CASES:
            a, b, cache = [], [], Path(temporary)
            for i in range(words.rounds):
                cache = Path(temporary) / f"cache-{case}-{i}"
                a.append(measured("prepare", case, root, cache))
                b.append(measured("decode", case, root, cache))
            read = measured("read", case, root, cache)["rate"]
            print(_row(case, a, b, read), flush=True)


def _row(case: str, a: list[dict[str, float]], b: list[dict[str, float]], read: float) -> str:
    rates, times = [
        [statistics.median(one[name] for one in some) for some in (a, b)] for name in ("rate", "cpu")
    ]
    share = statistics.median(x["rate"] / y["rate"] for x, y in zip(a, b, strict=True))
    lean = statistics.median(y["cpu"] / x["cpu"] for x, y in zip(a, b, strict=True))
    unit = 1e6 if sys.platform == "darwin" else 1e3
    main, others = (max(one[name] for one in a) / unit for name in ("main", "others"))
    fast = f"{rates[0]:,.0f} | {rates[1]:,.0f} | {share:.0%}"
    cheap = f"{1e3 * times[0]:.2f} | {1e3 * times[1]:.2f} | {lean:.0%}"
    return f"| {case} | {fast} | {cheap} | {read:,.0f} images/s | {main:.0f} + {others:.0f} MB |"


if __name__ == "__main__":
    main()
