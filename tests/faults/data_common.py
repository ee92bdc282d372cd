"""Small images, archives and commands for the figures of data: in this process, to cost little."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from ganlab.cli import main

from .base import Case, Done, one_line


def command(place: Path, *words: str, env: Mapping[str, str] | None = None) -> Done:
    """``ganlab`` with these words, its cache in ``place``."""
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    own = {"GANLAB_CACHE": str(place / "cache"), "GANLAB_OFFLINE": "1"} | dict(env or {})
    with patch.dict(os.environ, own), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(list(words))
    return Done(code, out.getvalue(), err.getvalue(), time.monotonic() - began)


def refused(place: Path, code: int, where: str, fix: str, *words: str) -> None:
    """The command ends with ``code`` and one line, and no pack is there."""
    one_line(command(place, *words), code, where, fix)
    assert not packs(place), "a pack was made"


def packs(place: Path) -> list[Path]:
    """The finished packs."""
    there = (place / "cache" / "datasets").glob("*/manifest.json")
    return [m.parent for m in there if not m.parent.name.startswith(".")]


@contextlib.contextmanager
def cache(place: Path) -> Iterator[None]:
    """The cache in ``place``."""
    with patch.dict(os.environ, {"GANLAB_CACHE": str(place / "cache"), "GANLAB_OFFLINE": "1"}):
        yield


def photo(seed: int, kind: str = "JPEG", side: int = 24, **options: Any) -> bytes:
    """A smooth random colour image, encoded."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    picture = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    return encoded(picture, kind, **options)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def photos(n: int = 6, classes: str = "cat dog") -> dict[str, bytes]:
    """``n`` images of each class by path."""
    return {f"{c}/{i}.jpg": photo(100 * k + i) for k, c in enumerate(classes.split()) for i in range(n)}


def tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar_bytes(files: Mapping[str, bytes], extra: Callable[[tarfile.TarFile], None] | None = None,
              mode: str = "w") -> bytes:  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if extra:
            extra(archive)
    return out.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def names(text: str) -> str:
    """A pattern for a literal text."""
    return re.escape(text)


def cases(table: Mapping[str, Callable[[Path], None]]) -> Callable[[], list[Case]]:
    return lambda: [Case(name, check) for name, check in table.items()]
