"""ganlab from Python, and scores of images that no run made."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ganlab
from ganlab.cli.main import main
from ganlab.data.digits import Digits
from ganlab.errors import ConfigError, DataError

SCORING = ["metric=[fid]", "metric.protocol=smoke", "metric.extractor=cifar", "threads=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 digits: a folder, a zip and an .npz."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.asarray(Digits(resolution=32).load().images)[:600]
    (root / "folder").mkdir()
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for i, x in enumerate(pixels):
            path = root / "folder" / f"{i:04d}.png"
            Image.fromarray(x[0]).save(path)
            archive.write(path, path.name)
    np.savez(root / "all.npz", pixels.transpose(0, 2, 3, 1))
    return root


@pytest.mark.slow
def test_a_folder_a_zip_and_an_array_of_the_same_images_score_the_same(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset=digits", *SCORING]
    records = [ganlab.score(images / name, words) for name in ("folder", "all.npz")]
    assert main(["score", str(images / "all.zip"), *words, "--json"]) == 0
    records.append(json.loads(capsys.readouterr().out))
    assert all(r["values"] == records[0]["values"] for r in records)
    assert len({r["protocol_id"] for r in records}) == 1


def test_what_cannot_be_scored(images: Path, tmp_path: Path) -> None:
    digits = ["dataset=digits"]
    with pytest.raises(ConfigError, match="dataset: missing"):
        ganlab.score(images / "folder", SCORING)
    with pytest.raises(DataError, match=r"ttur50k scores 50000 images, .*folder has 600"):
        ganlab.score(images / "folder", [*digits, "metric.extractor=cifar", "metric.protocol=ttur50k"])
    with pytest.raises(DataError, match="32x32 pixels, not 16x16"):
        ganlab.score(images / "folder", ["dataset=digits", "dataset.resolution=16", *SCORING])
    np.savez(tmp_path / "float.npz", np.zeros((9, 32, 32, 1), np.float32))
    with pytest.raises(DataError, match=r"is float32 of shape .*give uint8 of shape \(N, 32, 32, 1\)"):
        ganlab.score(tmp_path / "float.npz", ["dataset=digits", *SCORING])
    np.savez(tmp_path / "pickled.npz", np.array([{}], dtype=object))
    np.savez(tmp_path / "empty.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    for name in ("pickled", "empty", "text", "missing"):
        with pytest.raises(DataError, match="no array of images can be read"):
            ganlab.score(tmp_path / f"{name}.npz", ["dataset=digits", *SCORING])


def test_train_load_and_sample(tmp_path: Path) -> None:
    words = ["dataset=digits", "architecture=dcgan", "architecture.width=0.03", "batch_size=8", "steps=2"]
    words += [*SCORING, "metric.progress=null", "eval_every=0", f"run_dir={tmp_path / 'run'}"]
    trained = ganlab.train([*words, "log_every=1"])
    run = ganlab.load(tmp_path / "run")
    assert (trained.step, run.step, run.config["steps"]) == (2, 2, 2)
    assert [r["step"] for r in run.metrics if r["kind"] == "train"] == [1, 2]
    samples = run.sample(5, seed=3)
    assert main(["sample", str(tmp_path / "run"), "n=5", "seed=3", f"out={tmp_path / 'out'}"]) == 0
    single = sorted((tmp_path / "out").glob("*00*.png"))[0]
    assert np.array_equal(np.asarray(Image.open(single)), samples[0, 0].numpy())
    with pytest.raises(ConfigError, match="no class 3; it is unconditional"):
        run.sample(1, label=3)
