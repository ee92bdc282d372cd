"""Checkpoints that are whole or absent: one folder per step, committed by a rename, verified before use.

``step-000012000/`` holds ``state.safetensors`` (all tensors), ``state.json`` (numbers and text) and
``MANIFEST.json`` (size and sha256 of both, sealed by a hash of its own, written last). No pickle.
Neither torch.load nor safetensors notices a flipped bit: the manifest does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ganlab import __version__
from ganlab.disk import NO_FOLLOW, disk_error, patiently, sync_folder, write_new
from ganlab.errors import CheckpointError, EnvError
from ganlab.state_tree import digest, flatten, non_finite, on_cpu, pack, require_fit, unflatten, unpack

FORMAT = 1
NEEDS = "0.1"  # the oldest ganlab that reads FORMAT; an older one names it to its user
TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"
MAX_MANIFEST = 1 << 20  # bytes
STEP_FOLDER = re.compile(r"step-(\d{9,18})")
QUARANTINED = re.compile(r"step-\d{9,18}\.corrupt(-\d+)?")
LEFTOVER = re.compile(r"\.(tmp|trash)-\d+-[0-9a-f]{32}")
OLDER = "resume from another step, or use another run_dir="

Loaded = tuple[int, dict[str, Tensor], dict[str, Any]]
log = logging.getLogger("ganlab")

__all__ = ["Checkpoints", "digest", "flatten", "require_fit", "unflatten"]


class DamagedError(CheckpointError):
    """This checkpoint can't be used, an older one may be: quarantined when that is so."""


class OtherRunError(CheckpointError):
    """A sound checkpoint that another run wrote: skipped, never renamed or deleted."""


