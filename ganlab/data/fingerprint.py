"""A hash of a dataset's samples and labels, independent of how they are stored."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

Labels = npt.NDArray[np.int64]

HASH_BLOCK = 1 << 24  # bytes hashed at a time: a memory map never has to be resident as a whole


def fingerprint(images: npt.NDArray[Any], labels: Labels | None) -> str:
    """sha256 (hex) over the pixel bytes, then the shape as text, then the labels (little-endian int64).

    Two sets agree in it if and only if they hold the same images and labels in the same order; names,
    paths and times play no part. The pixels come first so that a packer can hash while it streams.
    """
    digest = hashlib.sha256()
    flat = np.ascontiguousarray(images).reshape(-1)
    for start in range(0, flat.size, HASH_BLOCK):
        digest.update(flat[start : start + HASH_BLOCK].data)
    return finish_fingerprint(digest, images.shape, labels)


def finish_fingerprint(digest: Any, shape: tuple[int, ...], labels: Labels | None) -> str:
    """Close a running sha256 over pixel bytes into a ``fingerprint``; ``digest`` itself is left as it was."""
    digest = digest.copy()
    digest.update(",".join(map(str, shape)).encode())
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return str(digest.hexdigest())
