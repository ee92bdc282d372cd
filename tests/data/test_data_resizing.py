"""Raw images are resized in processes as they are in this one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ganlab.data.fingerprint import Pixels
from ganlab.data.formats.images import resize_block
from ganlab.data.packing import resizing
from ganlab.data.packing.resizing import resize_all

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 3, 20, 20), dtype=np.uint8)


@pytest.mark.parametrize("resolution", [12, 31, 20])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 3, 1)])
def test_processes_give_the_same_images(
    resolution: int, axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "PIECE", 8 * 1200)
    stored = np.ascontiguousarray(IMAGES.transpose(axes))
    images = stored.transpose(np.argsort(axes))  # as another program stored them

    def blocks() -> Iterator[Pixels]:
        for start in range(0, 50, 20):
            yield images[start : start + 20]

    expected = resize_block(IMAGES, resolution, "bicubic")
    for workers in (None, 0, 2):
        pieces = list(resize_all(blocks(), 50, resolution, "bicubic", workers))
        assert len(pieces) > 3
        assert np.array_equal(np.concatenate(pieces), expected)


def test_few_images_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "WorkerPool", None)
    (pieces,) = resize_all([IMAGES], 50, 10, "box")
    assert np.array_equal(pieces, resize_block(IMAGES, 10, "box"))
    assert list(resize_all([], 0, 10, "box")) == []
