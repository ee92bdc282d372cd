"""``ganlab doctor``: what this machine has, what is missing, and the fix for each. Changes nothing."""

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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ganlab import __version__
from ganlab.errors import EnvError
from ganlab.system.paths import PACKAGE, cache_dir

State = Literal["ok", "absent", "broken"]  # absent: works without, or can be had


class Finding(NamedTuple):
    """One line: what was looked at, in which section, how it is, and what to do about it."""

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
        there = [r for r in remotes if r.path.is_file()]
        whole = [r for r in there if r.path.stat().st_size == r.size]
        if remotes[0].part and 0 < len(whole) < len(remotes):
            names = ", ".join(r.file for r in remotes if r not in whole)
            fix = f"'ganlab data prepare {dataset} split=all'"
            yield Finding("datasets", dataset, "absent", f"not downloaded: {names}", fix)
        elif whole:
            yield Finding("datasets", dataset, "ok", f"downloaded, {whole[0].path}")
        elif there:
            size = there[0].path.stat().st_size
            text = f"{there[0].path} has {size:,} bytes, not {there[0].size:,}"
            yield Finding("datasets", dataset, "absent", text, "remove it; it is downloaded again")
        else:
            r = remotes[0]
            if r.part:
                r = replace(r, file=f"{r.file} and the like", size=sum(other.size for other in remotes))
            text = f"not downloaded: {r.file}, {r.size / 1e6:,.0f} MB, sha256 {r.sha256}"
            fix = f"'ganlab data prepare {dataset}', or get {r.url} elsewhere and put it at {r.path}"
            yield Finding("datasets", dataset, "absent", text, fix)


def prepared_sets() -> Iterator[Finding]:
    folder, number = cache_dir() / "datasets", 0
    for manifest in sorted(folder.glob("**/manifest.json")) if folder.is_dir() else []:
        if any(part.startswith(".") for part in manifest.relative_to(folder).parts):
            continue
        number += 1
        where = str(manifest.parent.relative_to(folder))
        try:
            told = json.loads(manifest.read_text("utf-8"))
            shape = [int(n) for n in told["shape"]]
            size = (manifest.parent / "images.u8").stat().st_size
            if size != _product(shape):
                raise ValueError(f"images.u8 has {size:,} bytes")
            pixels = "x".join(map(str, shape[1:]))
            pixels += ", contrast stretched" if (told.get("transform") or {}).get("stretch") else ""
            text = (
                f"{told['name']} {told['split']}: {shape[0]:,} images {pixels}, sha256 {told['fingerprint']}"
            )
            yield Finding("prepared", where, "ok", text)
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = f"remove {manifest.parent}; it is packed again"
            yield Finding("prepared", where, "absent", f"damaged: {error}", fix)
    for partial in sorted(folder.glob(".tmp-*-part")) if folder.is_dir() else []:
        size = sum(file.stat().st_size for file in partial.glob("images.u8"))
        name = partial.name.removeprefix(".tmp-").removesuffix("-part")
        fix = f"'ganlab data prepare' goes on with it; if it is not wanted, remove {partial}"
        yield Finding("prepared", name, "absent", f"begun, {size / 1e6:,.0f} MB", fix)
        number += 1
    if not number:
        yield Finding(
            "prepared", "none", "absent", f"nothing yet in {folder}", "training prepares what it needs"
        )


def _product(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def weights() -> Iterator[Finding]:
    from ganlab.extractors import cifar, inception
    from ganlab.system.download import sha256

    if cifar.WEIGHTS.is_file():
        yield Finding("weights", "cifar", "ok", f"built in, {cifar.WEIGHTS.stat().st_size / 1e6:.1f} MB")
    else:
        fix = "reinstall ganlab, or run scripts/train_feature_net.py"
        yield Finding("weights", "cifar", "broken", f"{cifar.WEIGHTS.relative_to(PACKAGE)} is missing", fix)
    for place in inception.places():
        if place.is_file():
            sum_ = sha256(place)
            right = sum_ == inception.SHA256
            text = f"{place}, sha256 {sum_[:16]}" + ("" if right else f", not {inception.SHA256[:16]}...")
            fix = "" if right else "remove it; it is downloaded again"
            yield Finding("weights", "inception", "ok" if right else "absent", text, fix)
            return
    text = f"missing: {inception.FILE}, {inception.SIZE_MB} MB, sha256 {inception.SHA256[:8]}..."
    folder = inception.places()[-1].parent
    fix = f"downloaded at first use; or put the file into {folder}, or metric.weights=PATH"
    yield Finding("weights", "inception", "absent", text, f"{fix}; offline: metric.extractor=cifar")


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

    from ganlab.system.hardware import fast_bf16, find_device

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
    prepared_sets,
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
