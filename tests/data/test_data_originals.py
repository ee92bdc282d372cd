"""CIFAR-10, STL-10 and MNIST in their true formats, on small sets: read, verified, refused, never run."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from image_sets import as_folder, as_tar, own_cache  # noqa: F401
from PIL import Image

from ganlab.cli import doctor, main
from ganlab.data import cifar10, mnist, stl10
from ganlab.data.cifar10 import TRAIN, Cifar10
from ganlab.data.formats.unpickle import unpickle
from ganlab.data.mnist import Mnist
from ganlab.data.packing import download, originals, pack
from ganlab.data.packing.originals import OriginalDataset
from ganlab.data.stl10 import Stl10
from ganlab.errors import DataError, EnvError

RNG = np.random.default_rng(0)
EACH = 12  # images in a batch of CIFAR-10; the original has 10,000
PIXELS = {name: RNG.integers(0, 256, (EACH, 3072), dtype=np.uint8) for name in [*TRAIN, "test_batch"]}
LABELS = {name: RNG.integers(0, 10, EACH).tolist() for name in PIXELS}
STL = {
    part: RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
    for part, n in {"train": 20, "test": 7, "unlabeled": 300}.items()
}
STL_LABELS = {part: np.arange(len(STL[part])) % 10 for part in ("train", "test")}
DIGITS = {part: RNG.integers(0, 256, (n, 28, 28), np.uint8) for part, n in {"train": 40, "t10k": 23}.items()}
DIGIT_LABELS = {part: RNG.integers(0, 10, len(images), np.uint8) for part, images in DIGITS.items()}
REAL = SHARED / "mnist-t10k"


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2's cPickle did: as byte strings, protocol 2."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write(b"U" + bytes([len(data)]) + data if short else b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2(value: Any) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, 2).dump(value)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(name: str, **changes: Any) -> dict[str, Any]:
    files = [f"{i}.png" for i in range(EACH)]
    return {"batch_label": name, "labels": LABELS[name], "data": PIXELS[name], "filenames": files} | changes


def cifar_pickles() -> dict[str, bytes]:
    meta = {"num_cases_per_batch": EACH, "label_names": cifar10.CLASSES, "num_vis": 3072}
    files = {"batches.meta": python2(meta), "readme.html": b"<FONT>"}
    return files | {name: python2(batch(name)) for name in PIXELS}


def cifar_records() -> dict[str, bytes]:
    files = {"batches.meta.txt": "\n".join(cifar10.CLASSES).encode() + b"\n\n"}
    for name in PIXELS:
        rows = zip(LABELS[name], PIXELS[name], strict=True)
        files[f"{name}.bin"] = b"".join(bytes([label]) + row.tobytes() for label, row in rows)
    return files


def stl_files() -> dict[str, bytes]:
    """As the authors' MATLAB wrote them: each plane column by column, labels 1 to 10."""
    files = {f"{part}_X.bin": images.transpose(0, 1, 3, 2).tobytes() for part, images in STL.items()}
    files |= {f"{part}_y.bin": (y + 1).astype(np.uint8).tobytes() for part, y in STL_LABELS.items()}
    return files | {"class_names.txt": "\n".join(stl10.CLASSES).encode() + b"\n", "fold_indices.txt": b"1\n"}


def idx(magic: int, array: Any) -> bytes:
    """As the authors wrote them: the magic number and the sizes, big-endian, then bytes row by row."""
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def mnist_files(zipped: bool = True) -> dict[str, bytes]:
    plain = {f"{part}-images-idx3-ubyte": idx(0x803, DIGITS[part]) for part in DIGITS}
    plain |= {f"{part}-labels-idx1-ubyte": idx(0x801, DIGIT_LABELS[part]) for part in DIGITS}
    return {f"{n}.gz": gzip.compress(data) for n, data in plain.items()} if zipped else plain


def tar_gz(path: Path, files: dict[str, bytes], folder: str) -> Path:
    """The original's order is no order either."""
    return as_tar(path, {f"{folder}/{name}": data for name, data in reversed(files.items())})


