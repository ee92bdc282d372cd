"""ImageNet in every layout it comes in makes one and the same pack; broken and small images are counted."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sets import as_folder, kept_workers, own_cache, tar_bytes, tar_of_tars  # noqa: F401
from PIL import Image
from scipy.io import savemat

from ganlab.data.formats.images import BadImageError, decode
from ganlab.data.imagenet import ImageNet, ImageNetRule, _through_jpeg, stretched
from ganlab.data.packing import pack
from ganlab.data.packing.pack import prepare
from ganlab.errors import DataError
from ganlab.evaluation.evaluator import Evaluator
from ganlab.extractors.cifar import CifarExtractor
from ganlab.metrics.protocol import Protocol

WNIDS = ["n01440764", "n01443537", "n02105855"]
RNG = np.random.default_rng(0)


def jpeg(size: tuple[int, int] = (300, 280), mode: str = "RGB", **options: Any) -> bytes:
    coarse = RNG.integers(0, 256, (5, 6, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    small = Image.fromarray(coarse.squeeze(), mode=mode)
    out = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(out, options.pop("kind", "JPEG"), **options)
    return out.getvalue()


TRAIN = {f"{w}/{w}_{n}.JPEG": jpeg() for w in WNIDS for n in (18, 36, 10026)}
VAL = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg() for i in range(1, 7)}
TRUTH = [2, 0, 1, 0, 2, 1]  # which of WNIDS, by number of the validation image
CSV = "ImageId,PredictionString\n" + "".join(
    f"{name[:-5]},{WNIDS[t]} 85 1 499 272 \n" for name, t in zip(VAL, TRUTH, strict=True)
)
SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn02105855 Shetland sheepdog\n"


def devkit() -> dict[str, bytes]:
    """Its numbers are not those of the sorted ids, and its table has more than the classes (inner nodes)."""
    numbers = {"n01440764": 3, "n01443537": 1, "n02105855": 2, "n00001740": 1001}
    words = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    rows = [(number, wnid, words.get(wnid, "Shetland sheepdog")) for wnid, number in numbers.items()]
    out = io.BytesIO()
    savemat(out, {"synsets": np.array(rows, dtype=kind)})
    truth = "".join(f"{numbers[WNIDS[t]]}\n" for t in TRUTH).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    return {f"{folder}/meta.mat": out.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth}


def val_folders() -> dict[str, bytes]:
    return {f"val/{WNIDS[t]}/{name}": data for (name, data), t in zip(VAL.items(), TRUTH, strict=True)}


def small(root: Path, **options: Any) -> ImageNet:
    return ImageNet(str(root), **{"resolution": 32, "preprocess": "plain"} | options)


def test_every_layout_makes_the_same_pack(tmp_path: Path) -> None:
    folders = as_folder(tmp_path / "a", {f"train/{n}": d for n, d in TRAIN.items()} | val_folders())
    flat_val = {f"val/{n}": d for n, d in VAL.items()}
    kaggle = {
        f"ILSVRC/Data/CLS-LOC/{n}": d
        for n, d in ({f"train/{n}": d for n, d in TRAIN.items()} | flat_val).items()
    }
    tables = {"LOC_val_solution.csv": CSV.encode(), "LOC_synset_mapping.txt": SYNSETS.encode()}
    kit = {"ILSVRC2012_devkit_t12.tar.gz": gz(devkit())}
    tars = {
        "ILSVRC2012_img_train.tar": tar_of_tars(TRAIN),
        "ILSVRC2012_img_val.tar": tar_bytes(dict(reversed(VAL.items()))),
    }
    roots = [
        folders,
        as_folder(tmp_path / "b", kaggle | tables),
        as_folder(tmp_path / "c", tars | kit),
        as_folder(tmp_path / "d", tars | devkit()),
        as_folder(tmp_path / "e", {f"train/{n}": d for n, d in TRAIN.items()} | flat_val | devkit()),
    ]
    for split, labels in (("train", [0] * 3 + [1] * 3 + [2] * 3), ("val", [0, 0, 1, 1, 2, 2])):
        sets = [small(root).load(split=split) for root in roots]
        assert len({s.fingerprint for s in sets}) == 1, split
        assert sets[0].labels is not None
        assert sets[0].labels.tolist() == labels
        assert [c[:9] for c in sets[0].classes] == WNIDS
        assert sets[0].classes == WNIDS  # nothing tells their names
        assert sets[1].classes == sets[2].classes
        assert sets[1].classes == ["n01440764 tench", "n01443537 goldfish", "n02105855 Shetland sheepdog"]
    direct = small(roots[0] / "train").load()
    assert direct.fingerprint == small(roots[0]).load().fingerprint
    expected = [decode(TRAIN[n], ImageNetRule(32, preprocess="plain")) for n in sorted(TRAIN)]
    assert np.array_equal(direct.images, np.stack(expected))
    by_tar = small(roots[2] / "ILSVRC2012_img_train.tar").load()
    assert by_tar.fingerprint == direct.fingerprint


gz = partial(tar_bytes, suffix="gz")


def bomb() -> bytes:
    """A tar.gz whose first header wants 1 GB in memory at once."""
    info = tarfile.TarInfo("ILSVRC2012_devkit_t12")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    return gzip.compress(info.tobuf() + bytes(10240))


def test_a_thin_strip_is_refused_before_it_is_enlarged() -> None:
    """Its shorter side brought to 256, 1x100000 pixels would be 26 GB."""
    strip = io.BytesIO()
    Image.new("RGB", (1, 100_000)).save(strip, "PNG")
    with pytest.raises(BadImageError, match="1x100000 pixels, too long to be enlarged"):
        decode(strip.getvalue(), ImageNetRule(32))
    assert decode(strip.getvalue(), ImageNetRule(32, preprocess="plain")).shape == (3, 32, 32)


def test_the_papers_preprocessing(tmp_path: Path) -> None:
    """Shorter side to 256, centre crop, JPEG of quality 95, bilinear to 128; nothing mirrored."""
    whole = jpeg((640, 480))
    root = as_folder(tmp_path / "in", {"train/n01440764/a.JPEG": whole})
    data = ImageNet(str(root)).load()
    assert data.images.shape == (1, 3, 128, 128)
    picture = Image.open(io.BytesIO(whole)).resize((341, 256), Image.Resampling.LANCZOS)
    square = picture.crop((42, 0, 42 + 256, 256))
    file = io.BytesIO()
    square.save(file, "JPEG", quality=95, subsampling=0)
    expected = np.asarray(Image.open(file).resize((128, 128), Image.Resampling.BILINEAR))
    assert np.array_equal(data.images[0], expected.transpose(2, 0, 1))
    without = np.asarray(square.resize((128, 128), Image.Resampling.BILINEAR))
    assert not np.array_equal(expected, without), "the round trip leaves its mark"
    assert np.abs(expected.astype(int) - without).mean() < 2
    assert data.manifest["transform"]["preprocess"] == "paper"
    plain = ImageNet(str(root), preprocess="plain").load()
    assert plain.fingerprint != data.fingerprint
    with pytest.raises(ValueError, match="resolution: 257 is more than the 256 of preprocess=paper"):
        ImageNet(resolution=257)
    ImageNet(resolution=257, preprocess="plain")


def test_the_contrast_stretch_of_the_papers_loader(tmp_path: Path) -> None:
    """By hand: (x - min) * 255 / (max - min), halves up, one scale for all channels; then the resampling."""
    x = np.array(
        [[[10, 60, 110], [60, 60, 60]], [[35, 85, 61], [10, 110, 10]]], np.uint8
    )  # 10 to 110: x 2.55
    by_hand = [[[0, 128, 255], [128, 128, 128]], [[64, 191, 130], [0, 255, 0]]]
    assert np.asarray(stretched(Image.fromarray(x))).tolist() == by_hand
    assert not np.asarray(stretched(Image.fromarray(np.full((2, 2, 3), 77, np.uint8)))).any()
    whole = np.asarray(Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50).convert("RGB"))
    assert (whole.min(), whole.max()) == (0, 255)
    assert np.array_equal(np.asarray(stretched(Image.fromarray(whole))), whole), "nothing to stretch"

    pale = Image.fromarray((whole * 0.5 + 60).astype(np.uint8))  # 60 to 187
    file = io.BytesIO()
    pale.save(file, "PNG")
    root = as_folder(tmp_path / "in", {"train/n01440764/a.JPEG": file.getvalue()})
    dataset = ImageNet(str(root), stretch=True)
    data, plain = dataset.load(), ImageNet(str(root)).load()
    square = np.asarray(_through_jpeg(pale)).astype(np.float64)
    low, high = square.min(), square.max()
    expected = np.floor((square - low) * 255 / (high - low) + 0.5).astype(np.uint8)
    expected = np.asarray(Image.fromarray(expected).resize((128, 128), Image.Resampling.BILINEAR))
    assert np.abs(data.images[0].transpose(1, 2, 0).astype(int) - expected).max() == 0
    assert int(data.images.max()) - int(data.images.min()) > 1.8 * (
        int(plain.images.max()) - int(plain.images.min())
    )

    # the two are two packs, and scores compare with the one that is not stretched
    assert data.manifest["transform"]["stretch"] is True
    assert "stretch" not in plain.manifest["transform"], "the pack of before has its name still"
    assert dataset.reference.load().fingerprint == plain.fingerprint != data.fingerprint
    assert len({m["folder"] for m in prepare(dataset)}) == 2
    assert len(prepare(ImageNet(str(root)))) == 1
    judge = Evaluator(CifarExtractor(), {}, Protocol("p", 10, 10), dataset, "cpu", tmp_path)
    assert judge.images.fingerprint == plain.fingerprint
    with pytest.raises(ValueError, match="stretch: is of preprocess=paper, not of plain; set it to false"):
        ImageNet(preprocess="plain", stretch=True)


def odd_images() -> dict[str, bytes]:
    whole = jpeg()
    rotated = Image.Exif()
    rotated[0x0112] = 6
    deep = Image.fromarray(RNG.integers(0, 65536, (260, 300), dtype=np.uint16))
    out = io.BytesIO()
    deep.save(out, "PNG")
    return {
        "train/n01440764/a.JPEG": whole,
        "train/n01440764/b_cut.JPEG": whole[: len(whole) // 2],
        "train/n01440764/c_zero.JPEG": b"",
        "train/n01440764/d_grey.JPEG": jpeg(mode="L"),
        "train/n01440764/e_cmyk.JPEG": jpeg(mode="CMYK"),
        "train/n01443537/f_tiny.JPEG": jpeg((20, 24)),
        "train/n01443537/g_png.JPEG": jpeg(kind="PNG"),  # ImageNet has one: n02105855_2933.JPEG
        "train/n01443537/h_16bit.png": out.getvalue(),
        "train/n01443537/i_exif.JPEG": jpeg((300, 260), exif=rotated),
        "train/n01443537/j_255.JPEG": jpeg((400, 255)),
        "train/n01443537/notes.txt": b"not an image",
    }


@pytest.mark.parametrize("preprocess", ["paper", "plain"])
def test_odd_images_are_counted(tmp_path: Path, preprocess: str) -> None:
    root = as_folder(tmp_path / "in", odd_images())
    data = small(root, preprocess=preprocess).load()
    assert len(data) == 8
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 3 + [1] * 5
    enlarged = 2 if preprocess == "paper" else 1  # the 20x24 pixels, and for the paper's 256 those of 255
    assert data.manifest["counts"] == {"skipped": 2, "grey": 2, "cmyk": 1, "16bit": 1, "enlarged": enlarged}
    assert data.manifest["examples"][0].startswith(f"{root}/train/n01440764/b_cut.JPEG: broken image (")
    assert "8 images; the official split has 1,281,167" in data.warnings
    with pytest.raises(
        DataError, match=r"b_cut\.JPEG: broken image .*; repair or remove it, or set dataset\.on_bad=skip"
    ):
        small(root, preprocess=preprocess, on_bad="fail").load()


def test_small_images_can_be_left_out(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "in", odd_images())
    data = small(root, min_side=256).load()
    assert len(data) == 6
    assert data.manifest["counts"]["too_small"] == 2
    assert "2 images were skipped as too small" in data.warnings


def test_a_subset_of_the_classes(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "in", {f"train/{n}": d for n, d in TRAIN.items()})
    chosen = tmp_path / "wnids.txt"
    chosen.write_bytes(b"\xef\xbb\xbfn02105855 Shetland sheepdog\r\nn01440764\r")
    data = small(root, classes=str(chosen)).load()
    assert data.classes == ["n01440764", "n02105855"]
    assert len(data) == 6
    for text, says in (
        ("n99999999\n", "n99999999 of .* is not in .*; 1 are missing"),
        ("tench\n", "'tench' is not a WordNet id"),
        ("\n", ".* lists no classes"),
    ):
        chosen.write_text(text)
        with pytest.raises(DataError, match=rf"^dataset\.classes: {says}"):
            small(root, classes=str(chosen)).load()
    with pytest.raises(DataError, match=r"^dataset\.classes: .* cannot be read \(No such file"):
        small(root, classes=str(tmp_path / "nothing")).load()


def test_files_replaced_in_place_are_another_pack(tmp_path: Path) -> None:
    flat = {f"val/{n}": d for n, d in VAL.items()} | {"LOC_val_solution.csv": CSV.encode()}
    root = as_folder(tmp_path / "in", {f"train/{n}": d for n, d in TRAIN.items()} | flat)
    for split, name in (("train", next(iter(TRAIN))), ("val", next(iter(VAL)))):
        old = small(root).recipe(split)
        small(root).load(split=split)
        assert pack.outdated(old) == []
        file = root / split / name
        file.write_bytes(file.read_bytes() + b" ")
        new = small(root).recipe(split)
        assert pack.outdated(new) == [old.folder]
        os.utime(file, ns=(1, 1))
        assert len({old.key, new.key, small(root).recipe(split).key}) == 3


def test_unknown_layouts_say_what_was_looked_for(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"^dataset\.path: is not set, and ImageNet cannot be downloaded .*put .*imagenet, or set",
    ):
        ImageNet().load()
    as_folder(cache / "downloads" / "imagenet", {f"train/{n}": d for n, d in TRAIN.items()})
    assert len(ImageNet(resolution=32, preprocess="plain").load()) == 9
    with pytest.raises(DataError, match=r"does not exist; check the path"):
        small(tmp_path / "nowhere").load()
    root = as_folder(tmp_path / "cats", {"train/cats/1.JPEG": jpeg(), "train/dogs/1.JPEG": jpeg()})
    with pytest.raises(
        DataError, match=r"named like n01440764, but it contains cats, dogs; .*dataset=folder"
    ):
        small(root).load()
    with pytest.raises(DataError, match=r"no val split of ImageNet; looked for val/, .*img_val\.tar"):
        small(root, split="val").load()
    flat = as_folder(tmp_path / "flat", {f"val/{n}": d for n, d in VAL.items()})
    with pytest.raises(
        DataError, match=r"val: the labels of the validation images are missing; put Kaggle's LOC_val"
    ):
        small(flat, split="val").load()


@pytest.mark.parametrize(
    ("file", "data", "says"),
    [
        ("LOC_val_solution.csv", b"ImageId,PredictionString\nx,y\n", r"LOC_val_solution\.csv: line 2 is not"),
        (
            "LOC_val_solution.csv",
            b"ImageId,PredictionString\na,n01440764 1\n",
            "val_00000001.JPEG has no label",
        ),
        ("LOC_val_solution.csv", b'ImageId,PredictionString\n"' + b"x" * 200_000, "is not a CSV table"),
        ("ILSVRC2012_devkit_t12.tar.gz", b"\x1f\x8bxx", "not the development kit of 2012"),
        ("ILSVRC2012_devkit_t12.tar.gz", bomb(), r"not the development kit of 2012 \(a header requests"),
        (
            "ILSVRC2012_devkit_t12.tar.gz",
            gz({"a.txt": b""}),
            "contains no data/ILSVRC2012_validation_ground_truth",
        ),
        ("ILSVRC2012_devkit_t12.tar.gz", gz({n: b"1" for n in devkit()}), "not the development kit of 2012"),
    ],
    # an id made of gzip's bytes would hold the time
    ids=["no csv", "no label", "no table", "cut", "bomb", "other files", "broken files"],
)
def test_damaged_labels(tmp_path: Path, file: str, data: bytes, says: str) -> None:
    root = as_folder(tmp_path / "in", {f"val/{n}": d for n, d in VAL.items()} | {file: data})
    with pytest.raises(DataError, match=says):
        small(root, split="val").load()


def backwards() -> bytes:
    """A tar with a file of -512 bytes: the next header is its own."""
    head = bytearray(tarfile.TarInfo("x.JPEG").tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"\xff" + (256**11 - 512).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(10240)


def test_damaged_tars(tmp_path: Path) -> None:
    whole = tar_of_tars(TRAIN)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    for data, says in (
        (whole[: len(whole) // 2], r"damaged archive \("),
        (tar_bytes({"readme.txt": b"x"}), "contains no class tar such as n01440764.tar"),
        (tar_bytes({"n01440764.tar": backwards()}), r"damaged archive \('x.JPEG' has a negative size"),
        (backwards(), r"damaged archive \('x.JPEG' has a negative size"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=says):
            small(path).load()
    with pytest.raises(DataError, match=r"is not ILSVRC2012_img_val\.tar"):
        small(path, split="val").load()
