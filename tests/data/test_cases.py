"""Inputs that users of GAN tools report trouble with, by the commands that they would type.

They are made by a script beside this checkout, from real pictures; without it these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ganlab.cli import main

MAKE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "make.py"
pytestmark = pytest.mark.skipif(not MAKE.is_file(), reason="no ../shared/cases/make.py beside this checkout")
LINK = r"set\.zip/set/\w+: is a broken link"
DIFFER = r"dataset\.split: is not set, but the classes of test, train differ"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(MAKE), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def prepared(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code, and what was printed."""
    code = main.main(["data", "prepare", *words])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    assert not Path("crash.txt").exists()
    return code, out + err


@pytest.mark.parametrize(
    ("dataset", "path", "words", "code", "says"),
    [
        ("folder", "links/set", "", 0, "80 images"),
        ("folder", "links/set.zip", "", 3, LINK),
        ("folder", "tar_dot/pets.tar", "", 0, "80 images"),
        ("folder", "tar_hardlinks/photos", "", 0, "60 images"),
        ("folder", "tar_hardlinks/photos.tar", "", 0, "60 images"),
        ("folder", "split_unset/pets", "", 3, DIFFER),
        ("folder", "split_unset", "", 3, DIFFER),
        ("folder", "split_unset/pets", "split=train", 0, "40 images"),
        ("folder", "split_unset", "split=test", 0, "20 images"),
        ("folder", "stylegan_zip/ds.zip", "", 0, "120 images"),
        ("folder", "zip_bad_name/photos.zip", "", 3, r"photos\.zip: .*marked as UTF-8 but is not"),
        ("folder", "png_metadata/photos", "", 0, "10 images"),
        ("mnist", "mnist_names/dot", "split=test", 0, "10,000 images"),
        ("mnist", "mnist_names/nested", "split=test", 0, "10,000 images"),
        ("mnist", "mnist_names/dot/t10k-images.idx3-ubyte", "split=test", 3, "give the folder"),
    ],
)  # fmt: skip
def test_case(
    cases: Path, capfd: pytest.CaptureFixture[str], dataset: str, path: str, words: str, code: int, says: str
) -> None:
    done = prepared(capfd, dataset, f"path={cases / path}", *words.split())
    assert done[0] == code, done[1]
    assert re.search(says, done[1]), done[1]
    assert code == 0 or done[1].count("\n") == 1


def test_classes(cases: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    unpacked = tmp_path / "ds"
    shutil.unpack_archive(cases / "stylegan_zip" / "ds.zip", unpacked)
    pets = "cat 20, dog 20, ship 20, truck 20"
    for path, classes in (
        (cases / "links" / "set", pets),
        (cases / "tar_dot" / "pets.tar", pets),
        (cases / "stylegan_zip" / "ds.zip", "0 40, 1 40, 2 40"),
        (unpacked, "0 40, 1 40, 2 40"),
    ):
        assert main.main(["data", "check", "folder", f"path={path}"]) == 0
        assert f"classes: {classes}\n" in capfd.readouterr().out


def test_training_tells_of_a_lost_link(cases: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["dataset=folder", f"dataset.path={cases / 'links' / 'set.zip'}", "run_dir=run"]
    assert main.main(["train", *words]) == 3
    assert "is a broken link" in capfd.readouterr().err


def test_mended_files_are_seen(cases: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = cases / "mended" / "w"
    words = (f"path={root}", "resolution=32")
    assert "imagenet: 39 images" in prepared(capfd, "imagenet", *words)[1]
    shutil.copy(cases / "mended" / "good.JPEG", root / "train" / "n01440764" / "n01440764_7.JPEG")
    assert main.main(["data", "check", "imagenet", *words]) == 0
    out = capfd.readouterr().out
    assert "verified" not in out
    assert "outdated, packed from an earlier version of the files: " in out
    assert "imagenet: 40 images" in prepared(capfd, "imagenet", *words)[1]
    assert main.main(["data", "check", "imagenet", *words]) == 0
    assert ", verified" in capfd.readouterr().out
