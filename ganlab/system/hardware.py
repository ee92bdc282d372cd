"""Devices: selection, precision, memory and load."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any, cast

import torch

from ganlab.distributed import collectives
from ganlab.errors import ConfigError, EnvError

CPU = Path("/proc/cpuinfo")  # Linux only


def find_device(name: str) -> torch.device:
    """The device for ``device=``; with several ranks, ``auto`` and ``cuda`` give each rank its own GPU.

    Raises EnvError if a CUDA device does not exist, ConfigError if all ranks would use the same GPU.
    """
    team = collectives.current()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if ":" in name and team.size > 1:
        fix = "use device=auto, which gives each rank its own GPU"
        raise ConfigError("device", f"{name} for all {team.size} ranks", fix)
    index = int(name.partition(":")[2] or team.local)
    if index >= count:
        available = f"this machine has cuda:0 to cuda:{count - 1}" if count else "no CUDA device was found"
        if team.size > 1:
            what = f"rank {team.rank} needs cuda:{index}: {available}"
            raise EnvError("device", what, "start one rank per GPU, or use device=cpu")
        raise EnvError("device", f"{name} does not exist: {available}", "use device=cpu or device=auto")
    return torch.device("cuda", index)


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: GPUs since Ampere, and some CPUs."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        words = set(CPU.read_text(errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86 with matrix units, ARM


def slow_bf16(precision: str, device: torch.device) -> str:
    """A warning for bfloat16 on a CPU that has to emulate it; else ""."""
    if precision != "bf16" or device.type != "cpu" or not CPU.is_file() or fast_bf16(device):
        return ""
    what = "this CPU has no bfloat16 instructions, so precision=bf16 is several times slower than fp32"
    return f"{what}; precision=auto uses bf16 only where it is faster"


def disable_malloc_trim() -> None:
    """Make glibc keep freed memory for the next update, which saves page faults; no effect elsewhere.

    M_MMAP_MAX 0: large tensors are allocated on the heap too. M_TRIM_THRESHOLD: the heap is not trimmed.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def set_precision(precision: str, device: torch.device, deterministic: bool) -> None:
    """Set torch's process-wide switches for precision and determinism.

    TensorFloat-32 is used for convolutions only, because norms and penalties use matrix products.
    """
    # not torch 2.9's fp32_precision: Inductor reads these older flags, and would then raise
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, precision != "fp32"
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    if (
        torch.are_deterministic_algorithms_enabled() != deterministic
    ):  # the setter imports much; the getter not
        torch.use_deterministic_algorithms(deterministic)
    deterministic_switches = cast(Any, torch.utils).deterministic
    deterministic_switches.fill_uninitialized_memory = False  # no kernel reads uninitialized memory
    if deterministic:  # torch refuses matrix products on a GPU without it; read at the first of them
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def oversubscription_hint(device: torch.device) -> str:
    """A hint for a CPU run with the default number of threads on a busy machine; else "".

    The number of threads is not derived from the load, because results would then depend on other processes.
    """
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if (
        device.type != "cpu"
        or threads == 1
        or collectives.current().size > 1
        or "OMP_NUM_THREADS" in os.environ
    ):
        return ""
    try:
        load = os.getloadavg()[0]
    except OSError:
        return ""
    if load + threads <= 1.5 * cores:
        return ""
    return f"the machine is busy (load {load:.1f}, {cores} cores); threads=1 is likely faster"


def device_name(device: torch.device) -> str:
    """The device's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if CPU.is_file():
        for line in CPU.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"cpu ({line.partition(':')[2].strip()})"
    return f"cpu ({platform.machine()})"


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in 10^6 bytes: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss / 1e6 if sys.platform == "darwin" else rss * 1024 / 1e6
