"""``ganlab doctor``: what this machine has, what is missing, and the fix for each. Changes nothing.

Whatever can't be found out is a finding of its own: the doctor does not fall ill.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ganlab import __version__
from ganlab.errors import EnvError
from ganlab.paths import PACKAGE, cache_dir
from ganlab.stores import Finding, datasets, prepared, weights

MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]--[/]", "broken": "[red]!![/]"}
LOW_DISK = 2e9  # bytes: less may not hold a few checkpoints
LOW_MEMORY = 2e9


def doctor(as_json: bool = False) -> int:
    """Print all findings, as tables or as JSON. Returns 5 if something required is broken, else 0."""
    found = [finding for section in SECTIONS for finding in _examined(section)]
    broken = [f for f in found if f.state == "broken"]
    if as_json:
        told = {"ganlab": __version__, "ok": not broken, "findings": [f._asdict() for f in found]}
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        _print(found, broken)
    return EnvError.code if broken else 0


def _examined(section: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(section())
    except Exception as error:
        name = section.__name__.strip("_")
        return [Finding(name, name, "broken", f"can't be examined: {type(error).__name__}: {error}")]


def _machine() -> Iterator[Finding]:
    name = "machine"
    version = sys.version_info
    fits = (3, 11) <= version[:2] < (3, 14)
    where = f"{platform.python_version()} ({sys.executable})"
    fix = "" if fits else "use Python 3.11, 3.12 or 3.13"
    yield Finding(name, "python", "ok" if fits else "broken", where, fix)
    yield Finding(name, "system", "ok", platform.platform())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(name, "cpu", "ok", f"{cores} cores" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    total, free = _memory()
    if total:
        low = free < LOW_MEMORY
        fix = "close other programs, or lower batch_size" if low else ""
        text = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
        yield Finding(name, "memory", "absent" if low else "ok", text, fix)
    for what, folder, key in (
        ("runs", Path("outputs"), "run_dir="),
        ("cache", cache_dir(), "GANLAB_CACHE=FOLDER"),
    ):
        yield _disk(name, what, folder, key)


def _memory() -> tuple[float, float]:
    """Bytes of memory in all and free; zeros where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
        sizes = {k: int(n) * 1024 for k, n in re.findall(r"(\w+):\s+(\d+) kB", text)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError):
        return 0, 0


def _disk(section: str, what: str, folder: Path, key: str) -> Finding:
    """Room and permission where a folder is, or where it would be made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    shown = str(folder.absolute())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        return Finding(section, what, "broken", f"{shown} can't be written to", f"choose another with {key}")
    free = shutil.disk_usage(there).free
    fix = f"free some space, or choose another folder with {key}" if free < LOW_DISK else ""
    return Finding(section, what, "absent" if fix else "ok", f"{shown}, {free / 1e9:,.1f} GB free", fix)


EXTRAS = {"slurm": "sweeps on a SLURM cluster", "ray": "sweeps on Ray", "dev": "for developers"}


def _packages() -> Iterator[Finding]:
    """Each package once: what is required first, then the extras in the order of ``EXTRAS``."""
    seen = set[str]()
    wanted = importlib.metadata.requires("ganlab") or []
    for of in ("", *EXTRAS):
        for requirement in wanted:
            text, _, marker = requirement.partition(";")
            match = re.match(r"\s*([\w.-]+)\s*(.*)", text)
            extra = re.search(r"""extra\s*==\s*["'](\w+)""", marker)
            if match and match[1] not in seen and (extra[1] if extra else "") == of:
                seen.add(match[1])
                yield _package(match[1], match[2].strip(), of)


def _package(package: str, bounds: str, extra: str) -> Finding:
    kind: Literal["absent", "broken"] = "absent" if extra else "broken"
    fix = f"pip install '{package}{bounds}'"
    fix = f"pip install 'ganlab[{extra}]'" if extra in EXTRAS and extra != "dev" else fix
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        use = EXTRAS.get(extra, "required")
        use = use if extra in ("", "dev") else f"optional: {use}"
        return Finding("packages", package, kind, f"missing, {use}", fix)
    if fits(version, bounds):
        return Finding("packages", package, "ok", version)
    return Finding("packages", package, kind, f"{version}, wants {bounds}", fix)


def fits(version: str, bounds: str) -> bool:
    """Whether a version is within ``>=1.2,<3``; only the numbers count."""

    def numbers(text: str) -> list[int]:
        found = [int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3]]
        return found + [0] * (3 - len(found))

    have = numbers(version)
    for sign, bound in re.findall(r"(>=|<=|<|>|==|!=)\s*([\d.]+)", bounds):
        want = numbers(bound)
        holds = {">=": have >= want, "<=": have <= want, "<": have < want, ">": have > want}
        if not holds.get(sign, (have == want) == (sign == "==")):
            return False
    return True


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken build raises anything
        what = f"torch can't be imported: {error}".splitlines()[0]
        yield Finding("devices", "torch", "broken", what, "install the build for this machine (README)")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    text = f"{torch.__version__}, {built}, {torch.get_num_threads()} CPU threads"
    yield Finding("devices", "torch", "ok", text)
    yield from _speed()
    if not torch.cuda.is_available():
        fix = "fine on a CPU machine; else check the driver against the CUDA build (README)"
        yield Finding("devices", "cuda", "absent", "no CUDA device: device=auto means the CPU", fix)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        text = f"{about.name}, {about.total_memory / 1e9:.0f} GB, compute {about.major}.{about.minor}"
        yield Finding("devices", f"cuda:{index}", "ok", text)


def _speed() -> Iterator[Finding]:
    """What makes some keys worth their while here."""
    import torch

    from ganlab.facts import fast_bf16, find_device

    if fast_bf16(find_device("auto")):
        yield Finding("devices", "bf16", "ok", "precision=bf16 is fast here")
    else:
        text = "precision=bf16 would be slow: the processor emulates it"
        yield Finding("devices", "bf16", "absent", text, "leave precision as it is, or take precision=auto")
    compiler = shutil.which("c++") or shutil.which("g++")
    missing = [] if compiler else ["g++"]
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        missing.append("triton")
    needs = " and ".join(missing)
    text = f"engine=compile needs {needs}" if missing else f"{compiler}, for engine=compile"
    fix = f"install {needs}, or leave engine=auto" if missing else ""
    yield Finding("devices", "compiler", "absent" if missing else "ok", text, fix)


SECTIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine,
    _packages,
    _devices,
    datasets,
    prepared,
    weights,
)


def _print(found: list[Finding], broken: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(f"ganlab {__version__}, {PACKAGE}")
    for section in dict.fromkeys(f.section for f in found):
        table = Table(box=None, pad_edge=False, show_header=False, title=section, title_justify="left")
        table.title_style = "bold"
        for column in ({"no_wrap": True}, {"no_wrap": True, "min_width": 18}, {"overflow": "fold"}):
            table.add_column(**column)
        for f in found:
            if f.section == section:
                fix = f"\n[dim]fix: {escape(f.fix)}[/]" if f.fix else ""
                table.add_row(MARKS[f.state], escape(f.name), escape(f.text) + fix)
        console.print(table)
    if broken:
        names = ", ".join(f"{f.section} {f.name}" for f in broken)
        console.print(f"[red]{len(broken)} broken:[/] {escape(names)}")
    else:
        console.print(
            "[green]nothing required is missing[/]; -- marks what is optional or still to be fetched"
        )
