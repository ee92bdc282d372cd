"""Every kind of image file becomes pixels by a documented rule, or one line that says why not."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from image_sets import encoded, kept_workers  # noqa: F401
from PIL import Image

from ganlab.data.formats.images import BadImageError, Rule, decode
from ganlab.data.packing.decoding import Encoded, decode_all
from ganlab.data.packing.worker import num_cores
from ganlab.errors import Stopped

RNG = np.random.default_rng(0)


def picture(size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    width, height = size
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def decoded(data: bytes, **options: Any) -> tuple[np.ndarray[Any, Any], list[str]]:
    notes: list[str] = []
    return decode(data, Rule(**{"resolution": 8} | options), notes.append), notes


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = picture()
    pixels, notes = decoded(encoded(image))
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))
    assert pixels.shape == (3, 8, 8)
    assert notes == []
    for kind in ("BMP", "WEBP"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        assert np.array_equal(decoded(encoded(image, kind, **lossless))[0], pixels), kind


def test_gray_and_color() -> None:
    grey = picture(mode="L")
    as_rgb, notes = decoded(encoded(grey))
    assert notes == ["grey"]
    assert all(np.array_equal(channel, np.asarray(grey)) for channel in as_rgb)
    as_grey, notes = decoded(encoded(grey), channels=1)
    assert (as_grey.shape, notes) == ((1, 8, 8), [])
    color = picture()
    as_grey, notes = decoded(encoded(color), channels=1)
    assert notes == ["to_grey"]
    r, g, b = np.asarray(color).astype(float).transpose(2, 0, 1)
    assert np.abs(as_grey[0] - (0.299 * r + 0.587 * g + 0.114 * b)).max() <= 1


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 255, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    pixels, notes = decoded(encoded(image))
    assert notes == ["alpha"]
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 1, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 0, 0, 0, 200, 0])
    pixels, notes = decoded(encoded(palette))
    assert notes == ["palette"]
    assert pixels[:, 3, 3].tolist() == [200, 0, 0]
    pixels, notes = decoded(encoded(palette, transparency=0))
    assert notes == ["palette", "alpha"]
    assert pixels.min() == 255


def test_sixteen_bits_keep_the_upper_eight() -> None:
    wide = Image.fromarray(np.full((8, 8), 0x81FF, np.uint16))
    pixels, notes = decoded(encoded(wide), channels=1)
    assert notes == ["16bit"]
    assert set(pixels.flatten().tolist()) == {0x81}


def test_cmyk_and_bilevel() -> None:
    pixels, notes = decoded(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert notes == ["cmyk"]
    assert pixels[0].min() > 230
    assert pixels[1:].max() < 25
    assert set(decoded(encoded(Image.new("1", (8, 8), 1)))[0].flatten().tolist()) == {255}


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels, notes = decoded(encoded(image, "JPEG", exif=exif, quality=100))
    assert notes == ["rotated"]
    assert pixels[:, :, 6:].min() > 240  # the right half is
    assert pixels[:, :, :2].max() < 15
    broken = encoded(image, "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decoded(broken)[0].shape == (3, 8, 8)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime")]
    for kind in ("WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        pixels, notes = decoded(data)
        assert "animated" in notes, kind
        assert pixels[0].min() > 200, kind
        assert pixels[1].max() < 60, kind


def test_crop_takes_the_centred_square() -> None:
    wide = Image.new("RGB", (24, 8))
    wide.paste((255, 0, 0), (8, 0, 16, 8))
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        pixels, _ = decoded(encoded(image))
        assert pixels[0].min() == 255
        squeezed, _ = decoded(encoded(image), fit="resize")
        assert 60 < squeezed[0].mean() < 110  # a third of it is red


def test_shrinking_is_antialiased_and_enlarging_is_counted() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    board = Image.fromarray(checks.astype(np.uint8))
    for resample in ("box", "bilinear", "bicubic", "lanczos"):
        pixels, notes = decoded(encoded(board), channels=1, resample=resample)
        assert np.abs(pixels[0, 1:-1, 1:-1].astype(int) - 127).max() < 25, resample
        assert notes == []
    pixels, notes = decoded(encoded(Image.new("RGB", (1, 1), (9, 9, 9))))
    assert notes == ["enlarged"]
    assert set(pixels.flatten().tolist()) == {9}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    """A tiny PNG whose header promises width x height."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("side", [9_000, 2_000_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    file = Encoded("bomb.png", 0, png_of_size(side, side))
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of Pillow's reaches the user
        (block,) = decode_all([file], Rule(8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(block.images) == 0
    assert "pixels" in block.bad[0][1]
    assert peak < 20e6


def test_max_pixels_goes_beyond_pillows_limit() -> None:
    """Pillow itself stops at 2 x 89 megapixels, whatever the user allows."""
    data = encoded(Image.new("1", (14_000, 14_000)))
    with pytest.raises(BadImageError, match=r"14000x14000 pixels, over max_pixels=150000000"):
        decoded(data, max_pixels=150_000_000)
    pixels, _ = decoded(data, max_pixels=200_000_000)
    assert pixels.shape == (3, 8, 8)


LARGE = zlib.compress(b"a" * 3_000_000)
METADATA = {
    "color profile": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "compressed international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"a" * 3_000_000),
    "70 MB of texts": chunk(b"tEXt", b"c\0" + b"a" * 700_000) * 100,
    "a rotten text": chunk(b"zTXt", b"c\0\0" + LARGE)[:-1] + b"?",
}


@pytest.mark.parametrize("what", METADATA)
def test_large_metadata_is_no_damage(what: str) -> None:
    plain = encoded(picture())
    for at in (33, len(plain) - 12):  # behind the header, before the end mark
        pixels, notes = decoded(plain[:at] + METADATA[what] + plain[at:])
        assert np.array_equal(pixels, decoded(plain)[0])
        assert notes == []


def test_small_xmp_still_tells_which_way_is_up() -> None:
    image, exif = picture((8, 4)), Image.Exif()
    exif[0x010F] = "a maker, and no orientation"
    data = encoded(image, exif=exif)
    turned = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>'
    pixels, notes = decoded(data[:33] + chunk(b"iTXt", turned) + data[33:])
    assert notes == ["rotated", "enlarged"]
    assert np.array_equal(pixels, decoded(encoded(image.rotate(180)))[0])


def test_what_is_no_image_says_so() -> None:
    png = encoded(picture())
    for data, says in (
        (b"I am a text file renamed to .png\n" * 10, r"\(JPEG, PNG, WEBP, BMP\), but text$"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "but a HEIC or AVIF image$"),
        (encoded(picture(), "TIFF"), "but a TIFF image$"),
        (encoded(picture(), "GIF"), "but a GIF image$"),
        (encoded(picture(), "PPM"), "but a PPM image$"),
        (png[:-12], "broken image"),
        (b"\x89PNG\r\n\x1a\n", "not an image in a format|broken image"),
        (png[:20] + b"\xff" + png[21:], "not an image in a format|broken image"),
    ):
        with pytest.raises(BadImageError, match=says):
            decoded(data)


@pytest.mark.parametrize("where", ["load", "getexif"])
def test_a_signal_while_one_is_decoded_is_not_its_damage(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)

    def interrupted(_: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile." + where, interrupted)
    with pytest.raises(Stopped):
        decode(file.getvalue(), Rule(8, channels=3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_cut_image_is_bad_at_every_length(kind: str) -> None:
    whole = encoded(picture((32, 32)), kind)
    decoded(whole)
    # the last bytes may be a sum and an end mark: with all pixels there, decoders forgive their absence
    for length in np.linspace(0, len(whole) - 32, 15).astype(int):
        with pytest.raises(BadImageError):
            decoded(whole[:length])


def test_flipped_bits_never_escape_as_another_error() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        whole = bytearray(encoded(picture((16, 16)), kind))
        for _ in range(20):
            rotten = whole.copy()
            rotten[RNG.integers(len(rotten))] ^= 1 << RNG.integers(8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(BadImageError):
                    assert decoded(bytes(rotten))[0].shape == (3, 8, 8)


def test_a_stream_stays_in_order() -> None:
    files = []
    for i in range(300):
        grey = Image.new("L", (8, 8), i % 251)
        data = encoded(grey) if i % 100 != 7 else b"no image"
        files.append(Encoded(f"{i}.png", i, data))
    files.append(Encoded("gone\x1b[31m.png", 300, BadImageError("cannot be read")))
    blocks = list(decode_all(iter(files), Rule(8, channels=1)))
    labels = np.concatenate([b.labels for b in blocks]).tolist()
    assert labels == [i for i in range(300) if i % 100 != 7]
    pixels = np.concatenate([b.images for b in blocks])[:, 0, 0, 0].tolist()
    assert pixels == [i % 251 for i in labels]
    bad = [item for b in blocks for item in b.bad]
    assert [name for name, _ in bad] == [f"{i}.png" for i in range(7, 300, 100)] + ["gone?[31m.png"]


def test_a_stream_is_read_no_further_than_needed() -> None:
    read = 0

    def files() -> Any:
        nonlocal read
        data = encoded(picture((300, 300)))  # large enough for threads
        for i in range(100_000):
            read += 1
            yield Encoded(str(i), 0, data)

    blocks = decode_all(files(), Rule(8))
    next(blocks)
    assert read < 400 * num_cores()
    blocks.close()
