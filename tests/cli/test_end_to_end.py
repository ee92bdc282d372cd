"""The papers' large data sets from their true formats to samples: prepare, train, score, look."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganlab.cli import main

RNG = np.random.default_rng(3)
SMALL = ["steps=2", "d_steps=1", "batch_size=4", "g_batch_size=4", "eval_every=0", "device=cpu", "threads=1"]
SMALL += ["lr_decay=none", "lr_decay_start=0"]
SCORES = ["metric=[is,fid]", "metric.extractor=cifar", "metric.protocol=smoke", "metric.progress=null"]
SCORES += ["metric.protocol.fid_n_real=0", "metric.protocol.is_n_fake=100", "metric.protocol.fid_n_fake=100"]


def picture(size: tuple[int, int], kind: str, mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode).save(data, kind)
    return data.getvalue()


def imagenet(root: Path) -> list[str]:
    for split, n in (("train", 6), ("val", 3)):
        for wnid in ("n01440764", "n01443537", "n01484850"):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(n):
                name = folder / f"{wnid}_{i}.JPEG"
                name.write_bytes(picture((300, 270), "JPEG", "L" if i == 1 else "RGB"))
    return ["imagenet", f"path={root}"]


def stl10(root: Path) -> list[str]:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, n in (("train", 12), ("test", 10), ("unlabeled", 16)):
        RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(n, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    return ["stl10", f"path={root}", "dataset.verify=false"]


@pytest.mark.parametrize(
    ("make", "chosen", "size"),
    [
        (imagenet, ["+experiment=projection_imagenet", "architecture.width=0.02", "accumulate=2"], 128),
        (stl10, ["+experiment=sngan_stl", "architecture.width=0.05"], 48),
    ],
    ids=["projection_imagenet", "sngan_stl"],
)
def test_from_the_archive_to_samples(
    make: Callable[[Path], list[str]],
    chosen: list[str],
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixel_features: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    name, *keys = make(tmp_path / "data")
    assert main.main(["data", "prepare", name, *keys, f"resolution={size}"]) == 0
    words = [
        *chosen,
        *SMALL,
        *SCORES,
        "run_dir=run",
        *(f"dataset.{k.removeprefix('dataset.')}" for k in keys),
    ]
    if "accumulate=2" in words:
        words[words.index("batch_size=4")] = "batch_size=8"  # micro batches of 4
        words[words.index("g_batch_size=4")] = "g_batch_size=8"
    assert main.main(["train", *words]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert (result["status"], result["step"]) == ("finished", 2)
    assert result["num_classes"] == (3 if name == "imagenet" else 0)
    assert result["scores"]["last"]["values"]["fid_cifar"] > 0
    again = ["metric.protocol.seed=1", "metric=[is]"]
    assert main.main(["evaluate", "run", *again]) == 0
    assert len(list(Path("run/evaluations").glob("*.json"))) == 1
    assert main.main(["sample", "run", "n=6", "columns=3", "interpolations=2", "out=pictures"]) == 0
    single = Image.open(sorted(Path("pictures").glob("*0.png"))[0])
    assert single.size == (size, size)
