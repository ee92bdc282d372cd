"""Data sets in their true formats for ``prepare_speed.py``, out of scikit-learn's two photos."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.stl10 import SIDE

CLASSES = 10
ARCHIVE = "small.tar.xz"
MAPS = {32: 80_000, 64: 50_000, 128: 5_000}  # images by pixels: 246 to 614 MB, more than caches hold


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
    """``number`` JPEGs, twice as many WebPs, eight times as many of STL-10's, 50,000 of CIFAR-10's."""
    _imagenet(root / "imagenet", number)
    _lsun(root / "lsun", number)
    _cifar(root / "cifar")
    (root / "stl").mkdir()
    with open(root / "stl" / "unlabeled_X.bin", "wb") as file:
        for picture in pictures((SIDE, SIDE), number):
            file.write(np.asarray(picture).transpose(2, 1, 0).tobytes() * 8)
    with tarfile.open(root / ARCHIVE, "w:xz", preset=1) as archive:
        for i, picture in enumerate(pictures((32, 32), 10 * number)):
            data = _saved(picture, "JPEG", 75)
            info = tarfile.TarInfo(f"train/{i % CLASSES}/{i:05d}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    random = np.random.default_rng(0)
    for side, count in MAPS.items():
        with open(map_file(root, side), "wb") as file:
            for _ in range(0, count, 1000):
                file.write(random.integers(0, 256, (1000, 3, side, side), np.uint8).data)


def map_file(root: Path, side: int) -> Path:
    return root / f"map{side}.u8"


def _imagenet(root: Path, number: int) -> None:
    for i, picture in enumerate(pictures((500, 375), number)):
        folder = root / "train" / f"n{i % CLASSES:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{i % CLASSES:08d}_{i}.JPEG").write_bytes(_saved(picture, "JPEG", 92))


def _lsun(root: Path, number: int) -> None:
    import lmdb

    database = root / "bedroom_train_lmdb"
    database.mkdir(parents=True)
    with lmdb.open(str(database), map_size=1 << 34) as env, env.begin(write=True) as transaction:
        for i, picture in enumerate(pictures((341, 256), 2 * number)):
            transaction.put(f"{i * 7919:040x}".encode(), _saved(picture, "WEBP", 75))


def _cifar(root: Path) -> None:
    """The binary version: a byte of label and 3,072 of pixels an image, 10,000 images a file."""
    root.mkdir()
    pieces = [np.asarray(p).transpose(2, 0, 1).tobytes() for p in pictures((32, 32), 1000)]
    for batch in range(1, 6):
        records = (bytes([i % 10]) + pieces[i % 1000] for i in range(10_000))
        (root / f"data_batch_{batch}.bin").write_bytes(b"".join(records))


def _saved(picture: Any, kind: str, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, quality=quality)
    return out.getvalue()