class Checkpoints:
    """The checkpoints of one run, in ``folder`` (``RUN/checkpoints``). Hold the run's lock to write.

    run_id: written into each manifest and asked of it. keep: newest ones that ``prune`` leaves, >= 2 (else
    ValueError), so that there is one to fall back to. config_hash: recorded, not compared.
    """

    def __init__(self, folder: Path, run_id: str, keep: int = 3, config_hash: str = "") -> None:
        if keep < 2:
            raise ValueError(f"keep_checkpoints: {keep} leaves none to fall back to; keep at least 2")
        self.folder, self.run_id, self.keep, self.config_hash = Path(folder), run_id, keep, config_hash

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def steps(self) -> list[int]:
        """Steps of the folders that have a manifest, ascending. Their content is not verified."""
        return [s for s in self._found() if (self.path(s) / MANIFEST).is_file()]

    def latest(self) -> int | None:
        """The highest step with a sound manifest of this run. Files are not hashed: ``load`` does that."""
        return next((s for s in reversed(self._found()) if self._is_ours(s)), None)

    def has_any(self) -> bool:
        """Whether anything was ever saved, damaged and quarantined ones included.

        A run folder for which this is true must not start from scratch silently: call ``load``.
        """
        return bool(self._found()) or any(QUARANTINED.fullmatch(name) for name in self._names())

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Any) -> Path:
        """Commit a checkpoint durably, return its folder; call ``prune`` afterwards.

        tensors: any shape, dtype, device, stride and sharing. state: a nest of dict, list, tuple, text,
        numbers and None. A sound checkpoint of this step is kept as it is; a damaged one is quarantined.
        Raises FloatingPointError naming a tensor that is not finite, EnvError when the disk is full.
        """
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        # Copies: safetensors refuses shared memory, and the caller may train on.
        held = {k: on_cpu(v) for k, v in tensors.items()}
        if bad := non_finite(held):
            raise FloatingPointError(f"{bad} is not finite at step {step}")
        target = self.path(step)
        if self._keeps(step):
            return target

        meta = json.dumps(pack(state), allow_nan=False, indent=1).encode()
        files = {TENSORS: _packed(held), STATE: meta}
        manifest = {"format": FORMAT, "needs": NEEDS, "ganlab": __version__, "run_id": self.run_id}
        manifest |= {"step": step, "config_hash": self.config_hash, "tensors": len(held)}
        manifest["files"] = {k: {"size": len(v), "sha256": _sha256(v)} for k, v in files.items()}
        files[MANIFEST] = _sealed(manifest)  # written last
        try:
            patiently(lambda: self._commit(step, files))
        except OSError as error:
            raise disk_error(error, target, sum(map(len, files.values()))) from error
        return target

    def _commit(self, step: int, files: Mapping[str, bytes]) -> None:
        """Write, sync, rename, sync. Raises OSError, and leaves nothing half there."""
        temp = self.folder / f".tmp-{step}-{uuid.uuid4().hex}"  # beside the target: one file system
        try:
            if not self.folder.is_dir():
                self.folder.mkdir()  # not its parents: a run folder deleted meanwhile is not revived
                sync_folder(self.folder.parent)
            temp.mkdir()
            for name, data in files.items():
                write_new(temp / name, data)
            sync_folder(temp)
            try:
                os.rename(temp, self.path(step))
            except OSError as error:
                # A rename whose answer was lost, or a folder that a network disk showed too late.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not os.path.lexists(self.path(step)):
                    raise
                if not self._keeps(step):
                    os.rename(temp, self.path(step))
            sync_folder(self.folder)
        finally:
            shutil.rmtree(temp, ignore_errors=True)  # there only if the rename was not reached

    def _keeps(self, step: int) -> bool:
        """Whether a sound checkpoint of the step is there already; a damaged one is quarantined."""
        if not os.path.lexists(self.path(step)):
            return False
        try:
            self._files(step)
        except CheckpointError as error:
            self._quarantine(step, error)
            return False
        return True

    def size(self, step: int) -> int:
        """Bytes of a checkpoint that is there."""
        return sum(entry.stat().st_size for entry in os.scandir(self.path(step)))

    def load(self, step: int | None = None, *, quarantine: bool = True) -> Loaded:
        """``(step, tensors on the CPU, state)`` of a verified checkpoint.

        None: the newest that verifies; damaged newer ones are renamed ``step-N.corrupt`` with a warning
        (``quarantine=False``: only warned of, for readers without the lock). A given step never falls back.
        Raises CheckpointError with each step's reason if there is none, or if a newer ganlab wrote it.
        """
        if step is not None:
            return step, *self._parse(step)
        failures: list[tuple[int, CheckpointError]] = []
        for found in reversed(self._found()):
            try:
                tensors, state = self._parse(found)
            except (DamagedError, OtherRunError) as error:
                failures.append((found, error))
                continue
            for bad, why in failures:  # only now, so that with none left every start says the same
                if quarantine and isinstance(why, DamagedError):
                    self._quarantine(bad, why)
                else:
                    log.warning("%s; skipped", why.mistakes[0]._replace(fix=""))
            return found, tensors, state
        if not failures:
            raise CheckpointError(str(self.folder), "holds no checkpoint", "train first, or name another run")
        raise CheckpointError([m for _, error in failures for m in error.mistakes])

    def verify(self, step: int) -> None:
        """Raises CheckpointError unless ``load(step)`` would succeed."""
        self._parse(step)

    def prune(self, keep_also: Iterable[int] = ()) -> None:
        """Delete all but the last ``keep`` checkpoints and ``keep_also`` (the best one).

        Nothing is deleted before the newest verifies, nor anything but real folders of this run. What can't
        be deleted is warned of.
        """
        ours = [s for s in self.steps() if self._is_ours(s)]
        doomed = sorted(set(ours[: -self.keep]) - set(keep_also))
        try:
            if doomed:
                self._files(ours[-1])
        except CheckpointError as error:
            log.warning("%s; older checkpoints are kept", error.mistakes[0]._replace(fix=""))
            return
        for step in doomed:
            trash = self.folder / f".trash-{step}-{uuid.uuid4().hex}"  # half-deleted is never seen as a step
            try:
                os.rename(self.path(step), trash)
                shutil.rmtree(trash)
            except OSError as error:
                log.warning("%s: can't delete (%s); goes on", self.path(step), error.strerror or error)

    def clean(self) -> None:
        """Remove what a killed save or prune left behind. Only under the run's lock."""
        for name in self._names():
            path = self.folder / name
            if LEFTOVER.fullmatch(name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise EnvError(str(self.folder), f"can't read ({error.strerror})") from error

    def _found(self) -> list[int]:
        """Steps of all real folders with a step's exact name, ascending, manifest or not."""
        steps = {int(m[1]) for name in self._names() if (m := STEP_FOLDER.fullmatch(name))}
        return [s for s in sorted(steps) if self.path(s).is_dir() and not self.path(s).is_symlink()]

    def _is_ours(self, step: int) -> bool:
        try:
            self._manifest(step)
        except CheckpointError:
            return False
        return True

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self.path(step) / MANIFEST
        if self.path(step).is_symlink() or not self.path(step).is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise DamagedError(str(self.path(step)), "no such checkpoint", f"there are: {there}")
        raw = _read(path, MAX_MANIFEST)
        try:
            manifest = json.loads(raw)
            sound = raw == _sealed({k: v for k, v in manifest.items() if k != "seal"})
        except (ValueError, RecursionError, AttributeError, TypeError):
            sound = False
        if not sound:
            raise DamagedError(str(path), "damaged (its seal does not fit)", OLDER)
        if manifest.get("format") != FORMAT:  # a new format still seals its manifest in this way
            raise CheckpointError(str(path.parent), f"needs ganlab >= {manifest.get('needs')}", "upgrade it")
        if manifest.get("run_id") != self.run_id:
            raise OtherRunError(str(path.parent), "belongs to another run", "restore the run's own run.json")
        if manifest.get("step") != step:
            raise DamagedError(str(path.parent), f"its manifest is of step {manifest.get('step')}", OLDER)
        return dict(manifest)

    def _files(self, step: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The manifest and the bytes of both files, whose sizes and hashes fit it."""
        manifest, files = self._manifest(step), {}
        for name in (TENSORS, STATE):  # never a name out of the manifest
            path = self.path(step) / name
            try:
                size, wanted = int(manifest["files"][name]["size"]), manifest["files"][name]["sha256"]
            except (KeyError, TypeError, ValueError):
                raise DamagedError(str(path.parent / MANIFEST), f"does not list {name}", OLDER) from None
            data = _read(path, size)
            if len(data) != size:
                raise DamagedError(str(path), f"truncated: {len(data)} of {size} bytes", OLDER)
            if _sha256(data) != wanted:
                raise DamagedError(str(path), "damaged (its sha256 does not fit the manifest's)", OLDER)
            files[name] = data
        return manifest, files

    def _parse(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        import safetensors.torch

        where = str(self.path(step))
        manifest, files = self._files(step)
        try:
            tensors = safetensors.torch.load(files.pop(TENSORS))
            state = unpack(json.loads(files[STATE]))
        except Exception as error:  # signed, yet not what ganlab writes: crafted, never by chance
            raise DamagedError(where, f"can't be parsed ({type(error).__name__})", OLDER) from error
        if len(tensors) != manifest.get("tensors"):
            raise DamagedError(where, f"{len(tensors)} tensors, not {manifest.get('tensors')}", OLDER)
        if bad := non_finite(tensors):
            raise DamagedError(where, f"tensor {bad} is not finite", OLDER)
        return tensors, state

    def _quarantine(self, step: int, why: CheckpointError) -> None:
        source, count = self.path(step), 1
        target = source.with_name(f"{source.name}.corrupt")
        while os.path.lexists(target):
            count += 1
            target = source.with_name(f"{source.name}.corrupt-{count}")
        log.warning("%s; set aside as %s", why.mistakes[0]._replace(fix=""), target.name)
        try:
            os.rename(source, target)
            sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, source) from error


def _packed(tensors: dict[str, Tensor]) -> bytes:
    """The tensors in safetensors' format. Raises MemoryError."""
    import safetensors.torch

    try:
        return safetensors.torch.save(tensors)
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # its Rust part had no memory for the result
            raise MemoryError(str(error)) from None
        raise


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest's only valid spelling, its own hash under ``seal``."""
    seal = _sha256(json.dumps(manifest, sort_keys=True).encode())
    return json.dumps({**manifest, "seal": seal}, sort_keys=True, indent=1).encode() + b"\n"


def _read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes, else DamagedError; EnvError if unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | NO_FOLLOW)  # neither a link nor a pipe that blocks
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(str(path), "is not a regular file", OLDER)
            if status.st_size > limit:  # before anything is read
                raise DamagedError(str(path), f"{status.st_size} bytes, not {limit}", OLDER)
            return file.read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DamagedError(str(path), "is missing", OLDER) from error
        raise EnvError(str(path), f"can't read ({error.strerror})", "check disk and permissions") from error