KINDS: dict[str, tuple[type[OriginalDataset], Any, Callable[[], dict[str, bytes]], str, str]] = {
    "cifar10": (Cifar10, cifar10, cifar_pickles, "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar10 binary": (Cifar10, cifar10, cifar_records, "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    "stl10": (Stl10, stl10, stl_files, "stl10_binary", "stl10_binary.tar.gz"),
    "mnist": (Mnist, mnist, mnist_files, "MNIST/raw", "mnist.tar.gz"),
    "mnist unzipped": (Mnist, mnist, lambda: mnist_files(False), "mnist", "mnist.tar.gz"),
}
ALL: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, Any]]]] = {  # options; split -> images, labels
    "cifar10": (
        {},
        {
            split: (
                np.concatenate([PIXELS[n] for n in names]).reshape(-1, 3, 32, 32),  # planes of R, G, B
                [label for n in names for label in LABELS[n]],
            )
            for split, names in cifar10.BATCHES.items()
        },
    ),
    "stl10": (
        {"resolution": 96},
        {
            "train": (STL["train"], STL_LABELS["train"]),
            "test": (STL["test"], STL_LABELS["test"]),
            "unlabeled": (STL["unlabeled"], None),
            "train+unlabeled": (np.concatenate([STL["train"], STL["unlabeled"]]), None),
        },
    ),
    "mnist": (
        {"resolution": 28},
        {
            split: (DIGITS[part][:, None], DIGIT_LABELS[part])
            for split, part in (("train", "train"), ("test", "t10k"))
        },
    ),
}


def own(path: Path, kind: str, **options: Any) -> OriginalDataset:
    return KINDS[kind][0](str(path), verify=False, **options)  # type: ignore[call-arg]


def written(place: Path, kind: str, changes: dict[str, bytes | None] | None = None) -> Path:
    """The folder of a kind's files, a few of them changed."""
    _, _, files, folder, _ = KINDS[kind]
    return as_folder(place / folder, {n: d for n, d in (files() | (changes or {})).items() if d is not None})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["folder around it", "archive", "folder with it"])
def test_every_layout_gives_the_same_sets(tmp_path: Path, kind: str, layout: str) -> None:
    if kind.startswith("mnist") and layout == "folder with it":
        pytest.skip("MNIST comes in no archive")
    _, module, files, folder, archive = KINDS[kind]
    place = tmp_path / "in"
    path = {
        "folder around it": lambda: written(place, kind) and place,
        "archive": lambda: tar_gz(place / archive, files(), folder),
        "folder with it": lambda: tar_gz(place / archive, files(), folder).parent,
    }[layout]()
    options, sets = ALL[kind.split()[0]]
    for split, (images, labels) in sets.items():
        data = own(path, kind, **options).load(split=split)
        assert np.array_equal(data.images, images)
        assert (data.labels is None) == (labels is None)
        assert labels is None or np.array_equal(data.labels, labels)
        assert data.classes == ([] if labels is None else module.CLASSES)
        assert (data.name, data.split) == (kind.split()[0], split)
        assert data.manifest["source"]["read_from"].startswith(str(place))


def test_files_of_kaggle(tmp_path: Path) -> None:
    """MNIST's with a dot, each in a folder of its name, and links to them."""
    for zipped in (True, False):
        here = tmp_path / str(zipped)
        dotted = as_folder(
            here / "dot", {n.replace("-idx", ".idx"): d for n, d in mnist_files(zipped).items()}
        )
        as_folder(here / "links", {})
        for name, data in mnist_files(zipped).items():
            as_folder(here / "nested" / name, {name: data})
            (here / "links" / name).symlink_to(here / "nested" / name / name)
        for place in ("dot", "nested", "links"):
            data_set = own(here / place, "mnist", resolution=28).load()
            assert np.array_equal(data_set.images[:, 0], DIGITS["train"])
    name = "train-images.idx3-ubyte"
    with pytest.raises(DataError, match=rf"{name} is one of the files of mnist; give the folder .*/dot$"):
        own(dotted / name, "mnist").load()
    (dotted / name).rename(tmp_path / "renamed")
    with pytest.raises(DataError, match=r"renamed is not a folder, zip or tar \(it is an IDX file"):
        own(tmp_path / "renamed", "mnist").load()


@pytest.mark.parametrize(
    ("kind", "resolution", "resample", "first"),
    [
        ("cifar10", 48, "bilinear", PIXELS["data_batch_1"][0].reshape(3, 32, 32)),
        ("stl10", 48, "lanczos", STL["train"][0]),
        ("mnist", 16, "bicubic", DIGITS["train"][:1]),
    ],
)
def test_pillow_resamples(tmp_path: Path, kind: str, resolution: int, resample: str, first: Any) -> None:
    data = own(written(tmp_path, kind), kind, resolution=resolution, resample=resample).load(split="train")
    picture = Image.fromarray(first[0] if len(first) == 1 else first.transpose(1, 2, 0))
    method = Image.Resampling[resample.upper()]
    expected = np.asarray(picture.resize((resolution, resolution), method))
    assert np.array_equal(data.images[0], expected[None] if len(first) == 1 else expected.transpose(2, 0, 1))
    assert data.manifest["counts"] == ({"enlarged": 60} if kind == "cifar10" else {})


