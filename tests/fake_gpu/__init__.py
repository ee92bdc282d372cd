"""A CUDA device without a GPU: torch's own host code on a runtime that computes nothing and counts all.

``build.sh`` makes a stand-in for libcudart, cuBLAS, cuDNN and libcuda out of these sources. torch's
allocator, autograd threads, graph capture with its rules, generators and routing to kernels are the real
ones. Kernels compute nothing: numbers on the device are what lay in memory. ``runtime`` builds it at need.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = (
    "fake.h",
    "runtime.cpp",
    "streams.cpp",
    "libraries.cpp",
    "driver.cpp",
    "crt/host_defines.h",
    "build.sh",
)


def missing() -> str:
    """Why the fake device can't be built here; "" if it can."""
    torch = importlib.util.find_spec("torch")
    if torch is None or not (Path(torch.origin or "").parent / "lib" / "libtorch_cuda.so").is_file():
        return "this torch is built without CUDA"
    return next((f"{tool} is missing" for tool in ("g++", "nm") if shutil.which(tool) is None), "")


def runtime() -> Path:
    """The folder of the built runtime, made where these sources and this torch have none yet."""
    text = b"".join((HERE / name).read_bytes() for name in SOURCES) + version("torch").encode()
    place = ROOT / "build" / f"fake_gpu-{hashlib.sha256(text).hexdigest()[:12]}"
    if not place.is_dir():
        place.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place.parent))
        subprocess.run([HERE / "build.sh", made, sys.executable], check=True, stdout=subprocess.DEVNULL)
        try:
            made.rename(place)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return place


def environment() -> dict[str, str]:
    """This process's environment, with a fake device of 141 GB."""
    place = runtime()
    return os.environ | {
        "LD_PRELOAD": str(place / "libfakecuda.so"),
        "LD_LIBRARY_PATH": str(place / "drv"),
    }
