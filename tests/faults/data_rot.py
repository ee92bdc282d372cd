"""Bits that rot in files which go on decoding: a manifest of checksums finds every one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ganlab.data.folder import Folder
from ganlab.data.formats.images import BadImageError, Rule, decode
from ganlab.data.packing.check import check

from .base import Case, Failed, Figure
from .data_common import command, photo, tree


def rot(kind: str, n: int, seed: int) -> Callable[[Path], dict[str, float]]:
    """``n`` files with one flipped bit each, among as many sound ones."""

    def find(place: Path) -> dict[str, float]:
        random = np.random.default_rng(seed)
        ending = kind.lower()
        files = {f"{i:03d}.{ending}": photo(i, kind, 32) for i in range(2 * n)}
        root = tree(place / "set", files)
        words = ("data", "check", "folder", f"path={root}", "resolution=16")
        assert command(place, *words, "hash=write").code == 0
        flipped, silent = set[str](), 0
        for name in random.choice(sorted(files), n, replace=False).tolist():
            rotten = bytearray(files[name])
            rotten[int(random.integers(len(rotten)))] ^= 1 << int(random.integers(8))
            (root / name).write_bytes(rotten)
            flipped.add(name)
            silent += _decodes(bytes(rotten))
        originals = Folder(str(root), resolution=16).originals("all")
        report = check(originals, place / "set-all.sha256")
        found = set(report.changed)
        assert found <= flipped, f"sound files are called changed: {sorted(found - flipped)[:3]}"
        if lost := flipped - found:
            raise Failed(len(lost), f"not found: {sorted(lost)[:3]}")
        assert command(place, *words, "hash=verify").code == 3
        shutil.rmtree(root)
        return {"silent": silent}

    return find


def _decodes(data: bytes) -> bool:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decode(data, Rule(16))
    except BadImageError:
        return False
    return True


def cases() -> list[Case]:
    return [
        Case("300 JPEGs, a bit each", rot("JPEG", 300, 1), 300),
        Case("100 WebPs, a bit each", rot("WEBP", 100, 2), 100),
    ]


FIGURES = [
    Figure(
        "bit-rot", "Bit-rotted images found by `data check hash=verify`", (42,), 300, cases,
        lambda found: f"{sum(n.get('silent', 0) for n in found):.0f} of them decode without an error",
    ),
]  # fmt: skip