def test_defaults_and_borders(tmp_path: Path) -> None:
    data = own(written(tmp_path, "stl10"), "stl10").load()
    assert (data.images.shape, data.split) == ((300, 3, 48, 48), "unlabeled")
    assert data.manifest["transform"] == {"resolution": 48, "verify": False, "resample": "bilinear"}
    digits = own(written(tmp_path, "mnist"), "mnist").load()
    assert np.array_equal(digits.images[:, 0, 2:30, 2:30], DIGITS["train"])
    assert digits.images.sum() == DIGITS["train"].sum(), "the border is black"


@pytest.mark.parametrize("kind", KINDS)
def test_verification(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, module, files, _, _ = KINDS[kind]
    path = written(tmp_path, kind)
    fix = r"download it again, or set dataset\.verify=false for your own data in this format"
    with pytest.raises(DataError, match=rf"checksum [0-9a-f]+, expected [0-9a-f]+; {fix}$"):
        dataset(str(path)).load()  # type: ignore[call-arg]
    for name, data in files().items():
        if (key := name.removesuffix(".gz")) in module.SUMS:
            plain = gzip.decompress(data) if name.endswith(".gz") else data
            method = "sha256" if len(module.SUMS[key]) == 64 else "md5"
            monkeypatch.setitem(module.SUMS, key, hashlib.new(method, plain).hexdigest())
    for split, (images, _) in ALL[kind.split()[0]][1].items():
        assert len(dataset(str(path)).load(split=split)) == len(images)  # type: ignore[call-arg]


X, Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PLAIN, ZIPPED = mnist_files(False), mnist_files()
NO_BATCH = "not a batch of CIFAR-10"
DAMAGE: list[tuple[str, dict[str, bytes | None], str]] = [
    ("cifar10", {"data_batch_3": None}, "contains no data_batch_3; give the original archive"),
    *(
        ("cifar10", {"data_batch_1": content}, f"data_batch_1: {NO_BATCH} ({says}")
        for content, says in (
            (b"hello", "not a valid pickle"),
            (python2(batch("data_batch_1"))[:-200], "not a valid pickle"),
            (python2({"data": 1, "fine_labels": [1]}), "it has no data and labels, only data, fine_labels"),
            (python2(batch("data_batch_1", labels=[1, 2])), "2 labels for 12 images"),
            (python2(batch("data_batch_1", labels=[10] * EACH)), "label 10 in a set of 10 classes"),
            (python2(batch("data_batch_1", labels=[0.5] * EACH)), "labels are not a list of integers"),
            (python2(batch("data_batch_1", data=PIXELS["data_batch_1"] * 1.0)), "data is not uint8 (n, "),
        )
    ),
    *(
        ("cifar10 binary", {"data_batch_1.bin": content}, f"data_batch_1.bin: {NO_BATCH}")
        for content in (b"", bytes([10]) + bytes(3072), bytes(3073 * 2 + 1))
    ),
    ("stl10", {"train_y.bin": None}, "contains no train_y.bin; give the original"),
    ("stl10", {"train_X.bin": bytes(55297)}, "train_X.bin: 55297 bytes are not whole images of 27648"),
    ("stl10", {"train_y.bin": bytes(range(1, 8))}, "train_y.bin: 7 labels for 20 images"),
    ("stl10", {"train_y.bin": bytes(20)}, "train_y.bin: labels from 0 to 0, expected 1 to 10"),
    *(
        ("mnist unzipped", changes, line)
        for changes, line in (
            ({X: PLAIN[Y]}, f"{X}: begins with 0x00000801; an IDX file of images with 0x00000803"),
            ({X: PLAIN[X][:-1]}, f"{X}: 31359 bytes after its header, which declares 40x28x28 = 31360"),
            ({X: PLAIN[X][:9]}, f"{X}: ends within its header, after 9 of 16 bytes"),
            ({X: struct.pack(">4I", 0x803, *[2**32 - 1] * 3)}, f"{X}: 0 bytes after its header"),
            ({Y: idx(0x801, DIGIT_LABELS["train"][:39])}, f"{Y}: 39 labels for 40 images"),
            ({Y: idx(0x801, DIGIT_LABELS["train"] + 1)}, f"{Y}: label 10 in a set of 10 classes"),
            ({X: idx(0x803, np.zeros((40, 14, 28), np.uint8))}, f"{X}: images of 28x14 pixels, not 28x28"),
            ({X: idx(0x803, np.zeros((0, 28, 28), np.uint8)), Y: idx(0x801, DIGIT_LABELS["train"][:0])},
             f"{X}: contains no images"),
            ({Y: None}, f"contains no {Y}.gz; put it there, or set dataset.split=test: its files are there"),
            ({X: None, Y: None}, f"contains no {X}.gz and no {Y}.gz; put them there, or set dataset.split="),
        )
    ),
    *(
        ("mnist", {f"{X}.gz": content}, f"{X}.gz: not a complete gzip file (")
        for content in (b"no gzip", ZIPPED[f"{X}.gz"][:200])
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "line"), DAMAGE, ids=[line for _, _, line in DAMAGE])
def test_damaged_files_are_a_line(
    kind: str, changes: dict[str, bytes | None], line: str, tmp_path: Path
) -> None:
    path = written(tmp_path, kind, changes)
    with pytest.raises(DataError) as caught:
        own(path, kind).load(split="train")
    (mistake,) = caught.value.mistakes
    assert line in str(mistake)
    assert "\n" not in str(mistake)


@pytest.mark.parametrize("kind", ["cifar10", "stl10", "mnist"])
def test_what_is_not_there_or_cut(kind: str, tmp_path: Path, cache: Path) -> None:
    dataset, _, files, folder, archive = KINDS[kind]
    with pytest.raises(DataError, match=r"^dataset\.path: .*nowhere does not exist"):
        own(tmp_path / "nowhere", kind).load()
    first = download.remotes(kind)[0]
    with pytest.raises(DataError, match=rf"in contains no {kind}; looked for {first.file}, .*{folder}"):
        own(as_folder(tmp_path / "in", {"other": b""}), kind).load()
    path = tar_gz(tmp_path / archive, files(), folder)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=rf"{archive}: damaged archive"):
        own(path, kind).load()
    with pytest.raises(DataError, match=rf"dataset\.split: {kind} has no split 'tset'; did you mean 'test'"):
        own(path, kind).load(split="tset")
    with pytest.raises(EnvError) as caught:
        dataset().load()  # type: ignore[call-arg]
    assert str(caught.value) == (
        f"{first.file}: not found, and GANLAB_OFFLINE forbids {first.url}; put it in {cache}/downloads "
        f"({first.size:,} bytes, md5 {first.md5}) or set dataset.path"
    )
    assert not (cache / "downloads").exists()
    assert set(pack.info(dataset())["packs"].values()) == {None}  # type: ignore[call-arg]


