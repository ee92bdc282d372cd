"""Measurements of ``prepare_speed.py``, each run in its own process: seconds, images/s, CPU time."""

from __future__ import annotations

import contextlib
import os
import resource
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from speed_sets import ARCHIVE, MAPS, map_file

from ganlab.data.cifar10 import Cifar10
from ganlab.data.folder import Folder
from ganlab.data.formats.images import Rule, decode, resize_block
from ganlab.data.imagenet import ImageNet, ImageNetRule
from ganlab.data.lsun import Lsun
from ganlab.data.packing.worker import KEEP_MEMORY, num_cores
from ganlab.data.stl10 import IMAGE_BYTES, SIDE, Stl10

CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "ImageNet 128, paper": ("imagenet", ImageNet, {"resolution": 128}),
    "ImageNet 64, plain": ("imagenet", ImageNet, {"resolution": 64, "preprocess": "plain"}),
    "LSUN 64": ("lsun", Lsun, {"resolution": 64}),
    "STL-10 48": ("stl", Stl10, {"verify": False}),
    "tar.xz 32": (ARCHIVE, Folder, {}),
}
BATCH, TURNS = 64, {32: 600, 64: 300, 128: 75}  # batches per measurement: half an epoch


def ready(case: str, root: Path) -> dict[str, float]:
    import torch

    from ganlab.data.batches import Sampler
    from ganlab.samples.images import to_float

    Cifar10(str(root / "cifar"), verify=False).load()
    torch.zeros(1).float()
    clock = Clock()
    images = Cifar10(str(root / "cifar"), verify=False).load()
    to_float(Sampler(images, "cpu", seed=0).batch(0, BATCH).x)
    return clock.result(1)


def read_alone(case: str, root: Path) -> dict[str, float]:
    folder = Cifar10(str(root / "cifar"), verify=False).pack_folder("train")
    assert folder is not None
    clock = Clock()
    np.fromfile(folder / "images.u8", np.uint8)
    return clock.result(1)


def prepare(case: str, root: Path) -> dict[str, float]:
    folder, dataset, options = CASES[case]
    with MemoryMonitor() as monitor:
        clock = Clock()
        images = len(dataset(str(root / folder), **options).load())
        return clock.result(images) | {"main": _peak("self"), "others": monitor.peak}


def decode_alone(case: str, root: Path) -> dict[str, float]:
    """Decode the same images in a process pool and discard them."""
    folder, _, options = CASES[case]
    os.environ.update(KEEP_MEMORY)  # as in the processes it is compared with
    with ProcessPoolExecutor(num_cores(), mp_context=get_context("spawn")) as pool:
        list(pool.map(_warm, range(4 * num_cores())))
        files = [] if folder in ("stl", ARCHIVE) else _contents(root, folder)
        clock = Clock()
        jobs: list[tuple[Any, ...]]
        if folder == "stl":
            file = root / "stl" / "unlabeled_X.bin"
            count = file.stat().st_size // IMAGE_BYTES
            jobs = [(_resize_some, str(file), i, 64) for i in range(0, count, 64)]
        else:
            if folder == ARCHIVE:
                files = _unpack(root / ARCHIVE)
            rule = ImageNetRule(**options) if folder == "imagenet" else Rule(options.get("resolution", 32))
            size = 128 if folder == ARCHIVE else 32
            jobs = [(_decode_some, files[i : i + size], rule) for i in range(0, len(files), size)]
        futures = [pool.submit(*job) for job in jobs]
        outcomes = [future.result() for future in futures]
        result = clock.result(sum(n for n, _ in outcomes))
    unpacking = result["own"] if folder == ARCHIVE else 0.0
    return result | {"cpu": (unpacking + sum(cpu for _, cpu in outcomes)) / sum(n for n, _ in outcomes)}


def batches(case: str, root: Path) -> dict[str, float]:
    from ganlab.data.base import SampleSet
    from ganlab.data.batches import Sampler

    images, side = _map(case, root)
    sampler = Sampler(SampleSet(images, None, [], "", "map", "train"), "cpu", seed=0, data_memory_gb=0)
    return _turns(lambda i: sampler.batch(BATCH * i, BATCH), side, images, case)


def gather_alone(case: str, root: Path) -> dict[str, float]:
    images, side = _map(case, root)
    order = np.random.default_rng(0).permutation(len(images))
    out, host = np.empty((BATCH, *images.shape[1:]), np.uint8), np.asarray(images)
    return _turns(
        lambda i: np.take(host, order[BATCH * i :][:BATCH], axis=0, out=out, mode="clip"), side, images, case
    )


def floats(case: str, root: Path) -> dict[str, float]:
    import torch

    from ganlab.samples.images import to_float

    images, side = _map(case.partition(",")[0], root)
    x = torch.from_numpy(np.array(images[:BATCH]))
    dequantize = case.endswith("dequantized")
    return _turns(lambda _: to_float(x, dequantize), side, images, "")


def _map(case: str, root: Path) -> tuple[Any, int]:
    import torch

    torch.set_num_threads(1)
    side = int(case.split()[0])
    return np.memmap(map_file(root, side), np.uint8, "r", shape=(MAPS[side], 3, side, side)), side


def _turns(turn: Callable[[int], Any], side: int, images: Any, case: str) -> dict[str, float]:
    if "cold" in case:
        file = os.open(images.filename, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    number = TURNS[side] // (8 if "cold" in case else 1)
    turn(0)
    clock = Clock()
    for i in range(1, number):
        turn(i)
    return clock.result(BATCH * (number - 1))


def _contents(root: Path, folder: str) -> list[bytes]:
    if folder == "imagenet":
        return [path.read_bytes() for path in sorted((root / folder).rglob("*.JPEG"))]
    import lmdb

    path = str(root / "lsun" / "bedroom_train_lmdb")
    with lmdb.open(path, readonly=True, lock=False) as env, env.begin() as transaction:
        return [value for _, value in transaction.cursor()]


def _unpack(path: Path) -> list[bytes]:
    with tarfile.open(path) as archive:
        return [file.read() for member in archive if (file := archive.extractfile(member)) is not None]


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


def _peak(process: str) -> float:
    """Peak MB of a process, 0 outside Linux; ``ru_maxrss`` would include its parent's peak."""
    try:
        return int(Path(f"/proc/{process}/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    except (OSError, IndexError):  # the process has exited
        return 0.0


class MemoryMonitor(threading.Thread):
    """Tracks the ``peak`` memory of the largest child process, ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._done = 0.0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.1):
            for listing in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    self.peak = max([self.peak, *map(_peak, listing.read_text().split())])

    def __enter__(self) -> MemoryMonitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


class Clock:
    """Measures wall-clock time, and CPU time of this process and of finished child processes."""

    def __init__(self) -> None:
        self.start, self.own_start, self.child_start = time.perf_counter(), time.process_time(), _child_cpu()

    def result(self, images: int) -> dict[str, float]:
        seconds, own_cpu = time.perf_counter() - self.start, time.process_time() - self.own_start
        cpu = own_cpu + _child_cpu() - self.child_start
        return {"seconds": seconds, "rate": images / seconds, "cpu": cpu / images, "own": own_cpu}


def _child_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


MEASURES = {f.__name__: f for f in (ready, read_alone, prepare, decode_alone, batches, gather_alone, floats)}
