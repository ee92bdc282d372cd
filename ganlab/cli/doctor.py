"""``ganlab doctor``: report what is installed and missing on this machine, with fixes. Changes nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ganlab import __version__
from ganlab.errors import EnvError
from ganlab.system.paths import PACKAGE, cache_dir

State = Literal["ok", "absent", "broken"]  # absent: optional, or fetched on demand


class Finding(NamedTuple):
    """One line of the report: section, item, state, description, and the fix."""

    section: str
    name: str
    state: State
    text: str
    fix: str = ""


def datasets() -> Iterator[Finding]:
    from ganlab.config.files import find, groups, read
    from ganlab.config.targets import resolve
    from ganlab.data.packing.download import BY_HAND, REMOTES, by_hand_place

    options, known = groups([]).get("dataset", []), {r.dataset for r in REMOTES}
    for option in options:
        if option in BY_HAND:
            place, (why, what) = by_hand_place(option), BY_HAND[option]
            if place.is_dir():
                yield Finding("datasets", option, "ok", str(place))
            else:
                yield Finding(
                    "datasets", option, "absent", why, f"put {what} in {place}, or set dataset.path"
                )
        elif option not in known and (file := find(f"dataset/{option}", [])):
            kind: Any = resolve(read(file)[0]["_target_"])
            yield Finding("datasets", option, "ok", kind.origin)
    for dataset in dict.fromkeys(r.dataset for r in REMOTES):
        remotes = [r for r in REMOTES if r.dataset == dataset]
        present = [r for r in remotes if r.path.is_file()]
        complete = [r for r in present if r.path.stat().st_size == r.size]
        if remotes[0].part and 0 < len(complete) < len(remotes):
            names = ", ".join(r.file for r in remotes if r not in complete)
            fix = f"'ganlab data prepare {dataset} split=all'"
            yield Finding("datasets", dataset, "absent", f"not downloaded: {names}", fix)
        elif complete:
            yield Finding("datasets", dataset, "ok", f"downloaded, {complete[0].path}")
        elif present:
            size = present[0].path.stat().st_size
            text = f"{present[0].path} has {size:,} bytes instead of {present[0].size:,}"
            yield Finding("datasets", dataset, "absent", text, "remove it to download it again")
        else:
            r = remotes[0]
            if r.part:
                r = replace(r, file=f"{r.file} etc.", size=sum(other.size for other in remotes))
            text = f"not downloaded: {r.file}, {r.size / 1e6:,.0f} MB, sha256 {r.sha256}"
            fix = f"'ganlab data prepare {dataset}', or download {r.url} elsewhere and put it at {r.path}"
            yield Finding("datasets", dataset, "absent", text, fix)


def prepared_sets() -> Iterator[Finding]:
    folder, number = cache_dir() / "datasets", 0
    for manifest in sorted(folder.glob("**/manifest.json")) if folder.is_dir() else []:
        if any(part.startswith(".") for part in manifest.relative_to(folder).parts):
            continue
        number += 1
        where = str(manifest.parent.relative_to(folder))
        try:
            record = json.loads(manifest.read_text("utf-8"))
            shape = [int(n) for n in record["shape"]]
            size = (manifest.parent / "images.u8").stat().st_size
            if size != math.prod(shape):
                raise ValueError(f"images.u8 has {size:,} bytes")
            pixels = "x".join(map(str, shape[1:]))
            pixels += ", contrast stretched" if (record.get("transform") or {}).get("stretch") else ""
            text = f"{record['name']} {record['split']}: {shape[0]:,} images {pixels}"
            text += f", sha256 {record['fingerprint']}"
            yield Finding("prepared", where, "ok", text)
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = f"remove {manifest.parent} to pack it again"
            yield Finding("prepared", where, "absent", f"damaged: {error}", fix)
    for partial in sorted(folder.glob(".tmp-*-part")) if folder.is_dir() else []:
        size = sum(file.stat().st_size for file in partial.glob("images.u8"))
        name = partial.name.removeprefix(".tmp-").removesuffix("-part")
        fix = f"'ganlab data prepare' continues it; or remove {partial}"
        yield Finding("prepared", name, "absent", f"incomplete, {size / 1e6:,.0f} MB", fix)
        number += 1
    if not number:
        yield Finding(
            "prepared", "none", "absent", f"nothing in {folder} yet", "training prepares what it needs"
        )


def weights() -> Iterator[Finding]:
    from ganlab.extractors import cifar, inception
    from ganlab.system.download import sha256

    if cifar.WEIGHTS.is_file():
        yield Finding("weights", "cifar", "ok", f"included, {cifar.WEIGHTS.stat().st_size / 1e6:.1f} MB")
    else:
        fix = "reinstall ganlab, or run scripts/train_feature_net.py"
        yield Finding("weights", "cifar", "broken", f"{cifar.WEIGHTS.relative_to(PACKAGE)} is missing", fix)
    for place in inception.places():
        if place.is_file():
            checksum = sha256(place)
            matches = checksum == inception.SHA256
            expected = "" if matches else f", expected {inception.SHA256[:16]}..."
            text = f"{place}, sha256 {checksum[:16]}{expected}"
            fix = "" if matches else "remove it to download it again"
            yield Finding("weights", "inception", "ok" if matches else "absent", text, fix)
            return
    text = f"missing: {inception.FILE}, {inception.SIZE_MB} MB, sha256 {inception.SHA256[:8]}..."
    folder = inception.places()[-1].parent
    fix = f"downloaded at first use; or put the file into {folder}, or set metric.weights=PATH"
    yield Finding(
        "weights",
        "inception",
        "absent",
        text,
        f"{fix}; or use metric.extractor=cifar, which needs no download",
    )


MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]--[/]", "broken": "[red]!![/]"}
LOW_DISK = 2e9  # bytes: less may be too little for a few checkpoints
LOW_MEMORY = 2e9


def doctor(as_json: bool = False) -> int:
    """Print all findings, as tables or as JSON. Returns 5 if something required is broken, else 0."""
    findings = [finding for section in SECTIONS for finding in _run_section(section)]
    broken = [f for f in findings if f.state == "broken"]
    if as_json:
        report = {"ganlab": __version__, "ok": not broken, "findings": [f._asdict() for f in findings]}
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        _print(findings, broken)
    return EnvError.code if broken else 0


def _run_section(section: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(section())
    except Exception as error:
        name = section.__name__.strip("_")
        return [Finding(name, name, "broken", f"check failed: {type(error).__name__}: {error}")]


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
    """Total and available memory in bytes; zeros if unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
        sizes = {k: int(n) * 1024 for k, n in re.findall(r"(\w+):\s+(\d+) kB", text)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError):
        return 0, 0