# ---- CIFAR-10's pickles


def test_pickles_of_every_age(tmp_path: Path) -> None:
    names = {op.name for op, _, _ in pickletools.genops(cifar_pickles()["data_batch_1"])}
    assert {"BINSTRING", "SHORT_BINSTRING", "GLOBAL"} <= names, "Python 2's"
    assert not {"BINUNICODE", "STACK_GLOBAL", "SHORT_BINBYTES"} & names
    for protocol in (2, 4):
        newer = pickle.dumps(batch("data_batch_2"), protocol)
        data = own(written(tmp_path / str(protocol), "cifar10", {"data_batch_2": newer}), "cifar10").load()
        assert np.array_equal(data.images[EACH : 2 * EACH], PIXELS["data_batch_2"].reshape(-1, 3, 32, 32))


class Evil:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> list[bytes]:
    command = f"touch {canary}"
    calls: list[tuple[Any, ...]] = [
        (os.system, command),
        (eval, f"open({str(canary)!r}, 'w')"),
        (open, str(canary), "w"),
        (np.ndarray, (10**9,)),
        (__import__, "os"),
    ]
    return [pickle.dumps(Evil(*call), protocol) for call in calls for protocol in (0, 2, 4)] + [
        f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftS'b'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.",
        b"cnumpy\ndtype\n(S'V99'\nI0\nI1\ntR.",
        b"Pid\n.",
    ]


