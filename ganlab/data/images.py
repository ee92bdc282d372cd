"""Encoded images to uint8 arrays: safely, by documented rules, many at a time and in bounded memory.

A file is judged before it is decoded: known format, header size within ``max_pixels``. Conversions are
counted under the names in ``NOTES``. Pixels are only resampled where the size differs.
"""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np

from ganlab.data.base import Labels, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "resize"]
Resample = Literal["box", "bilinear", "bicubic", "lanczos"]
T = TypeVar("T")
U = TypeVar("U")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
READABLE = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
UNREADABLE = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".psd", ".svg", ".exr")
NOTES = {
    "grey": "grey, repeated to three channels",
    "to_grey": "colour, reduced to grey by Rec. 601 luma",
    "alpha": "transparent, laid over white",
    "palette": "palette, expanded",
    "cmyk": "CMYK or YCbCr, converted by Pillow",
    "16bit": "16 bits a channel, reduced to the upper 8",
    "rotated": "turned upright by EXIF orientation",
    "animated": "animated, first frame taken",
    "enlarged": "smaller than the resolution, enlarged",
    "skipped": "broken, left out",
}
MAX_FILE = 1 << 28  # bytes of one encoded image
CHUNK_IMAGES, CHUNK_BYTES = 128, 1 << 24
SMALL_FILE = 1 << 14  # bytes; decoding a smaller one is mostly Python, holding the interpreter lock


class BadImageError(Exception):
    """One image that cannot be used; the text says why, without its name."""


class Encoded(NamedTuple):
    """An image file: ``name`` for messages, ``label`` (-1: none) and its bytes, or why there are none."""

    name: str
    label: int
    data: bytes | BadImageError


class Decoded(NamedTuple):
    """A block of images, uint8 (n, C, H, W), with int64 (n,) labels, counts by ``NOTES``, and the bad ones.

    bad: (name, reason) of each image that is left out of ``images`` and ``labels``.
    """

    images: Pixels
    labels: Labels
    notes: Counter[str]
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class Rule:
    """How an image becomes (channels, resolution, resolution) uint8.

    fit: ``crop`` takes the largest centred square, ``resize`` the whole image with its proportions changed.
    resample: Pillow's filter, antialiased when it shrinks. max_pixels: larger headers are refused unread.
    """

    resolution: int
    channels: Literal[1, 3] = 3
    fit: Fit = "crop"
    resample: Resample = "bilinear"
    max_pixels: int = 1 << 26

    def apply(self, image: Image, note: Callable[[str], None]) -> Pixels:
        """A decoded image to (C, H, W) uint8; ``note`` hears each conversion."""
        flat = _to_8_bit(image, self.channels, note)
        square = resize(flat, self.resolution, self.fit, self.resample)
        if min(image.size) < self.resolution:
            note("enlarged")
        pixels = np.asarray(square)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def shown(name: str) -> str:
    """A file name fit for a message: control and undecodable characters become '?'."""
    return "".join(c if c.isprintable() else "?" for c in name)


def is_image_name(name: str) -> bool:
    """Whether the ending is that of an image, of a format that is read or not."""
    return name.lower().endswith(READABLE + UNREADABLE)


