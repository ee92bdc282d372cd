"""Read a checkpoint's folder and verify its sizes, hashes, structure and values before use.

``step-000012000/`` holds ``state.safetensors`` (all tensors), ``state.json`` (numbers and text) and
``MANIFEST.json`` (size and sha256 of both, sealed by a hash of its own, written last). No pickle.
Neither torch.load nor safetensors notices a flipped bit: the manifest does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ganlab import __version__
from ganlab.errors import CheckpointError, EnvError, GanlabError
from ganlab.runs.state import non_finite, unpack
from ganlab.system.files import NO_FOLLOW, open_regular, retry_transient_io

FORMAT = 1
NEEDS = "0.1"  # the oldest ganlab that reads FORMAT; older ones ask for it in their error
TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"
MAX_MANIFEST = 1 << 20  # bytes
MAX_STATE = 1 << 25  # JSON; parsed, it takes ten times as much memory
MAX_HEADER = 1 << 24  # of the tensors' file: 100,000 tensors and more
OLDER = "resume from another step, or use another run_dir="

Loaded = tuple[int, dict[str, Tensor], dict[str, Any]]


class DamagedError(CheckpointError):
    """This checkpoint is damaged; it is quarantined if an older one can be used."""

    def __init__(self, path: Path, what: str, fix: str = OLDER) -> None:
        super().__init__(str(path), what, fix)


class OtherRunError(CheckpointError):
    """A valid checkpoint of another run: skipped, never renamed or deleted."""


def build(step: int, run_id: str, config_hash: str, tensors: int, files: Mapping[str, bytes]) -> bytes:
    """The manifest of a checkpoint as bytes. ``tensors``: their number; ``files``: content by name."""
    manifest = {"format": FORMAT, "needs": NEEDS, "ganlab": __version__, "run_id": run_id}
    manifest |= {"step": step, "config_hash": config_hash, "tensors": tensors}
    return seal(manifest | {"files": {k: {"size": len(v), "sha256": sha256(v)} for k, v in files.items()}})


def seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as canonical bytes, with its own hash under ``seal``."""
    seal = sha256(json.dumps(manifest, sort_keys=True).encode())
    return json.dumps({**manifest, "seal": seal}, sort_keys=True, indent=1).encode() + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path, run_id: str, step: int | None = None) -> dict[str, Any]:
    """The manifest in ``folder``: sealed, of a known format, of this run and, if given, of this step.

    Raises DamagedError, OtherRunError, CheckpointError for a format that this ganlab does not know.
    """
    raw = read(folder / MANIFEST, MAX_MANIFEST)
    try:
        manifest = json.loads(raw)
        valid = raw == seal({k: v for k, v in manifest.items() if k != "seal"})
    except (ValueError, RecursionError, AttributeError, TypeError):
        valid = False
    if not valid:
        raise DamagedError(folder / MANIFEST, "damaged (seal mismatch)")
    version = manifest.get("format")
    if type(version) is int and version > FORMAT:  # newer formats seal the manifest in the same way
        raise CheckpointError(str(folder), f"needs ganlab >= {manifest.get('needs')}", "upgrade it")
    if version != FORMAT:
        raise DamagedError(folder, f"unknown format {version!r}")
    if manifest.get("run_id") != run_id:
        raise OtherRunError(str(folder), "belongs to another run", "restore the run's own run.json")
    if type(manifest.get("step")) is not int or step not in (None, manifest["step"]):
        raise DamagedError(folder, f"its manifest says step {manifest.get('step')}")
    return dict(manifest)


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of both files, verified against the manifest's sizes and hashes. Raises DamagedError."""
    files = {}
    for name in (TENSORS, STATE):  # never a name from the manifest
        path = folder / name
        try:
            size, expected = int(manifest["files"][name]["size"]), manifest["files"][name]["sha256"]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DamagedError(folder / MANIFEST, f"does not list {name}") from None
        files[name] = data = read(path, min(size, MAX_STATE) if name == STATE else size)
        if name == TENSORS and int.from_bytes(data[:8], "little") > MAX_HEADER:
            raise DamagedError(path, f"its header is longer than {MAX_HEADER} bytes")
        if len(data) != size:
            raise DamagedError(path, f"truncated: {len(data)} of {size} bytes")
        if sha256(data) != expected:
            raise DamagedError(path, "damaged (sha256 mismatch)")
    return files


def read_checkpoint(folder: Path, run_id: str, step: int | None = None, finite: bool = True) -> Loaded:
    """``(step, tensors on the CPU, state)`` of a verified checkpoint.

    Raises what ``read_manifest`` and ``read_files`` raise, and with ``finite`` DamagedError naming a tensor
    with a NaN or an infinity.
    """
    import safetensors.torch

    manifest = read_manifest(folder, run_id, step)
    files = read_files(folder, manifest)
    try:
        tensors = safetensors.torch.load(files.pop(TENSORS))
        state = unpack(json.loads(files[STATE]))
    except (GanlabError, MemoryError):  # raised by a signal or for lack of memory: not the files' fault
        raise
    except Exception as error:  # sealed, but not written by ganlab
        raise DamagedError(folder, f"can't be parsed ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DamagedError(folder, "its state is not a mapping")
    if len(tensors) != manifest.get("tensors"):
        raise DamagedError(folder, f"holds {len(tensors)} tensors, not {manifest.get('tensors')}")
    if finite and (bad := non_finite(tensors)):
        raise DamagedError(folder, f"tensor {bad} is not finite")
    return int(manifest["step"]), tensors, state


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes, else DamagedError; EnvError if unreadable."""

    def content() -> bytes:
        # neither a link nor a pipe that blocks
        with open(path, "rb", opener=lambda name, flags: open_regular(name, flags | NO_FOLLOW)) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:  # before anything is read
                raise DamagedError(path, f"is too large: {size} bytes, expected {limit}")
            return file.read()

    try:
        return retry_transient_io(content)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DamagedError(path, "is missing") from error
        if error.errno == errno.EINVAL:
            raise DamagedError(path, "is not a regular file") from error
        raise EnvError(str(path), f"can't read ({error.strerror})", "check disk and permissions") from error
