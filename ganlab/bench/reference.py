"""What ganlab is measured against: the plain loop, and the chip's best rate. Imports little else."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ganlab.system.hardware import find_device, set_precision

SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is timed
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
IMAGES = 10_000

Told = Callable[[], dict[str, Any]]  # how updates run, so far
Made = tuple[Callable[[], object], torch.device, Told]


def plain(script: Path, spec: dict[str, Any]) -> Made:
    """An update of the plain loop, in the precision asked for."""
    device = find_device(spec["device"])
    set_precision("tf32" if spec["precision"] == "tf32" else "fp32", device, False)
    torch.set_num_threads(spec["threads"])
    side = spec["resolution"]
    images = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8, device=device)
    plain_loop = load_script(script).Loop(images=images, bf16=spec["precision"] == "bf16", **spec["plain"])
    return plain_loop.update, device, lambda: {"used": "eager", "why": ""}


def load_script(script: Path) -> Any:
    """The module at a path."""
    found = importlib.util.spec_from_file_location("plain_loop", script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def peak(device_name: str, precisions: list[str], threads: int, seconds: float) -> dict[str, float]:
    """The best rate of a large product or convolution, FLOP/s, by precision: what a chip can do at most.

    Both, because libraries differ: on some CPUs the product of square matrices is not the faster one.
    """
    device = find_device(device_name)
    torch.set_num_threads(threads)
    told = {}
    for precision in precisions:
        set_precision(precision, device, False)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # which no run does
        side: int = SIDES[device.type]
        channels = min(256, side // 8)
        # random numbers: a GPU is faster on constants than on anything that is trained
        shapes = [(side, side), (side, side), (64, channels, 16, 16), (channels, channels, 3, 3)]
        a, b, x, w = (torch.randn(shape, device=device).to(DTYPES[precision]) for shape in shapes)
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        works = [
            (2 * side**3, lambda a=a, b=b: a @ b),
            (2 * 64 * 256 * channels**2 * 9, lambda x=x, w=w: torch.conv2d(x, w, padding=1)),
        ]
        told[precision] = max(_rate(flops, work, device, seconds / 2) for flops, work in works)
    return told


def _rate(flops: int, work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The best of ``seconds`` of repetitions, after a first one; FLOP/s."""
    best, began = 0.0, time.perf_counter()
    with torch.no_grad():
        work()
        while time.perf_counter() - began < seconds or not best:
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, flops / (time.perf_counter() - start))
    return best