def test_pickles_never_run_code(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    refusals = r"references|without data|not a valid|codec|an array of type|external"
    for payload in payloads(canary):
        with pytest.raises(ValueError, match=refusals):
            unpickle(payload)
        assert not canary.exists()
    path = written(tmp_path, "cifar10", {"batches.meta": payloads(canary)[0]})
    with pytest.raises(DataError, match=r"batches\.meta: not the names of CIFAR-10's .*references posix"):
        own(path, "cifar10").load()
    assert not canary.exists()


# ---- MNIST's splits


def test_limit_and_rest_are_a_partition_by_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path, "mnist")
    chosen = own(path, "mnist", resolution=28, limit=15)
    assert chosen.splits() == ("train", "test", "rest")
    first, rest = chosen.load(), chosen.load(split="rest")
    assert (len(first), len(rest), len(chosen.load(split="test"))) == (15, 25, 23)
    together = np.concatenate([first.images, rest.images])[:, 0]
    assert {image.tobytes() for image in together} == {image.tobytes() for image in DIGITS["train"]}
    by_label = dict(zip((i.tobytes() for i in DIGITS["train"]), DIGIT_LABELS["train"], strict=True))
    for part in (first, rest):
        assert part.labels is not None
        assert [by_label[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert not np.array_equal(first.images[:, 0], DIGITS["train"][:15]), "after a shuffle"
    again = own(path, "mnist", resolution=28, limit=15)
    assert again.load().fingerprint == first.fingerprint
    other = own(path, "mnist", resolution=28, limit=15, limit_seed=1)
    assert other.load().fingerprint != first.fingerprint
    tested = own(path, "mnist", resolution=28, limit=10, split="test")
    assert [len(tested.load(split=split)) for split in ("test", "rest", "train")] == [10, 13, 40]
    for limit, says in ((41, "41 is more than"), (40, "40 leaves none of")):
        with pytest.raises(DataError, match=rf"dataset\.limit: {says} the 40 images of train; lower it"):
            own(path, "mnist", limit=limit).load(split="rest")
    with pytest.raises(DataError, match=r"dataset\.split: mnist has no split 'rest'.*it has train, test"):
        own(path, "mnist").load(split="rest")


def test_zeros_without_end_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "LIMIT", 100_000)
    path = written(tmp_path, "mnist", {f"{X}.gz": gzip.compress(bytes(200_000))})
    with pytest.raises(DataError, match=rf"{X}\.gz: more than 100,000 bytes unpacked"):
        own(path, "mnist").load()


# ---- downloads


def test_a_file_put_in_the_cache_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, files, folder, archive = KINDS["cifar10 binary"]
    path = tar_gz(cache / "downloads" / archive, files(), folder)
    small = [
        download.Remote(r.dataset, r.file, r.url, path.stat().st_size, r.md5, r.sha256)
        for r in download.REMOTES
    ]
    monkeypatch.setattr(download, "REMOTES", tuple(small))
    for name in cifar10.SUMS.keys() & files().keys():
        monkeypatch.setitem(cifar10.SUMS, name, hashlib.sha256(files()[name]).hexdigest())
    data = Cifar10().load()
    assert len(data) == 5 * EACH
    path.unlink()
    assert Cifar10().load().fingerprint == data.fingerprint  # packed: the archive is not needed any more


def test_a_split_downloads_its_two_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(remote: download.Remote) -> Path:
        fetched.append(remote.file)
        as_folder(remote.path.parent, {remote.file: ZIPPED[remote.file]})
        return remote.path

    known = [
        download.Remote("mnist", n, f"https://x/{n}", len(data), "", "", part=True)
        for n, data in ZIPPED.items()
    ]
    monkeypatch.setattr(download, "REMOTES", tuple(known))
    monkeypatch.setattr(originals, "fetch", fetch)
    data = Mnist(verify=False, resolution=28)
    assert len(data.load(split="test")) == 23
    assert fetched == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    (finding,) = [f for f in doctor.datasets() if f.name == "mnist"]
    assert (finding.state, finding.text) == ("absent", f"not downloaded: {X}.gz, {Y}.gz")
    assert len(data.load()) == 40
    assert sorted(fetched) == sorted(ZIPPED)
    (finding,) = [f for f in doctor.datasets() if f.name == "mnist"]
    assert finding.state == "ok"
    data.load()
    assert len(fetched) == 4, "and only once"


# ---- the real ones


@pytest.mark.data
@pytest.mark.skipif(
    not REAL.is_dir(), reason="needs MNIST's test files at shared/data/mnist-t10k beside the checkout"
)
def test_the_real_test_files(capsys: pytest.CaptureFixture[str]) -> None:
    data = Mnist(str(REAL), split="test", resolution=28).load()
    assert data.images.shape == (10_000, 1, 28, 28)
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert abs(data.images.mean() / 255 - 0.1325) < 1e-3, "the known mean of the test pixels"
    assert main.main(["data", "prepare", "mnist", f"path={REAL}"]) == 3
    assert f"contains no {X}.gz and no {Y}.gz; put them there, or set" in capsys.readouterr().err
    assert main.main(["data", "info", "mnist", f"path={REAL}", "split=test", "limit=1000"]) == 0
    assert "splits: train, test, rest (training: test)" in capsys.readouterr().out
