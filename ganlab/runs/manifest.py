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
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab import __version__
from ganlab.errors import CheckpointError, EnvError, GanlabError
from ganlab.runs.state import non_finite, unpack
from ganlab.system.files import NO_FOLLOW, retry_transient_io

FORMAT = 1
NEEDS = "0.1"  # the oldest ganlab that reads FORMAT; older ones ask for it in their error
TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"
MAX_MANIFEST = 1 << 20  # bytes
MAX_STATE = 1 << 25  # JSON; parsed, it takes ten times as much memory
MAX_HEADER = 1 << 24  # of the tensors' file: 100,000 tensors and more
DTYPES = {  # safetensors' names, in the order of its files
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
OLDER = "resume from another step, or use another run_dir="


class DamagedError(CheckpointError):
    """This checkpoint is damaged; it is quarantined if an older one can be used."""


class NotFiniteError(DamagedError):
    """Intact, but a tensor in it holds a NaN or an infinity."""


class OtherRunError(CheckpointError):
    """A valid checkpoint of another run: skipped, never renamed or deleted."""


def build(step: int, run_id: str, config_hash: str, tensors: int, files: Mapping[str, bytes]) -> bytes:
    """The manifest of a checkpoint as bytes. ``tensors``: their number; ``files``: content by name."""
    manifest = {"format": FORMAT, "needs": NEEDS, "ganlab": __version__, "run_id": run_id}
    manifest |= {"step": step, "config_hash": config_hash, "tensors": tensors}
    return seal(manifest | {"files": {k: {"size": len(v), "sha256": sha256(v)} for k, v in files.items()}})


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialize CPU tensors in safetensors' format, byte for byte as the library does, with one copy.

    The library's ``save`` refuses tensors that share memory and holds a checkpoint in memory three times.
    """
    header, pieces, at, order = dict[str, Any](), list[memoryview](), 0, list(DTYPES)
    for name, tensor in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        data = memoryview(data)
        place = [at, at := at + len(data)]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        pieces.append(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces])


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
    path = folder / MANIFEST
    raw = read(path, MAX_MANIFEST)
    try:
        manifest = json.loads(raw)
        valid = raw == seal({k: v for k, v in manifest.items() if k != "seal"})
    except (ValueError, RecursionError, AttributeError, TypeError):
        valid = False
    if not valid:
        raise DamagedError(str(path), "damaged (seal mismatch)", OLDER)
    version = manifest.get("format")
    if version != FORMAT or type(version) is not int:  # newer formats seal the manifest in the same way
        if type(version) is int and version > FORMAT:
            raise CheckpointError(str(folder), f"needs ganlab >= {manifest.get('needs')}", "upgrade it")
        raise DamagedError(str(folder), f"unknown format {version!r}", OLDER)
    if manifest.get("run_id") != run_id:
        raise OtherRunError(str(folder), "belongs to another run", "restore the run's own run.json")
    if type(manifest.get("step")) is not int or step not in (None, manifest["step"]):
        raise DamagedError(str(folder), f"its manifest says step {manifest.get('step')}", OLDER)
    return dict(manifest)


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of both files, verified against the manifest's sizes and hashes. Raises DamagedError."""
    files = {}
    for name in (TENSORS, STATE):  # never a name from the manifest
        path = folder / name
        try:
            size, expected = int(manifest["files"][name]["size"]), manifest["files"][name]["sha256"]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DamagedError(str(folder / MANIFEST), f"does not list {name}", OLDER) from None
        if name == STATE and size > MAX_STATE:
            raise DamagedError(str(path), f"is too large: {size} bytes, at most {MAX_STATE} allowed", OLDER)
        data = read(path, size)
        if name == TENSORS and int.from_bytes(data[:8], "little") > MAX_HEADER:
            raise DamagedError(str(path), f"its header is longer than {MAX_HEADER} bytes", OLDER)
        if len(data) != size:
            raise DamagedError(str(path), f"truncated: {len(data)} of {size} bytes", OLDER)
        if sha256(data) != expected:
            raise DamagedError(str(path), "damaged (sha256 mismatch)", OLDER)
        files[name] = data
    return files


def read_checkpoint(
    folder: Path, run_id: str, step: int | None = None, finite: bool = True
) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """``(step, tensors on the CPU, state)`` of a verified checkpoint.

    Raises what ``read_manifest`` and ``read_files`` raise, and with ``finite`` NotFiniteError naming a tensor
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
        raise DamagedError(str(folder), f"can't be parsed ({type(error).__name__})", OLDER) from error
    if not isinstance(state, dict):
        raise DamagedError(str(folder), "its state is not a mapping", OLDER)
    if len(tensors) != manifest.get("tensors"):
        raise DamagedError(str(folder), f"holds {len(tensors)} tensors, not {manifest.get('tensors')}", OLDER)
    if finite and (bad := non_finite(tensors)):
        raise NotFiniteError(str(folder), f"tensor {bad} is not finite", OLDER)
    return int(manifest["step"]), tensors, state


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes, else DamagedError; EnvError if unreadable."""

    def content() -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | NO_FOLLOW)  # neither a link nor a pipe that blocks
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(str(path), "is not a regular file", OLDER)
            if status.st_size > limit:  # before anything is read
                raise DamagedError(
                    str(path), f"is too large: {status.st_size} bytes, expected {limit}", OLDER
                )
            return file.read()

    try:
        return retry_transient_io(content)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DamagedError(str(path), "is missing", OLDER) from error
        raise EnvError(str(path), f"can't read ({error.strerror})", "check disk and permissions") from error
