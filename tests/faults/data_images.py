"""Broken, bomb-sized and odd images: refused in one line with the file's name, or converted by a rule."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ganlab.data.folder import Folder
from ganlab.data.formats.images import BadImageError, Rule, decode
from ganlab.data.packing.decoding import Encoded, decode_chunk

from .base import Case, Failed, Figure, one_line
from .data_common import cache, command, encoded, names, packs, photo, refused, tree

CUT = {"JPEG": {}, "PNG": {}, "WEBP": {"quality": 90}, "WEBP lossless": {"lossless": True}}
HEAP = 50e6  # bytes that refusing a bomb may take


# ---- 41: cut at every length


def cut(kind: str, n: int) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        whole = photo(7, kind.split()[0], 48, **CUT[kind])
        decode(whole, Rule(16))
        taken = [
            length
            for length in np.linspace(0, len(whole) - 1, n).astype(int).tolist()
            if not _refuses(whole[:length])
        ]
        if taken:
            raise Failed(len(taken), f"{kind} cut to {taken[0]} of {len(whole)} bytes was taken")

    return check


def _refuses(data: bytes) -> bool:
    try:
        decode(data, Rule(16))
    except BadImageError:
        return True
    return False


def cut_in_a_set(kind: str) -> Callable[[Path], None]:
    """The command names the file; skipping counts it and keeps the others; the check lists it."""

    def check(place: Path) -> None:
        ending = kind.lower()
        files = {f"{i}.{ending}": photo(i, kind) for i in range(5)}
        files[f"3.{ending}"] = files[f"3.{ending}"][:-40]
        root = tree(place / "set", files)
        words = ("folder", f"path={root}", "resolution=8")
        refused(place, 3, names(f"3.{ending}"), "dataset.on_bad=skip", "data", "prepare", *words)
        done = command(place, "data", "check", *words)
        one_line(done, 3, names(str(root)), "repair or remove")
        assert f"broken: 3.{ending}: " in done.out, done.out
        done = command(place, "data", "prepare", *words, "on_bad=skip")
        assert (done.code, "4 images" in done.out) == (0, True), done.out + done.err
        assert f"3.{ending}" in done.out

    return check


def cut_cases() -> list[Case]:
    kinds = list(CUT)
    whole = [Case(f"{kind} cut at 100 lengths", cut(kind, 100), 100) for kind in kinds]
    files = [Case(f"a cut {kind} in a set", cut_in_a_set(kind)) for kind in ("JPEG", "PNG", "WEBP")]
    return whole + files


# ---- 43: bombs


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros_png(side: int) -> bytes:
    """A true PNG of side x side black pixels, some kB."""
    row, packer, body = bytes(1 + 3 * side), zlib.compressobj(9), b""
    for _ in range(side):
        body += packer.compress(row)
    return png_header(side, side, body + packer.flush())


def jpeg_header(side: int) -> bytes:
    data = photo(1, "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :]


def bmp_header(side: int) -> bytes:
    data = bytearray(photo(1, "BMP"))
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


def webp_header(side: int) -> bytes:
    """An extended WebP whose canvas is side x side."""
    canvas = (side - 1).to_bytes(3, "little") * 2
    frame = photo(1, "WEBP")[12:]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_png() -> bytes:
    """A PNG whose compressed text would be 512 MB."""
    packer, body = zlib.compressobj(9), b""
    for _ in range(512):
        body += packer.compress(bytes(1 << 20))
    body = b"Comment\0\0" + body + packer.flush()
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = photo(1, "PNG")
    return whole[:33] + chunk + whole[33:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 12,000 x 12,000": lambda: zeros_png(12_000),
    "PNG of 20,000 x 20,000": lambda: zeros_png(20_000),
    "PNG header of 2^31-1": lambda: png_header((1 << 31) - 1, (1 << 31) - 1),
    "JPEG header of 65,500": lambda: jpeg_header(65_500),
    "WebP canvas of 16,383": lambda: webp_header(16_383),
    "BMP header of 60,000": lambda: bmp_header(60_000),
    "PNG with 512 MB of text": text_png,
}


def bomb(make: Callable[[], bytes]) -> Callable[[Path], dict[str, float]]:
    def check(place: Path) -> dict[str, float]:
        data = make()
        decode(photo(1), Rule(8))  # what decoding needs anyway is imported
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        block = decode_chunk([Encoded("bomb.png", -1, data)], Rule(8))
        grown = _memory("VmHWM") - before
        assert len(block.bad) == 1, "it was taken"
        assert grown < HEAP, f"memory grew by {grown / 1e6:.0f} MB"
        root = tree(place / "set", {"ok.png": photo(1, "PNG"), "bomb.png": data})
        refused(place, 3, "bomb.png", "on_bad", "data", "prepare", "folder", f"path={root}", "resolution=8")
        return {"MB": grown / 1e6}

    return check


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


# ---- 44: odd ones


GREY = Image.new("L", (8, 8), 100)
RED = Image.new("RGB", (8, 8), (200, 30, 60))
CLEAR = Image.new("RGBA", (8, 8), (0, 0, 0, 0))


def sixteen(mode: str) -> bytes:
    return encoded(Image.fromarray(np.full((8, 8), 0x81FF, np.uint16)), mode)


def frames(kind: str) -> bytes:
    return encoded(RED, kind, save_all=True, append_images=[GREY.convert("RGB")], lossless=True)


def palette() -> bytes:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 200, 30, 60])
    return encoded(picture, "PNG")


def rotated() -> bytes:
    """The left half white as stored; upright, by EXIF's 3, it is the right half."""
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(picture, "PNG", exif=exif)