def _disk(section: str, what: str, folder: Path, key: str) -> Finding:
    """Free space and write permission of a folder, or of where it would be created."""
    path = existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        return Finding(section, what, "broken", f"{path} is not writable", f"choose another with {key}")
    free = shutil.disk_usage(existing).free
    fix = f"free some space, or choose another folder with {key}" if free < LOW_DISK else ""
    return Finding(section, what, "absent" if fix else "ok", f"{path}, {free / 1e9:,.1f} GB free", fix)


EXTRAS = {"slurm": "sweeps on a SLURM cluster", "ray": "sweeps on Ray", "dev": "for developers"}


def _packages() -> Iterator[Finding]:
    """Each package once: the required ones first, then the extras in the order of ``EXTRAS``."""
    seen = set[str]()
    requirements = importlib.metadata.requires("ganlab") or []
    for group in ("", *EXTRAS):
        for requirement in requirements:
            text, _, marker = requirement.partition(";")
            match = re.match(r"\s*([\w.-]+)\s*(.*)", text)
            extra = re.search(r"""extra\s*==\s*["'](\w+)""", marker)
            if match and match[1] not in seen and (extra[1] if extra else "") == group:
                seen.add(match[1])
                yield _package(match[1], match[2].strip(), group)


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
    return Finding("packages", package, kind, f"{version}, requires {bounds}", fix)


def fits(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ``>=1.2,<3``; compares the numbers only."""

    def numbers(text: str) -> list[int]:
        parts = [int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3]]
        return parts + [0] * (3 - len(parts))

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
    except Exception as error:  # a broken build may raise anything
        what = f"torch cannot be imported: {error}".splitlines()[0]
        yield Finding("devices", "torch", "broken", what, "install the build for this machine (README)")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    text = f"{torch.__version__}, {built}, {torch.get_num_threads()} CPU threads"
    yield Finding("devices", "torch", "ok", text)
    yield from _speed()
    if not torch.cuda.is_available():
        fix = "fine on a CPU machine; otherwise check the driver against the CUDA build (README)"
        yield Finding("devices", "cuda", "absent", "no CUDA device; device=auto uses the CPU", fix)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        text = f"{about.name}, {about.total_memory / 1e9:.0f} GB, compute {about.major}.{about.minor}"
        yield Finding("devices", f"cuda:{index}", "ok", text)


def _speed() -> Iterator[Finding]:
    """Whether precision=bf16 and engine=compile are useful here."""
    import torch

    from ganlab.system.hardware import fast_bf16, find_device

    if fast_bf16(find_device("auto")):
        yield Finding("devices", "bf16", "ok", "precision=bf16 is fast here")
    else:
        text = "precision=bf16 would be slow: the processor emulates it"
        yield Finding("devices", "bf16", "absent", text, "keep the default precision, or use precision=auto")
    compiler = shutil.which("c++") or shutil.which("g++")
    missing = [] if compiler else ["g++"]
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        missing.append("triton")
    needs = " and ".join(missing)
    text = f"engine=compile needs {needs}" if missing else f"{compiler}, for engine=compile"
    fix = f"install {needs}, or keep engine=auto" if missing else ""
    yield Finding("devices", "compiler", "absent" if missing else "ok", text, fix)


SECTIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _machine,
    _packages,
    _devices,
    datasets,
    prepared_sets,
    weights,
)


def _print(findings: list[Finding], broken: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(f"ganlab {__version__}, {PACKAGE}")
    for section in dict.fromkeys(f.section for f in findings):
        table = Table(box=None, pad_edge=False, show_header=False, title=section, title_justify="left")
        table.title_style = "bold"
        for column in ({"no_wrap": True}, {"no_wrap": True, "min_width": 18}, {"overflow": "fold"}):
            table.add_column(**column)
        for f in findings:
            if f.section == section:
                fix = f"\n[dim]fix: {escape(f.fix)}[/]" if f.fix else ""
                table.add_row(MARKS[f.state], escape(f.name), escape(f.text) + fix)
        console.print(table)
    if broken:
        names = ", ".join(f"{f.section} {f.name}" for f in broken)
        console.print(f"[red]{len(broken)} broken:[/] {escape(names)}")
    else:
        console.print(
            "[green]everything required is present[/]; -- marks what is optional or not yet downloaded"
        )
