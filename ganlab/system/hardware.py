"""Devices, their precision and memory, and what is known of their load."""

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

CPU = Path("/proc/cpuinfo")  # Linux's


def find_device(wanted: str) -> torch.device:
    """The device asked for; of many ranks, ``auto`` and ``cuda`` are each its own GPU.

    Raises EnvError if it is a CUDA device that is not there, ConfigError if all ranks were given the same.
    """
    team = collectives.current()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        wanted = "cuda" if count else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if ":" in wanted and team.size > 1:
        raise ConfigError("device", f"{wanted} for all {team.size} ranks", "use device=auto: a GPU for each")
    index = int(wanted.partition(":")[2] or team.local)
    if index >= count:
        there = f"this machine has cuda:0 to cuda:{count - 1}" if count else "no CUDA device was found"
        if team.size > 1:
            what = f"rank {team.rank} wants cuda:{index}: {there}"
            raise EnvError("device", what, "start one rank for each GPU, or use device=cpu")
        raise EnvError("device", f"{wanted} is not there: {there}", "use device=cpu or device=auto")
    return torch.device("cuda", index)


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: a GPU from Ampere on, a CPU that can."""
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
    what = "this CPU has no bfloat16 instructions, and precision=bf16 is several times slower than fp32 on it"
    return f"{what}; precision=auto takes it where it is faster"


def disable_malloc_trim() -> None:
    """Let the C library keep what an update frees for the next one; giving pages back and forth takes time.

    Where the library is glibc; elsewhere nothing happens. M_MMAP_MAX 0: large tensors come from the heap too;
    M_TRIM_THRESHOLD: the heap's end is not given back.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def set_precision(precision: str, device: torch.device, deterministic: bool) -> None:
    """Process-wide switches of torch for a run's precision and determinism.

    TensorFloat-32 is for convolutions alone: products of matrices are the norms' and penalties'.
    """
    # not torch 2.9's fp32_precision: what Inductor reads, which is these, would then raise
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, precision != "fp32"
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # asking is quick; setting imports much
        torch.use_deterministic_algorithms(deterministic)
    deterministic_switches = cast(Any, torch.utils).deterministic
    deterministic_switches.fill_uninitialized_memory = False  # no kernel reads what none has written
    if deterministic:  # torch refuses products on a GPU without it; read at the first of them
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def oversubscription_hint(device: torch.device) -> str:
    """A hint for a run on a CPU whose threads nobody chose, where others keep the cores busy; else "".

    The number of threads is not taken from the load: a run would then depend on its neighbours, and not
    be what it is alone.
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
    there = f"load {load:.1f} and {threads} threads more on {cores} cores"
    fix = "threads=1 from their first update on; ganlab sweep jobs=N divides them"
    return f"{there}: runs side by side are faster with fewer each, as {fix}"


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if CPU.is_file():
        for line in CPU.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"cpu ({line.partition(':')[2].strip()})"
    return f"cpu ({platform.machine()})"


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far, in 10^6 bytes: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss / 1e6 if sys.platform == "darwin" else rss * 1024 / 1e6
