"""One checkpoint's folder, read and verified before anything of it is used: sizes, hashes, content, numbers.

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
NEEDS = "0.1"  # the oldest ganlab that reads FORMAT; an older one names it to its user
TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"
MAX_MANIFEST = 1 << 20  # bytes
MAX_STATE = 1 << 25  # numbers and text: a parsed one takes ten times as much memory
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
    """This checkpoint can't be used, an older one may be: quarantined when that is so."""


class NotFiniteError(DamagedError):
    """Whole and signed, but a tensor in it holds a NaN or an infinity."""


class OtherRunError(CheckpointError):
    """A sound checkpoint that another run wrote: skipped, never renamed or deleted."""


def build(step: int, run_id: str, config_hash: str, tensors: int, files: Mapping[str, bytes]) -> bytes:
    """The manifest of a checkpoint, for its file. ``tensors``: how many; ``files``: content by name."""
    manifest = {"format": FORMAT, "needs": NEEDS, "ganlab": __version__, "run_id": run_id}
    manifest |= {"step": step, "config_hash": config_hash, "tensors": tensors}
    return seal(manifest | {"files": {k: {"size": len(v), "sha256": sha256(v)} for k, v in files.items()}})


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors on the CPU in safetensors' format, the library's bytes, in one copy in the place of two.

    Its own ``save`` refuses tensors that share memory, and a checkpoint is in memory three times then.
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
    """The manifest's only valid spelling, its own hash under ``seal``."""
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
        sound = raw == seal({k: v for k, v in manifest.items() if k != "seal"})
    except (ValueError, RecursionError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise DamagedError(str(path), "damaged (its seal does not fit)", OLDER)
    found = manifest.get("format")
    if found != FORMAT or type(found) is not int:  # a new format still seals its manifest in this way
        if type(found) is int and found > FORMAT:
            raise CheckpointError(str(folder), f"needs ganlab >= {manifest.get('needs')}", "upgrade it")
        raise DamagedError(str(folder), f"format {found!r} is none that a ganlab ever wrote", OLDER)
    if manifest.get("run_id") != run_id:
        raise OtherRunError(str(folder), "belongs to another run", "restore the run's own run.json")
    if type(manifest.get("step")) is not int or step not in (None, manifest["step"]):
        raise DamagedError(str(folder), f"its manifest is of step {manifest.get('step')}", OLDER)
    return dict(manifest)


def read_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of both files, whose sizes and hashes fit the manifest. Raises DamagedError."""
    files = {}
    for name in (TENSORS, STATE):  # never a name out of the manifest
        path = folder / name
        try:
            size, wanted = int(manifest["files"][name]["size"]), manifest["files"][name]["sha256"]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DamagedError(str(folder / MANIFEST), f"does not list {name}", OLDER) from None
        if name == STATE and size > MAX_STATE:
            raise DamagedError(str(path), f"{size} bytes, more than {MAX_STATE}", OLDER)
        data = read(path, size)
        if name == TENSORS and int.from_bytes(data[:8], "little") > MAX_HEADER:
            raise DamagedError(str(path), f"its header is longer than {MAX_HEADER} bytes", OLDER)
        if len(data) != size:
            raise DamagedError(str(path), f"truncated: {len(data)} of {size} bytes", OLDER)
        if sha256(data) != wanted:
            raise DamagedError(str(path), "damaged (its sha256 does not fit the manifest's)", OLDER)
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
    except (GanlabError, MemoryError):  # a signal's, the machine's: the files are not to blame
        raise
    except Exception as error:  # signed, yet not what ganlab writes: crafted, never by chance
        raise DamagedError(str(folder), f"can't be parsed ({type(error).__name__})", OLDER) from error
    if not isinstance(state, dict):
        raise DamagedError(str(folder), "its state is no mapping", OLDER)
    if len(tensors) != manifest.get("tensors"):
        raise DamagedError(str(folder), f"{len(tensors)} tensors, not {manifest.get('tensors')}", OLDER)
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
                raise DamagedError(str(path), f"{status.st_size} bytes, not {limit}", OLDER)
            return file.read()

    try:
        return retry_transient_io(content)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DamagedError(str(path), "is missing", OLDER) from error
        raise EnvError(str(path), f"can't read ({error.strerror})", "check disk and permissions") from error
