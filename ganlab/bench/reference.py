"""Benchmark references: the plain loop, and the device's peak FLOP rate."""

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

Describe = Callable[[], dict[str, Any]]  # engine used so far, and why
Updates = tuple[Callable[[], object], torch.device, Describe]


def plain_updates(script: Path, spec: dict[str, Any]) -> Updates:
    """The plain loop's update in the requested precision, its device and its status."""
    device = find_device(spec["device"])
    set_precision("tf32" if spec["precision"] == "tf32" else "fp32", device, False)
    torch.set_num_threads(spec["threads"])
    side = spec["resolution"]
    images = torch.randint(0, 256, (IMAGES, 3, side, side), dtype=torch.uint8, device=device)
    plain_loop = load_script(script).Loop(images=images, bf16=spec["precision"] == "bf16", **spec["plain"])
    return plain_loop.update, device, lambda: {"used": "eager", "why": ""}


def load_script(script: Path) -> Any:
    """Import the module at a path."""
    spec = importlib.util.spec_from_file_location("plain_loop", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peak(device_name: str, precisions: list[str], threads: int, seconds: float) -> dict[str, float]:
    """Peak FLOP/s by precision: the best rate of a large matrix product or convolution.

    Both are measured, because which one is faster depends on the CPU and its libraries.
    """
    device = find_device(device_name)
    torch.set_num_threads(threads)
    rates = {}
    for precision in precisions:
        set_precision(precision, device, False)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"  # runs never set this
        side: int = SIDES[device.type]
        channels = min(256, side // 8)
        # random data, since a GPU computes faster on constants
        shapes = [(side, side), (side, side), (64, channels, 16, 16), (channels, channels, 3, 3)]
        a, b, x, w = (torch.randn(shape, device=device).to(DTYPES[precision]) for shape in shapes)
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        workloads = [
            (2 * side**3, lambda a=a, b=b: a @ b),
            (2 * 64 * 256 * channels**2 * 9, lambda x=x, w=w: torch.conv2d(x, w, padding=1)),
        ]
        rates[precision] = max(_rate(flops, work, device, seconds / 2) for flops, work in workloads)
    return rates


def _rate(flops: int, work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Best FLOP/s over ``seconds`` of repetitions, after one warm-up."""
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
