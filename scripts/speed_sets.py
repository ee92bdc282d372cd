"""Datasets in their original formats for ``prepare_speed.py``, made from scikit-learn's two photos."""

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
MAPS = {32: 80_000, 64: 50_000, 128: 5_000}  # number of images by side: 246 to 614 MB, larger than CPU caches


def photos(size: tuple[int, int], number: int) -> Iterator[Any]:
    """Random crops of two real photos as Pillow images, with slight noise so that all files differ."""
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
    """Write ``number`` JPEGs, 2x as many WebPs, 8x as many STL-10 images, 10x in a tar, 50,000 CIFAR-10."""
    _imagenet(root / "imagenet", number)
    _lsun(root / "lsun", number)
    _cifar(root / "cifar")
    (root / "stl").mkdir()
    with open(root / "stl" / "unlabeled_X.bin", "wb") as file:
        for picture in photos((SIDE, SIDE), number):
            file.write(np.asarray(picture).transpose(2, 1, 0).tobytes() * 8)
    with tarfile.open(root / ARCHIVE, "w:xz", preset=1) as archive:
        for i, picture in enumerate(photos((32, 32), 10 * number)):
            data = _encode(picture, "JPEG", 75)
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
    for i, picture in enumerate(photos((500, 375), number)):
        folder = root / "train" / f"n{i % CLASSES:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{i % CLASSES:08d}_{i}.JPEG").write_bytes(_encode(picture, "JPEG", 92))


def _lsun(root: Path, number: int) -> None:
    import lmdb

    database = root / "bedroom_train_lmdb"
    database.mkdir(parents=True)
    with lmdb.open(str(database), map_size=1 << 34) as env, env.begin(write=True) as transaction:
        for i, picture in enumerate(photos((341, 256), 2 * number)):
            transaction.put(f"{i * 7919:040x}".encode(), _encode(picture, "WEBP", 75))


def _cifar(root: Path) -> None:
    """The binary version: one label byte and 3,072 pixel bytes per image, 10,000 images per file."""
    root.mkdir()
    pieces = [np.asarray(p).transpose(2, 0, 1).tobytes() for p in photos((32, 32), 1000)]
    for batch in range(1, 6):
        records = (bytes([i % 10]) + pieces[i % 1000] for i in range(10_000))
        (root / f"data_batch_{batch}.bin").write_bytes(b"".join(records))


def _encode(picture: Any, kind: str, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, quality=quality)
    return out.getvalue()
