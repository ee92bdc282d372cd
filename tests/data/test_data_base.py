"""Batches are a function of (seed, position); pixels become floats as the papers have it; the digits."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ganlab.data import batches as sampling
from ganlab.data.base import SampleSet
from ganlab.data.batches import AHEAD, Sampler
from ganlab.data.digits import Digits
from ganlab.data.fingerprint import fingerprint
from ganlab.errors import DataError
from ganlab.rng import generator
from ganlab.samples.images import to_float


def numbered(count: int = 10, labels: bool = True) -> SampleSet:
    """Image i is filled with i and has the label i % 3."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 4, 4)).copy()
    y = np.arange(count) % 3 if labels else None
    return SampleSet(images, y, ["a", "b", "c"], fingerprint(images, y), "numbers", "train")


def drawn(batches: Sampler, start: int, size: int) -> list[int]:
    return batches.batch(start, size).x[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["in memory", "memory-mapped"])
def test_sample_i_is_a_function_of_seed_and_position(memory_gb: float) -> None:
    data = numbered()
    batches = Sampler(data, "cpu", seed=3, data_memory_gb=memory_gb)
    orders = [
        torch.randperm(10, generator=generator("cpu", 3, "order", epoch)).tolist() for epoch in range(3)
    ]
    expected = orders[0] + orders[1] + orders[2]
    assert drawn(batches, 0, 10) == expected[:10]
    assert drawn(batches, 7, 8) == expected[7:15]  # straddles two epochs
    assert drawn(batches, 25, 5) == expected[25:30]  # a jump ahead
    assert drawn(batches, 0, 3) == expected[:3]  # and back
    assert [n for i in range(0, 30, 3) for n in drawn(batches, i, 3)] == expected
    assert orders[0] != orders[1]
    batches.close()


def test_labels_follow_their_images() -> None:
    for memory_gb in (1.0, 0.0):
        x, y = Sampler(numbered(), "cpu", 0, memory_gb).batch(4, 9)
        assert y is not None
        assert y.dtype == torch.int64
        assert x.dtype == torch.uint8
        assert (x[:, 0, 0, 0] % 3).tolist() == y.tolist()
    assert Sampler(numbered(labels=False), "cpu", 0).batch(0, 4).y is None


def test_batch_larger_than_the_data() -> None:
    with pytest.raises(
        DataError, match=r"^batch_size: 11 is more than the 10 images of numbers train; use at"
    ):
        Sampler(numbered(), "cpu", 0).batch(0, 11)
    with pytest.raises(ValueError, match="start >= 0"):
        Sampler(numbered(), "cpu", 0).batch(-1, 2)


def mapped(folder: Path, count: int = 10, offset: int = 0) -> SampleSet:
    """``numbered`` in a memory map that begins ``offset`` bytes into its file."""
    data = numbered(count)
    (folder / "images.u8").write_bytes(bytes(offset) + data.images.tobytes())
    images = np.memmap(folder / "images.u8", np.uint8, "r", offset, data.images.shape)
    return replace(data, images=images)


def test_a_memory_map_gives_the_batches_of_the_memory(tmp_path: Path) -> None:
    data = mapped(tmp_path)
    batches, whole = Sampler(data, "cpu", 0, data_memory_gb=0), Sampler(data, "cpu", 0)
    assert batches._map is not None
    for start in range(0, 60, 4):
        assert torch.equal(batches.batch(start, 4).x, whole.batch(start, 4).x)
    batches.close()
    assert batches.batch(4, 4).x.shape == (4, 3, 4, 4)


