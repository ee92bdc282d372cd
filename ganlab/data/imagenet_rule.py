"""How an image of ImageNet is brought to size: as SN-GAN's authors did, or plainly.

Apart from ``imagenet.py``: the processes that decode need this, and nothing of looking for files.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ganlab.data.base import Pixels
from ganlab.data.images import BadImageError, Rule, TooSmallError, resize, to_8_bit

if TYPE_CHECKING:
    from PIL.Image import Image

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