def sixteen_rgb() -> bytes:
    """A PNG of 16 bits a channel, written by hand: Pillow does not."""
    rows = b"".join(b"\0" + struct.pack(">3H", 0xC8FF, 0x1E00, 0x3C80) * 8 for _ in range(8))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# the file's name, its bytes, the note, the lower right pixel's (R, G, B), how far it may be off
CONVERTED: dict[str, tuple[str, Callable[[], bytes], str, tuple[int, int, int], int]] = {
    "16-bit grey PNG": ("a.png", lambda: sixteen("PNG"), "16bit", (0x81, 0x81, 0x81), 0),
    "16-bit RGB PNG": ("a.png", sixteen_rgb, "", (0xC8, 0x1E, 0x3C), 1),
    "CMYK JPEG": ("a.jpg", lambda: encoded(RED.convert("CMYK"), "JPEG"), "cmyk", (200, 30, 60), 12),
    "RGBA PNG over white": ("a.png", lambda: encoded(CLEAR, "PNG"), "alpha", (255, 255, 255), 0),
    "palette PNG": ("a.png", palette, "palette", (200, 30, 60), 0),
    "L PNG": ("a.png", lambda: encoded(GREY, "PNG"), "grey", (100, 100, 100), 0),
    "LA PNG": ("a.png", lambda: encoded(GREY.convert("LA"), "PNG"), "alpha", (100, 100, 100), 0),
    "1-bit PNG": ("a.png", lambda: encoded(Image.new("1", (8, 8), 1), "PNG"), "grey", (255, 255, 255), 0),
    "animated WebP": ("a.webp", lambda: frames("WEBP"), "animated", (200, 30, 60), 0),
    "animated PNG": ("a.png", lambda: frames("PNG"), "animated", (200, 30, 60), 0),
    "EXIF-rotated": ("a.png", rotated, "rotated", (255, 255, 255), 0),
    "1x1": ("a.png", lambda: encoded(RED.resize((1, 1)), "PNG"), "enlarged", (200, 30, 60), 0),
    "PNG named .jpg": ("a.jpg", lambda: encoded(RED, "PNG"), "", (200, 30, 60), 0),
    "JPEG named .png": ("a.png", lambda: encoded(RED, "JPEG", quality=100), "", (200, 30, 60), 6),
}
REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "HEIC named .jpg": ("a.jpg", lambda: b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "text named .png": ("a.png", lambda: b"I am a text file\n" * 9, "text"),
    "HTML named .jpg": ("a.jpg", lambda: b"<!DOCTYPE html><html>404</html>", "HTML"),
    "GIF": ("a.gif", lambda: encoded(RED, "GIF"), "GIF"),
    "GIF named .png": ("a.png", lambda: encoded(RED, "GIF"), "GIF"),
    "TIFF named .png": ("a.png", lambda: encoded(RED, "TIFF"), "TIFF"),
    "PPM": ("a.ppm", lambda: encoded(RED, "PPM"), "PPM"),
    "SVG": ("a.svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "HTML or XML"),
    "of no bytes": ("a.png", lambda: b"", "empty"),
    "a PNG of no pixels": ("a.png", lambda: png_header(0, 0), ""),
}  # fmt: skip


def converted(which: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        name, make, note, colour, off = CONVERTED[which]
        root = tree(place / "set", {name: make()})
        with cache(place):
            data = Folder(str(root), resolution=8).load()
        there = data.images[0, :, -1, -1].astype(int)
        assert np.abs(there - colour).max() <= off, f"{there.tolist()}, not {colour}"
        counts = data.manifest["counts"]
        assert not note or counts.get(note) == 1, f"noted {counts}"

    return check


def odd(which: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        name, make, says = REFUSED[which]
        root = tree(place / "set", {"ok.png": photo(1, "PNG"), name: make()})
        words = ("data", "prepare", "folder", f"path={root}", "resolution=8")
        refused(place, 3, rf"{names(name)}: .*{says}", "on_bad", *words)
        assert command(place, *words, "on_bad=skip").code == 0
        assert len(packs(place)) == 1

    return check


def odd_cases() -> list[Case]:
    bombs = [Case(f"bomb: {name}", bomb(make)) for name, make in BOMBS.items()]
    turned = [Case(f"converted: {name}", converted(name)) for name in CONVERTED]
    away = [Case(f"refused: {name}", odd(name)) for name in REFUSED]
    return [*bombs, *turned, *away]


FIGURES = [
    Figure("cut-images", "Truncated images -> refused and named", (41,), 400, cut_cases),
    Figure(
        "odd-images", "Bomb-sized and odd images -> refused and named, or converted by a rule", (43, 44), 30,
        odd_cases,
        lambda found: f"at most {max((n['MB'] for n in found if 'MB' in n), default=0):.0f} MB more memory",
    ),
]  # fmt: skip
