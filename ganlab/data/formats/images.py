"""Decode one image safely to a uint8 array by documented rules. Streams of images: ``packing/decoding.py``.

Format and header size (``max_pixels``) are checked before decoding. Conversions are counted under the names
in ``NOTES``. Pixels are resampled only if the size differs.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.files import kind_of
from ganlab.errors import GanlabError

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "resize", "none"]
Resample = Literal["box", "bilinear", "bicubic", "lanczos"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # no other decoder ever sees a file
READABLE = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
UNREADABLE = (
    ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl",
    ".tga", ".psd", ".svg", ".exr",
)  # fmt: skip
NOTES = {
    "grey": "grayscale, repeated to three channels",
    "to_grey": "color, converted to grayscale (Rec. 601 luma)",
    "alpha": "transparent, composited over white",
    "palette": "palette, expanded",
    "cmyk": "CMYK or YCbCr, converted by Pillow",
    "16bit": "16 bits per channel, reduced to the upper 8",
    "rotated": "rotated by EXIF orientation",
    "animated": "animated, first frame used",
    "enlarged": "smaller than the resolution, enlarged",
    "skipped": "broken, skipped",
    "too_small": "smaller than requested, skipped",
}
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
PNG_XMP = b"XML:com.adobe.xmp\0\0"
MAX_FILE = 1 << 28  # bytes of one encoded image


class BadImageError(Exception):
    """An unusable image; the message is the reason, without the file name."""


class TooSmallError(BadImageError):
    """An image below the requested minimum size: skipped by choice, not broken."""


@dataclass(frozen=True)
class Rule:
    """Conversion of an image to uint8 (channels, resolution, resolution).

    fit: ``crop`` takes the largest centered square, ``resize`` the whole image, changing its aspect ratio;
    ``none`` refuses images of another size.
    resample: Pillow's filter, antialiased when downsampling. max_pixels: larger images are not decoded.
    """

    resolution: int
    channels: Literal[1, 3] = 3
    fit: Fit = "crop"
    resample: Resample = "bilinear"
    max_pixels: int = 1 << 26
    upright: ClassVar[bool] = True  # whether EXIF orientation is applied

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the result."""
        return self.channels, self.resolution, self.resolution

    def check(self, width: int, height: int) -> None:
        """Check the size from an image's header. Raises BadImageError."""
        if width * height > self.max_pixels:
            raise BadImageError(f"{width}x{height} pixels, over max_pixels={self.max_pixels}")
        if self.fit == "none" and (width, height) != (self.resolution, self.resolution):
            raise BadImageError(f"{width}x{height} pixels, not {self.resolution}x{self.resolution}")

    def apply(self, image: Image, note: Callable[[str], None]) -> Pixels:
        """Convert a decoded image to uint8 (C, H, W); ``note`` is called for each conversion."""
        flat = to_8_bit(image, self.channels, note)
        square = resize(flat, self.resolution, self.fit, self.resample)
        if min(image.size) < self.resolution:
            note("enlarged")
        pixels = np.asarray(square)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def is_image_name(name: str) -> bool:
    """Whether the suffix is that of an image format, supported or not."""
    return name.lower().endswith(READABLE + UNREADABLE)


def decode(data: bytes, rule: Rule, note: Callable[[str], None] = lambda _: None) -> Pixels:
    """Decode one image to uint8 (C, resolution, resolution) by ``rule``. Raises BadImageError."""
    # WebP by its name: Pillow would look for it by importing every plugin there is
    from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

    Image.MAX_IMAGE_PIXELS = None  # the rule's own limit is checked, on the header too
    try:
        image = Image.open(io.BytesIO(bare(data)), formats=FORMATS)  # reads the header only
        rule.check(*image.size)
        if image.format == "PNG" and PNG_END not in data:
            raise BadImageError("broken image (truncated: it has no end marker)")
        if image.format in ("WEBP", "PNG") and getattr(image, "is_animated", False):
            note("animated")
        image.load()
        return rule.apply(_upright(image, note) if rule.upright else image, note)
    except (BadImageError, GanlabError):  # the latter a signal's: no image is to blame
        raise
    except UnidentifiedImageError:
        kind = kind_of(data[:64])
        but = "" if kind in ("a PNG image", "a JPEG image") else f", but {kind}"
        raise BadImageError(f"not an image in a format that is read ({', '.join(FORMATS)}){but}") from None
    except MemoryError:
        raise BadImageError("out of memory") from None
    except Exception as error:  # decoders meet hostile bytes with every kind of exception
        raise BadImageError(f"broken image ({error or type(error).__name__})") from None


def bare(data: bytes) -> bytes:
    """Strip text and color profiles, which Pillow rejects if large, from a PNG; return other files as is.

    A small XMP packet is kept, as it may contain the orientation.
    """
    if not data.startswith(PNG_START):
        return data
    kept, start, at = [], 0, len(PNG_START)
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + size
        turns = size <= 1 << 16 and data.startswith(PNG_XMP, at + 8)
        if kind in (b"iCCP", b"zTXt", b"iTXt", b"tEXt") and not turns:
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join([*kept, data[start:]]) if kept else data


def resize(image: Image, resolution: int, fit: Fit, resample: Resample) -> Image:
    """Resample to (resolution, resolution); an image of that size is returned unchanged."""
    from PIL.Image import Resampling

    width, height = image.size
    if width == height == resolution:
        return image
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if fit == "crop" else (0.0, 0.0)
    box = (left, top, left + side, top + side) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    return image.resize((resolution, resolution), Resampling[resample.upper()], box=box)


def resize_block(images: Pixels, resolution: int, resample: Resample) -> Pixels:
    """Resize uint8 (n, 1 or 3, S, S) to (n, C, resolution, resolution), image by image, with ``resize``."""
    from PIL import Image

    if images.shape[-1] == resolution:
        return images
    out = np.empty((*images.shape[:2], resolution, resolution), np.uint8)
    for source, target in zip(images, out, strict=True):
        planes = source[0] if len(source) == 1 else source.transpose(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(planes))
        sized = np.asarray(resize(picture, resolution, "resize", resample))
        target[:] = sized if sized.ndim == 2 else sized.transpose(2, 0, 1)
    return out


def _upright(image: Image, note: Callable[[str], None]) -> Image:
    from PIL import ImageOps

    if "exif" not in image.info:
        return image
    try:
        turned = image.getexif().get(0x0112, 1) not in (1, None)
        upright = ImageOps.exif_transpose(image) if turned else image
    except GanlabError:
        raise
    except Exception:  # broken metadata is no reason to lose the pixels
        return image
    if turned:
        note("rotated")
    return upright


def to_8_bit(image: Image, channels: int, note: Callable[[str], None]) -> Image:
    """Convert any Pillow mode to "L" (one channel) or "RGB" (three), reporting each of ``NOTES``."""
    from PIL import Image as Pillow

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        if image.mode == "F":
            raise BadImageError("pixels are floating-point numbers of unknown range")
        note("16bit")
        upper = np.asarray(image.convert("I"), np.int32) >> 8
        image = Pillow.fromarray(np.clip(upper, 0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        note("palette")
    if image.has_transparency_data:
        note("alpha")
        clear = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert(
            "RGB"
        )
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        note("cmyk")
        image = image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    if channels == 1:
        if image.mode == "L":
            return image
        note("to_grey")
        return image.convert("L")
    if image.mode == "L":
        note("grey")
    return image if image.mode == "RGB" else image.convert("RGB")
