"""``ganlab doctor``: report what is installed and missing on this machine, with fixes. Changes nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ganlab import __version__
from ganlab.errors import EnvError
from ganlab.system.paths import PACKAGE, cache_dir

State = Literal["ok", "absent", "broken"]  # absent: optional, or fetched on demand
MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]--[/]", "broken": "[red]!![/]"}
EXTRAS = {"slurm": "sweeps on a SLURM cluster", "ray": "sweeps on Ray", "dev": "for developers"}
LOW = 2e9  # bytes of disk or memory: less may be too little for a few checkpoints


class Finding(NamedTuple):
    """One line of the report: section, item, state, description, and the fix."""

    section: str
    name: str
    state: State
    text: str
    fix: str = ""


def machine() -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    where = f"{platform.python_version()} ({sys.executable})"
    yield Finding("machine", "python", "ok" if fits else "broken", where, "use Python 3.11, 3.12 or 3.13")
    yield Finding("machine", "system", "ok", platform.platform())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{cores} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    yield Finding("machine", "cpu", "ok", text)
    if Path("/proc/meminfo").is_file():
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        sizes = {name: int(kb) * 1024 for name, kb, *_ in lines}
        total, free = sizes.get("MemTotal:"), sizes.get("MemAvailable:")
        if total and free:
            text = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
            fix = "close other programs, or lower batch_size"
            yield Finding("machine", "memory", "absent" if free < LOW else "ok", text, fix)
    for name, place, key in (("runs", "outputs", "run_dir="), ("cache", cache_dir(), "GANLAB_CACHE=FOLDER")):
        path = folder = Path(place).absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
            yield Finding("machine", name, "broken", f"{path} is not writable", f"choose another with {key}")
            continue
        free = shutil.disk_usage(folder).free
        fix = f"free some space, or choose another folder with {key}"
        text = f"{path}, {free / 1e9:,.1f} GB free"
        yield Finding("machine", name, "absent" if free < LOW else "ok", text, fix)


def packages() -> Iterator[Finding]:
    """Each package once: the required ones first, then the extras in the order of ``EXTRAS``."""
    from packaging.requirements import Requirement

    requirements, seen = [Requirement(text) for text in metadata.requires("ganlab") or []], set[str]()
    for extra in ("", *EXTRAS):
        for need in requirements:
            if need.name in seen or (need.marker and not need.marker.evaluate({"extra": extra})):
                continue
            seen.add(need.name)
            state: State = "absent" if extra else "broken"
            package = f"{need.name}{need.specifier}" if extra in ("", "dev") else f"ganlab[{extra}]"
            try:
                text = metadata.version(need.name)
                if need.specifier.contains(text, prereleases=True):
                    state = "ok"
                else:
                    text += f", requires {need.specifier}"
            except metadata.PackageNotFoundError:
                text = f"missing, optional: {EXTRAS[extra]}" if extra else "missing, required"
            yield Finding("packages", need.name, state, text, f"pip install '{package}'")


def devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken build may raise anything
        what = f"torch cannot be imported: {error}".splitlines()[0]
        yield Finding("devices", "torch", "broken", what, "install the build for this machine (README)")
        return
    from ganlab.system.hardware import fast_bf16, find_device

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    text = f"{torch.__version__}, {built}, {torch.get_num_threads()} CPU threads"
    yield Finding("devices", "torch", "ok", text)
    fast, fix = fast_bf16(find_device("auto")), "keep the default precision, or use precision=auto"
    text = "is fast here" if fast else "would be slow: the processor emulates it"
    yield Finding("devices", "bf16", "ok" if fast else "absent", f"precision=bf16 {text}", fix)
    compiler, gpu = shutil.which("c++") or shutil.which("g++"), torch.cuda.is_available()
    needs = [] if compiler else ["g++"]
    needs += ["triton"] if gpu and find_spec("triton") is None else []
    text = f"engine=compile needs {' and '.join(needs)}" if needs else f"{compiler}, for engine=compile"
    fix = f"install {' and '.join(needs)}, or keep engine=auto"
    yield Finding("devices", "compiler", "absent" if needs else "ok", text, fix)
    for index in range(torch.cuda.device_count() if gpu else 0):
        gpu_info = torch.cuda.get_device_properties(index)
        size = f"{gpu_info.total_memory / 1e9:.0f} GB"
        text = f"{gpu_info.name}, {size}, compute {gpu_info.major}.{gpu_info.minor}"
        yield Finding("devices", f"cuda:{index}", "ok", text)
    if not gpu:
        fix = "fine on a CPU machine; otherwise check the driver against the CUDA build (README)"
        yield Finding("devices", "cuda", "absent", "no CUDA device; device=auto uses the CPU", fix)


def datasets() -> Iterator[Finding]:
    from ganlab.config.files import find, groups, read
    from ganlab.config.targets import resolve
    from ganlab.data.packing.download import BY_HAND, by_hand_place, remotes

    for name in groups([]).get("dataset", []):
        files = remotes(name)
        complete = [r for r in files if r.path.is_file() and r.path.stat().st_size == r.size]
        partial = [r for r in files if r.path.is_file() and r not in complete]
        missing = [r for r in files if r not in complete]
        if name in BY_HAND:
            place, (why, what) = by_hand_place(name), BY_HAND[name]
            fix = f"put {what} in {place}, or set dataset.path"
            there = place.is_dir()
            yield Finding("datasets", name, "ok" if there else "absent", str(place) if there else why, fix)
        elif not files and (file := find(f"dataset/{name}", [])):
            kind: Any = resolve(read(file)[0]["_target_"])
            yield Finding("datasets", name, "ok", kind.origin)
        elif complete and files[0].part and missing:
            text = f"not downloaded: {', '.join(r.file for r in missing)}"
            yield Finding("datasets", name, "absent", text, f"'ganlab data prepare {name} split=all'")
        elif complete:
            yield Finding("datasets", name, "ok", f"downloaded, {complete[0].path}")
        elif partial:
            have = f"{partial[0].path.stat().st_size:,} bytes instead of {partial[0].size:,}"
            text = f"{partial[0].path} has {have}"
            yield Finding("datasets", name, "absent", text, "remove it to download it again")
        elif files:
            first, size = files[0], sum(r.size for r in files if r.part) or files[0].size
            more = " etc." if first.part else ""
            text = f"not downloaded: {first.file}{more}, {size / 1e6:,.0f} MB, sha256 {first.sha256}"
            fix = f"'ganlab data prepare {name}', or download {first.url}{more} elsewhere"
            yield Finding("datasets", name, "absent", text, f"{fix} and put it at {first.path}{more}")


def prepared() -> Iterator[Finding]:
    from ganlab.data.packing.pack import open_pack
    from ganlab.errors import DataError

    folder = cache_dir() / "datasets"
    packs, begun = sorted(folder.glob("[!.]*/manifest.json")), sorted(folder.glob(".tmp-*-part"))
    for manifest in packs:
        name = manifest.parent.name
        try:
            data = open_pack(manifest.parent)
        except DataError as error:
            what, fix = error.mistakes[0][1:]
            yield Finding("prepared", name, "absent", f"damaged: {what}", fix)
            continue
        pixels = "x".join(map(str, data.images.shape[1:]))
        stretch = ", contrast stretched" if (data.manifest.get("transform") or {}).get("stretch") else ""
        text = f"{data.name} {data.split}: {len(data):,} images {pixels}{stretch}, sha256 {data.fingerprint}"
        yield Finding("prepared", name, "ok", text)
    for part in begun:
        size = sum(file.stat().st_size for file in part.glob("images.u8"))
        name = part.name.removeprefix(".tmp-").removesuffix("-part")
        fix = f"'ganlab data prepare' continues it; or remove {part}"
        yield Finding("prepared", name, "absent", f"incomplete, {size / 1e6:,.0f} MB", fix)
    if not packs and not begun:
        text = f"nothing in {folder} yet"
        yield Finding("prepared", "none", "absent", text, "training prepares what it needs")


def weights() -> Iterator[Finding]:
    from ganlab.extractors import inception
    from ganlab.extractors.cifar import CifarExtractor
    from ganlab.extractors.mnist import MnistExtractor
    from ganlab.system.download import sha256

    for kind in (CifarExtractor, MnistExtractor):
        file = kind.packaged_weights
        if file.is_file():
            yield Finding("weights", kind.name, "ok", f"included, {file.stat().st_size / 1e6:.1f} MB")
        else:
            fix = f"reinstall ganlab, or run {kind.script}"
            yield Finding("weights", kind.name, "broken", f"{file.relative_to(PACKAGE)} is missing", fix)
    if place := next((place for place in inception.places() if place.is_file()), None):
        checksum = sha256(place)
        matches = checksum == inception.SHA256
        expected = "" if matches else f", expected {inception.SHA256[:16]}..."
        text = f"{place}, sha256 {checksum[:16]}{expected}"
        fix = "remove it to download it again"
        yield Finding("weights", "inception", "ok" if matches else "absent", text, fix)
        return
    text = f"missing: {inception.FILE}, {inception.SIZE_MB} MB, sha256 {inception.SHA256[:8]}..."
    fix = f"downloaded at first use; or put the file into {inception.places()[-1].parent}, or set"
    fix += " metric.weights=PATH; or use metric.extractor=cifar, which needs no download"
    yield Finding("weights", "inception", "absent", text, fix)


SECTIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    machine, packages, devices, datasets, prepared, weights,
)  # fmt: skip


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
    """Its findings, without a fix where all is well; one that fails is a finding itself."""
    try:
        return [f._replace(fix="") if f.state == "ok" else f for f in section()]
    except Exception as error:
        name = section.__name__.strip("_")
        return [Finding(name, name, "broken", f"check failed: {type(error).__name__}: {error}")]


def _print(findings: list[Finding], broken: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
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
    names = ", ".join(f"{f.section} {f.name}" for f in broken)
    fine = "[green]everything required is present[/]; -- marks what is optional or not yet downloaded"
    console.print(f"[red]{len(broken)} broken:[/] {escape(names)}" if broken else fine)
