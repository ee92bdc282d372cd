"""ImageNet's classification set of 2012: 1,281,167 training and 50,000 validation images of 1,000 classes.

Russakovsky et al. 2015, arXiv:1409.0575. Preprocessed as SN-GAN's authors did (arXiv:1802.05957; their
``preprocess.sh`` and ``datasets/imagenet.py``), or plainly.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.images import BadImageError, Resample, Rule, TooSmallError, resize, to_8_bit
from ganlab.data.imagenet_labels import WNID
from ganlab.data.imagenet_layouts import Layout, find
from ganlab.data.packing.check import Originals
from ganlab.data.packing.decoding import Encoded
from ganlab.data.packing.download import by_hand_place
from ganlab.data.packing.stream import MAX_BAD, EncodedDataset, MaxBad, OnBad
from ganlab.data.packing.writer import Recipe
from ganlab.errors import DataError, printable_name
from ganlab.schema import Range, checked
from ganlab.system.files import read_regular
from ganlab.system.paths import expanded

if TYPE_CHECKING:
    from PIL.Image import Image


OFFICIAL = {"train": 1_281_167, "val": 50_000}


class ImageNet(EncodedDataset):
    """ImageNet from ``path``: the folder that holds ``train/`` and ``val/``, Kaggle's, or the official tars.

    path: None looks in ``<cache>/downloads/imagenet``. split: ``train`` or ``val``; a flat ``val/`` needs
    ``LOC_val_solution.csv`` or the development kit beside it. resolution: pixels, square; at most 256 with
    preprocess ``paper`` (``ImageNetRule``); ``plain`` is centre crop and ``resample``. stretch: each image's
    contrast, as the authors' loader did for training alone: scores compare with unstretched images, which are
    another pack (``reference``). min_side: leave out
    images with a shorter side below it; 256 for the count that the authors' script keeps, None takes all.
    classes: a text file with the WordNet ids to take, one a line; None takes all. on_bad: ``skip`` counts
    broken images and leaves them out, up to the share ``max_bad`` (ten are always let pass). Labels
    follow the sorted WordNet ids.
    """

    name = "imagenet"
    rule: ImageNetRule

    @checked
    def __init__(
        self,
        path: str | None = None,
        split: Literal["train", "val"] = "train",
        resolution: Annotated[int, Range(ge=4, le=1024)] = 128,
        preprocess: Preprocess = "paper",
        stretch: bool = False,
        resample: Resample = "bilinear",
        min_side: Annotated[int, Range(ge=1)] | None = None,
        classes: str | None = None,
        on_bad: OnBad = "skip",
        max_bad: MaxBad = MAX_BAD,
    ) -> None:
        if preprocess == "paper" and resolution > PAPER_SIDE:
            raise ValueError(f"resolution: {resolution} is more than the {PAPER_SIDE} of preprocess=paper")
        if stretch and preprocess != "paper":
            raise ValueError(f"stretch: is of preprocess=paper, not of {preprocess}; set it to false")
        self.path, self.split, self.resolution, self.on_bad = path, split, resolution, on_bad
        self.wanted, self.max_bad = classes, max_bad
        self.rule = ImageNetRule(
            resolution, 3, "crop", resample, preprocess=preprocess, min_side=min_side or 0, stretch=stretch
        )

    @property
    def reference(self) -> ImageNet:
        if not self.rule.stretch:
            return self
        unstretched = copy.copy(self)
        unstretched.rule = dataclasses.replace(self.rule, stretch=False)
        return unstretched

    def splits(self) -> tuple[str, ...]:
        return tuple(OFFICIAL)

    def _images(
        self, split: str, source: tuple[Layout, dict[str, str]], after: list[str] | None
    ) -> Originals:
        layout, names = source
        wnids = self._classes(layout)
        classes = [f"{wnid} {names[wnid]}" if wnid in names else wnid for wnid in wnids]
        # the paper's scripts drop small images, its README counts all: say what is here
        facts = {"official_images": OFFICIAL[split]} if self.wanted is None else {}
        files, total = _files(layout, wnids, after), layout.count(wnids)
        return Originals(layout.path, files, total, self.rule, classes, facts=facts)

    def _classes(self, layout: Layout) -> list[str]:
        """The classes to take, sorted. Raises DataError if one that is asked for is not there."""
        wnids = layout.classes()
        if (wanted := self._wanted()) is None:
            return wnids
        if missing := sorted(wanted.difference(wnids)):
            listing, place = (printable_name(p) for p in (self.wanted, layout.path))
            what = f"{missing[0]} of {listing} is not in {place}"
            raise DataError("dataset.classes", what, f"{len(missing)} are missing in total")
        return sorted(wanted)

    def _wanted(self) -> set[str] | None:
        if self.wanted is None:
            return None
        listing = printable_name(self.wanted)
        try:
            lines = read_regular(expanded(self.wanted), 1 << 24).decode("utf-8-sig", "replace").splitlines()
        except OSError as error:
            raise _bad_classes(f"{listing} cannot be read ({error.strerror})") from None
        wnids = {line.split()[0] for line in lines if line.strip()}
        if odd := sorted(word for word in wnids if not WNID.fullmatch(word)):
            raise _bad_classes(f"{printable_name(odd[0])!r} is not a WordNet id such as n01440764")
        if not wnids:
            raise _bad_classes(f"{listing} lists no classes")
        return wnids

    def _find(self, split: str) -> tuple[Layout, dict[str, str]]:
        if self.path is not None:
            return find(expanded(self.path).absolute(), split)
        place = by_hand_place(self.name)
        if not place.is_dir():
            what = "is not set, and ImageNet cannot be downloaded without registration (image-net.org)"
            fix = f"put ILSVRC2012_img_{split}.tar or {split}/ in {place}, or set dataset.path"
            raise DataError("dataset.path", what, fix)
        return find(place, split)

    def _recipe(self, split: str, source: tuple[Layout, dict[str, str]]) -> Recipe:
        rule = self.rule
        transform: dict[str, Any] = {
            "resolution": rule.resolution, "preprocess": rule.preprocess, "min_side": rule.min_side,
            "max_pixels": rule.max_pixels, "on_bad": self.on_bad,
        }  # fmt: skip
        if rule.preprocess == "plain":
            transform["resample"] = rule.resample
        if rule.stretch:  # a pack without it keeps the name that it had before there was the option
            transform["stretch"] = True
        if (wanted := self._wanted()) is not None:
            transform["classes_sha256"] = hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()
        shape = (3, self.resolution, self.resolution)
        return Recipe(self.name, split, shape, dict(source[0].identity()), transform)


def _bad_classes(what: str) -> DataError:
    return DataError("dataset.classes", what, "give a text file, one WordNet id a line")


def _files(layout: Layout, wnids: list[str], after: list[str] | None) -> Iterator[Encoded]:
    """Class by class, by file name; those after the class and name ``after``."""
    for label, wnid in enumerate(wnids):
        if after is not None and wnid < after[0]:
            continue
        for name, piece in layout.images(wnid):
            if after is None or (wnid, name) > (after[0], after[1]):
                yield Encoded(f"{layout.path}/{wnid}/{name}", label, piece, [wnid, name])


Preprocess = Literal["paper", "plain"]
PAPER_SIDE, PAPER_QUALITY = 256, 95


@dataclass(frozen=True)
class ImageNetRule(Rule):
    """``Rule`` with the paper's detour over 256x256 JPEGs.

    EXIF orientation is ignored, as in the field's pipelines. paper: shorter side to 256 (ImageMagick's
    Lanczos; bicubic where it enlarges), centre crop 256x256, JPEG of quality 95 without chroma subsampling,
    then bilinear to ``resolution``. stretch: before that ``stretched``. min_side: smaller ones are left out.
    """

    preprocess: Preprocess = "paper"
    min_side: int = 0
    stretch: bool = False
    upright: ClassVar[bool] = False

    def check(self, width: int, height: int) -> None:
        super().check(width, height)
        if min(width, height) < self.min_side:
            raise TooSmallError(f"{width}x{height} pixels, under min_side={self.min_side}")
        long, short = max(width, height), min(width, height)
        if self.preprocess == "paper" and PAPER_SIDE**2 * long > self.max_pixels * short:
            raise BadImageError(f"{width}x{height} pixels, too long to be enlarged")

    def apply(self, image: Image, note: Callable[[str], None]) -> Pixels:
        if self.preprocess == "plain":
            return super().apply(image, note)
        if min(image.size) < PAPER_SIDE:
            note("enlarged")
        square = _through_jpeg(_shorter_side(to_8_bit(image, 3, note)))
        if self.stretch:
            square = stretched(square)
        return np.asarray(resize(square, self.resolution, "crop", "bilinear")).transpose(2, 0, 1)


def stretched(image: Image) -> Image:
    """An image whose darkest value becomes 0 and whose brightest 255; one of a single value becomes black.

    One scale for all channels. What scipy.misc.imresize did to float images before it resized them, and so
    to all that SN-GAN's authors trained on: their loader (datasets/imagenet.py) reads floats.
    """
    from PIL import Image as Pillow

    x = np.asarray(image, np.float32)
    low = x.min()
    scale = 255.0 / (float(x.max() - low) or 1.0)
    return Pillow.fromarray(((x - low) * scale + 0.5).astype(np.uint8))


def _shorter_side(image: Image) -> Image:
    """``convert -resize 256x256^ -gravity center -extent 256x256``."""
    from PIL.Image import Resampling

    width, height = image.size
    scale = PAPER_SIDE / min(width, height)
    size = (round(width * scale), round(height * scale))
    if size != image.size:
        image = image.resize(size, Resampling.LANCZOS if scale < 1 else Resampling.BICUBIC)
    left, top = (size[0] - PAPER_SIDE) // 2, (size[1] - PAPER_SIDE) // 2
    return image.crop((left, top, left + PAPER_SIDE, top + PAPER_SIDE))


def _through_jpeg(image: Image) -> Image:
    from PIL import Image as Pillow

    file = io.BytesIO()
    image.save(file, "JPEG", quality=PAPER_QUALITY, subsampling=0)
    again = Pillow.open(file, formats=["JPEG"])
    again.load()
    return again