class AdviceLog:
    """In the place of a map: notes which bytes the kernel is asked for."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, int]] = []

    def madvise(self, advice: int, start: int, length: int) -> None:
        assert advice == mmap.MADV_WILLNEED
        self.ranges.append((start, length, start + length))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="no madvise here")
@pytest.mark.parametrize("offset", [0, mmap.ALLOCATIONGRANULARITY * 3 + 5])
def test_the_kernel_is_asked_for_each_image_once_before_it_is_read(tmp_path: Path, offset: int) -> None:
    side, count = 40, 4 * AHEAD  # images of 4,800 bytes: more than a page
    pixels = (
        np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(side, 2).repeat(side, 3)
    )
    (tmp_path / "images.u8").write_bytes(bytes(offset) + pixels.tobytes())
    images = np.memmap(tmp_path / "images.u8", np.uint8, "r", offset, pixels.shape)
    batches = Sampler(SampleSet(images, None, [], "", "n", "train"), "cpu", 0, data_memory_gb=0)
    advice = AdviceLog()
    assert isinstance(batches._map, mmap.mmap)
    batches._map.madvise(mmap.MADV_WILLNEED, 0, mmap.PAGESIZE)  # the real one takes it
    batches._map = advice  # type: ignore[assignment]
    size, begin = 3 * side * side, offset % mmap.ALLOCATIONGRANULARITY
    for number in range(3):
        before = list(advice.ranges)
        x = batches.batch(2 * number, 2).x
        assert (len(advice.ranges) - len(before)) == (2 * (AHEAD + 1) if number == 0 else 2)
        for image in x[:, 0, 0, 0].tolist():
            first, last = begin + image * size, begin + (image + 1) * size
            assert any(a <= first and last == end for a, _, end in advice.ranges)
            assert number == 0 or any(last == end for _, _, end in before), "asked for too late"
    assert all(start % mmap.PAGESIZE == 0 for start, _, _ in advice.ranges)
    chosen = batches.indices(0, 2 * (AHEAD + 3)).tolist()
    assert [(end - begin) // size - 1 for _, _, end in advice.ranges] == chosen  # in order, none twice
    for start in (500, 4):  # a jump ahead, and back
        advice.ranges.clear()
        batches.batch(start, 2)
        chosen = batches.indices(start, 2 * (AHEAD + 1)).tolist()
        assert [(end - begin) // size - 1 for _, _, end in advice.ranges] == chosen


def test_images_lie_on_a_gpu_up_to_half_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (140_000_000_000, 141_000_000_000))
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    room = sampling.memory_limit
    assert [room(gpu, None), room(cpu, None), room(gpu, 1.5), room(cpu, 0)] == [70e9, 4e9, 1.5e9, 0]


def test_a_copy_in_memory_survives_its_file(tmp_path: Path) -> None:
    data = mapped(tmp_path)
    batches = Sampler(data, "cpu", 0)
    expected = drawn(batches, 0, 10)
    with open(tmp_path / "images.u8", "r+b") as file:
        file.write(bytes(480))
    assert drawn(batches, 0, 10) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["on the device", "memory-mapped"])
def test_batches_on_a_gpu_are_those_of_the_cpu(memory_gb: float) -> None:
    here, on_gpu = Sampler(numbered(), "cpu", 5), Sampler(numbered(), "cuda", 5, memory_gb)
    for start in range(0, 60, 4):
        cpu, gpu = here.batch(start, 4), on_gpu.batch(start, 4)
        assert gpu.x.device.type == "cuda"
        assert torch.equal(cpu.x, gpu.x.cpu())
        assert cpu.y is not None
        assert gpu.y is not None
        assert torch.equal(cpu.y, gpu.y.cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_was_handed_out_on_a_gpu_stays_as_more_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned slots and the copies' memory are used again only once nobody reads them."""
    monkeypatch.setattr(sampling, "BLOCK", 100)  # the set goes over in many pieces
    data = numbered(250)
    here, on_gpu = Sampler(data, "cpu", 5), Sampler(data, "cuda", 5, 0.0)
    assert on_gpu.on_device is None
    whole = Sampler(data, "cuda:0", 7)
    assert whole.on_device is not None
    assert torch.equal(whole.on_device.cpu(), torch.from_numpy(data.images))
    kept = [(start, on_gpu.batch(start, size).x) for start in range(0, 3000, 100) for size in (60, 100)]
    busy = torch.zeros(2000, 2000, device="cuda")
    for start, x in kept:
        busy = busy @ busy  # the compute runs behind
        x.add_(1)
        assert torch.equal(x.cpu() - 1, here.batch(start, len(x)).x)


def test_fingerprint_is_of_the_content() -> None:
    data = numbered()
    images, labels = data.images, data.labels
    assert labels is not None
    assert fingerprint(images.copy(), labels.copy()) == data.fingerprint
    assert fingerprint(images, None) != data.fingerprint
    assert fingerprint(images.reshape(10, 4, 3, 4), labels) != data.fingerprint
    other = images.copy()
    other[9, 2, 3, 3] ^= 1
    assert fingerprint(other, labels) != data.fingerprint
    # sha256 of the pixels, then "10,3,4,4", then the labels as little-endian int64
    import hashlib

    by_hand = hashlib.sha256(images.tobytes() + b"10,3,4,4" + labels.astype("<i8").tobytes())
    assert data.fingerprint == by_hand.hexdigest()


def test_to_float() -> None:
    x = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    plain = to_float(x)
    assert plain.dtype == torch.float32
    assert plain.flatten().tolist() == pytest.approx([-1, 127 / 127.5 - 1, 1])
    noisy = to_float(x.expand(5000, 1, 1, 3), dequantize=True, generator=generator("cpu", 0, "train"))
    lowest = x.float() / 128 - 1
    above = (noisy - lowest) * 128
    assert above.min() >= 0
    assert above.max() < 1.0001
    assert above.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noisy.max() <= 1
    assert noisy.std(0).min() > 0


def test_flips_are_per_sample_and_half_of_them() -> None:
    x = torch.tensor([10, 20], dtype=torch.uint8).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    out = to_float(x, flip=True, generator=generator("cpu", 1, "train"))
    left = out[:, 0, 0, 0]
    flipped = left == to_float(torch.tensor([20], dtype=torch.uint8)).item()
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(out[:, 0, 0, 1] != left, torch.ones(4000, dtype=torch.bool))
    again = to_float(x, flip=True, generator=generator("cpu", 1, "train"))
    assert torch.equal(out, again)


def test_digits() -> None:
    data = Digits().load()
    assert data.images.shape == (1797, 1, 32, 32)
    assert data.images.dtype == np.uint8
    assert data.shape == (1, 32, 32)
    assert len(data) == 1797
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.classes == list("0123456789")
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert data.images[:, :, 0].max() < 40  # the margin
    assert data.fingerprint == fingerprint(data.images, data.labels) == Digits().load().fingerprint
    rgb = Digits(channels=3, resolution=16).load(split="train")
    assert rgb.shape == (3, 16, 16)
    assert np.array_equal(rgb.images[:, 0], rgb.images[:, 2])


def test_digits_resemble_their_source() -> None:
    from sklearn.datasets import load_digits

    small = Digits(resolution=10).load().images[:, 0, 1:-1, 1:-1]  # 8x8 and the margin: no resampling
    assert np.array_equal(small, np.rint(load_digits().images * 255 / 16).astype(np.uint8))
