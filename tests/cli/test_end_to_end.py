"""ImageNet from its true format to samples: prepare, train, score, look."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganlab.cli import main

RNG = np.random.default_rng(3)
SMALL = ["steps=2", "d_steps=1", "batch_size=8", "g_batch_size=8", "eval_every=0", "device=cpu", "threads=1"]
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


def test_from_the_archive_to_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixel_features: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    name, path = imagenet(tmp_path / "data")
    assert main.main(["data", "prepare", name, path, "resolution=128"]) == 0
    words = ["+experiment=projection_imagenet", "architecture.width=0.02", "accumulate=2", *SMALL, *SCORES]
    assert main.main(["train", *words, "run_dir=run", f"dataset.{path}"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert (result["status"], result["step"], result["num_classes"]) == ("finished", 2, 3)
    assert result["scores"]["last"]["values"]["fid_cifar"] > 0
    assert main.main(["evaluate", "run", "metric.protocol.seed=1", "metric=[is]"]) == 0
    assert len(list(Path("run/evaluations").glob("*.json"))) == 1
    assert main.main(["sample", "run", "n=6", "columns=3", "interpolations=2", "out=pictures"]) == 0
    single = Image.open(sorted(Path("pictures").glob("*0.png"))[0])
    assert single.size == (128, 128)
