"""Atomic checkpoints: one folder per step, committed by a rename and verified before use.

``manifest.py`` describes the folder's content and its verification.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ganlab.distributed import collectives
from ganlab.errors import CheckpointError, EnvError
from ganlab.runs import manifest
from ganlab.runs.manifest import MANIFEST, STATE, TENSORS, DamagedError, Loaded, OtherRunError
from ganlab.runs.state import digest, flatten, non_finite, on_cpu, pack, require_fit, unflatten
from ganlab.system.files import disk_error, retry_transient_io, sync_folder, write_new

STEP_FOLDER = re.compile(r"step-(\d{9,18})")
QUARANTINED = re.compile(r"step-\d{9,18}\.corrupt(-\d+)?")
ASIDE = re.compile(r"step-\d{9,18}\.aside(-\d+)?")
LEFTOVER = re.compile(r"\.(tmp|trash)-\d+-[0-9a-f]{32}")

log = logging.getLogger("ganlab")

__all__ = ["Checkpoints", "Loaded", "digest", "flatten", "require_fit", "unflatten"]


class Checkpoints:
    """The checkpoints of one run, in ``folder`` (``RUN/checkpoints``). Hold the run's lock to write.

    run_id: written into each manifest and compared on reading. keep: newest checkpoints that ``prune`` keeps,
    at least 2, so that there is one to fall back to. config_hash: recorded, not compared. every: ``prune``
    also keeps steps that are multiples of it; 0: none. Of the ranks of a run, rank 0 alone reads and writes
    files; all call ``save``, ``load``, ``read``, ``has_any`` and ``set_aside`` together.
    """

    def __init__(
        self, folder: Path, run_id: str, keep: int = 3, config_hash: str = "", every: int = 0
    ) -> None:
        self.folder, self.run_id, self.keep = Path(folder), run_id, keep
        self.config_hash, self.every = config_hash, every

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def steps(self) -> list[int]:
        """Steps of the folders that have a manifest, ascending. The content is not verified."""
        return [s for s in self.all_steps() if (self.path(s) / MANIFEST).is_file()]

    def all_steps(self) -> list[int]:
        """Steps of all real folders with a step's exact name, ascending, manifest or not."""
        steps = {int(m[1]) for name in self._names() if (m := STEP_FOLDER.fullmatch(name))}
        return [s for s in sorted(steps) if self.path(s).is_dir() and not self.path(s).is_symlink()]

    def has_any(self) -> bool:
        """Whether anything was ever saved, damaged and quarantined ones included.

        A run folder for which this is true must not start from scratch silently: call ``load``.
        """
        return collectives.current().on_rank_zero(
            lambda: bool(self.all_steps()) or any(map(QUARANTINED.fullmatch, self._names()))
        )

    def size(self, step: int) -> int:
        """Size in bytes of an existing checkpoint."""
        return sum(entry.stat().st_size for entry in os.scandir(self.path(step)))

    # ---- save

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Any) -> Path:
        """Commit a checkpoint durably, return its folder; call ``prune`` afterwards.

        tensors: any shape, dtype, device, stride and sharing. state: nested dicts, lists, tuples, strings,
        numbers and None. A valid checkpoint of this step is kept as it is; a damaged one is quarantined.
        Raises FloatingPointError naming a tensor that is not finite, EnvError when the disk is full.
        """
        collectives.current().only_on_rank_zero(lambda: self._save(step, tensors, state))
        return self.path(step)

    def _save(self, step: int, tensors: Mapping[str, Tensor], state: Any) -> None:
        import safetensors.torch

        copies = {k: on_cpu(v) for k, v in tensors.items()}  # safetensors refuses views and shared memory
        if bad := non_finite(copies):
            raise FloatingPointError(f"{bad} is not finite at step {step}")
        meta = json.dumps(pack(state), allow_nan=False, indent=1).encode()
        files = {TENSORS: safetensors.torch.save(copies), STATE: meta}
        files[MANIFEST] = manifest.build(step, self.run_id, self.config_hash, len(copies), files)

        def commit() -> None:
            if not self._keeps(step):
                self._commit(step, files)
            sync_folder(self.folder)

        try:
            retry_transient_io(commit)
        except OSError as error:
            raise disk_error(error, self.path(step), sum(map(len, files.values()))) from error

    def _commit(self, step: int, files: Mapping[str, bytes]) -> None:
        """Write, sync, rename. Raises OSError; leaves no partial checkpoint behind."""
        temp = self.folder / f".tmp-{step}-{uuid.uuid4().hex}"  # beside the target: one file system
        try:
            if not self.folder.is_dir():
                self.folder.mkdir()  # without parents: a run folder deleted meanwhile stays deleted
                sync_folder(self.folder.parent)
            temp.mkdir()
            for name, data in files.items():  # the manifest last
                write_new(temp / name, data)
            sync_folder(temp)
            os.rename(temp, self.path(step))
        finally:
            shutil.rmtree(temp, ignore_errors=True)  # exists only if the rename failed

    def _keeps(self, step: int) -> bool:
        """Whether a valid checkpoint of this step exists; a damaged one is quarantined."""
        if not os.path.lexists(self.path(step)):
            return False
        try:
            self._verify_files(step)
        except CheckpointError as error:
            self._quarantine(step, error)
            return False
        return True

    # ---- load

    def load(self, step: int | None = None, *, quarantine: bool = True, finite: bool = True) -> Loaded:
        """``(step, tensors on the CPU, state)`` of a verified checkpoint.

        None: the newest that verifies; damaged newer ones are renamed ``step-N.corrupt`` with a warning
        (``quarantine=False``: only warned of, for readers without the lock). A given step never falls back.
        Raises CheckpointError with each step's reason if there is none, or if a newer ganlab wrote it.
        ``finite=False``: accept NaNs in a given step.
        """
        return collectives.current().on_rank_zero(
            lambda: self._load_newest(quarantine) if step is None else self._load(step, finite)
        )

    def read(self, folder: Path) -> Loaded:
        """A checkpoint of this run that lies in any ``folder``. Raises CheckpointError."""

        def read() -> Loaded:
            if not folder.is_dir() or folder.is_symlink():
                raise CheckpointError(str(folder), "no such checkpoint", "name a step or its folder")
            return manifest.read_checkpoint(folder, self.run_id)

        return collectives.current().on_rank_zero(read)

    def _load_newest(self, quarantine: bool) -> Loaded:
        failures: list[tuple[int, CheckpointError]] = []
        for candidate in reversed(self.all_steps()):
            try:
                loaded = self._load(candidate)
            except (DamagedError, OtherRunError) as error:
                failures.append((candidate, error))
                continue
            for bad, failure in failures:  # only now: if none is left, every start reports the same
                if quarantine and isinstance(failure, DamagedError):
                    self._quarantine(bad, failure)
                else:
                    log.warning("%s; skipped", failure.mistakes[0]._replace(fix=""))
            return loaded
        if not failures:
            raise CheckpointError(str(self.folder), "holds no checkpoint", "train first, or name another run")
        raise CheckpointError([m for _, error in failures for m in error.mistakes])

    def _load(self, step: int, finite: bool = True) -> Loaded:
        return manifest.read_checkpoint(self._existing(step), self.run_id, step, finite)

    def _existing(self, step: int) -> Path:
        path = self.path(step)
        if path.is_symlink() or not path.is_dir():
            available = ", ".join(map(str, self.steps())) or "none"
            raise DamagedError(path, "no such checkpoint", f"available steps: {available}")
        return path

    def _manifest(self, step: int) -> dict[str, Any]:
        return manifest.read_manifest(self._existing(step), self.run_id, step)

    def _verify_files(self, step: int) -> None:
        """Raises CheckpointError unless sizes and hashes of the step's files match its manifest."""
        manifest.read_files(self.path(step), self._manifest(step))

    def _is_ours(self, step: int) -> bool:
        try:
            self._manifest(step)
        except CheckpointError:
            return False
        return True

    # ---- rename and delete

    def set_aside(self, beyond: int) -> list[str]:
        """Rename the checkpoints of later steps to ``step-N.aside``, newest first; return the new names.

        For a run resumed from an older step: they are neither loaded nor deleted afterwards.
        """
        return collectives.current().on_rank_zero(
            lambda: [self._rename(step, "aside") for step in reversed(self.all_steps()) if step > beyond]
        )

    def prune(self, keep_also: Iterable[int] = ()) -> None:
        """Delete all but the last ``keep`` checkpoints, every ``every``-th, and ``keep_also`` (the best one).

        Nothing is deleted unless the newest one verifies, and only real folders of this run are. Failures to
        read or delete are logged as warnings.
        """
        if not collectives.current().is_rank_zero:
            return
        try:
            ours = [s for s in self.steps() if self._is_ours(s)]
            lasting = {s for s in ours if self.every and s and s % self.every == 0}
            doomed = sorted(set(ours[: -self.keep]) - set(keep_also) - lasting)
            if doomed:
                self._verify_files(ours[-1])
        except (CheckpointError, EnvError) as error:
            log.warning("%s; older checkpoints are kept", error.mistakes[0]._replace(fix=""))
            return
        for step in doomed:  # a half-deleted folder has no step's name
            trash = self.folder / f".trash-{step}-{uuid.uuid4().hex}"
            try:
                os.rename(self.path(step), trash)
                shutil.rmtree(trash)
            except OSError as error:
                log.warning("%s: can't delete (%s)", self.path(step), error.strerror or error)

    def clean(self) -> None:
        """Remove what a killed save or prune left behind. Only under the run's lock."""
        for name in self._names() if collectives.current().is_rank_zero else ():
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

    def _quarantine(self, step: int, error: CheckpointError) -> None:
        name = self._rename(step, "corrupt")
        log.warning("%s; set aside as %s", error.mistakes[0]._replace(fix=""), name)

    def _rename(self, step: int, suffix: str) -> str:
        """Rename a step's folder durably, so that it no longer counts as a step; return the new name."""
        source, count = self.path(step), 1
        target = source.with_name(f"{source.name}.{suffix}")
        while os.path.lexists(target):
            count += 1
            target = source.with_name(f"{source.name}.{suffix}-{count}")
        try:
            os.rename(source, target)
            sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, source) from error
        return target.name