def decode(data: bytes, rule: Rule, note: Callable[[str], None] = lambda _: None) -> Pixels:
    """One encoded image to (C, resolution, resolution) uint8, by ``rule``; else raises BadImageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
        width, height = image.size
        if width * height > rule.max_pixels:
            raise BadImageError(f"{width}x{height} pixels, over max_pixels={rule.max_pixels}")
        if image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False):
            note("animated")
        image.load()
        return rule.apply(_upright(image, note), note)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"not an image in a format that is read ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise BadImageError("too large for the memory") from None
    except Exception as error:  # decoders meet hostile bytes with every kind of exception
        raise BadImageError(f"broken image ({error or type(error).__name__})") from None


def resize(image: Image, resolution: int, fit: Fit, resample: Resample) -> Image:
    """Resample to (resolution, resolution); an image of that size already is returned as it is."""
    from PIL.Image import Resampling

    width, height = image.size
    if width == height == resolution:
        return image
    side = min(width, height)
    left, top = ((width - side) / 2, (height - side) / 2) if fit == "crop" else (0.0, 0.0)
    box = (left, top, left + side, top + side) if fit == "crop" else (0.0, 0.0, float(width), float(height))
    return image.resize((resolution, resolution), Resampling[resample.upper()], box=box)


def resize_block(images: Pixels, resolution: int, resample: Resample) -> Pixels:
    """uint8 (n, 3, S, S) to (n, 3, resolution, resolution), image by image, as ``resize`` does."""
    from PIL import Image

    if images.shape[-1] == resolution:
        return images
    out = np.empty((*images.shape[:2], resolution, resolution), np.uint8)
    for source, target in zip(images, out, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(source.transpose(1, 2, 0)))
        target[:] = np.asarray(resize(picture, resolution, "resize", resample)).transpose(2, 0, 1)
    return out


def decode_all(
    files: Iterable[Encoded], rule: Rule, workers: int | None = None
) -> Generator[Decoded, None, None]:
    """Decode a stream of files in order, in bounded memory: ``2 * workers`` chunks of 128 files or 16 MB.

    Large images are decoded on threads, as Pillow lets go of the interpreter lock; small ones in the caller's
    thread, as threads would fight over that lock (CIFAR's JPEGs: 22 s on two threads, 14 s without).
    """
    chunks: Iterator[list[Encoded]] = _chunks(files, rule)
    if workers is None and (first := next(chunks, None)) is not None:
        sizes = [len(file.data) for file in first if isinstance(file.data, bytes)]
        workers = 0 if sum(sizes) < SMALL_FILE * len(sizes) else num_cores()
        chunks = itertools.chain([first], chunks)
    with warnings.catch_warnings():
        # Pillow warns of large or odd files; each is judged here and counted instead.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield from in_order(lambda chunk: _decode_chunk(chunk, rule), chunks, workers or 0)


def in_order(work: Callable[[T], U], items: Iterable[T], workers: int) -> Generator[U, None, None]:
    """``map`` on threads, in order, with at most ``2 * workers`` results waiting; 0 workers: no threads."""
    if not workers:
        yield from map(work, items)
        return
    waiting: list[Future[U]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="ganlab-decode") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:  # on a mistake or an interrupt, don't decode what nobody will read
            pool.shutdown(wait=True, cancel_futures=True)


def num_cores() -> int:
    """Cores that this process may use, at most 32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 32)


def _chunks(files: Iterable[Encoded], rule: Rule) -> Iterator[list[Encoded]]:
    most = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (rule.channels * rule.resolution**2)))
    chunk: list[Encoded] = []
    held = 0
    for file in files:
        chunk.append(file)
        held += len(file.data) if isinstance(file.data, bytes) else 0
        if len(chunk) >= most or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _decode_chunk(chunk: list[Encoded], rule: Rule) -> Decoded:
    images = np.empty((len(chunk), rule.channels, rule.resolution, rule.resolution), np.uint8)
    labels: list[int] = []
    notes: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    for file in chunk:
        heard: list[str] = []
        try:
            if isinstance(file.data, BadImageError):
                raise file.data
            images[len(labels)] = decode(file.data, rule, heard.append)
        except BadImageError as reason:
            bad.append((shown(file.name), shown(str(reason))))
            continue
        notes.update(heard)
        labels.append(file.label)
    return Decoded(images[: len(labels)], np.array(labels, np.int64), notes, bad)


def _upright(image: Image, note: Callable[[str], None]) -> Image:
    from PIL import ImageOps

    if "exif" not in image.info:
        return image
    try:
        turned = image.getexif().get(0x0112, 1) not in (1, None)
        upright = ImageOps.exif_transpose(image) if turned else image
    except Exception:  # broken metadata is no reason to lose the pixels
        return image
    if turned:
        note("rotated")
    return upright


def _to_8_bit(image: Image, channels: int, note: Callable[[str], None]) -> Image:
    """Any mode of Pillow's to "L" (one channel) or "RGB" (three), as ``NOTES`` says."""
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
