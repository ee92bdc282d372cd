"""A run's folder: its paths, lock, id and config, and archiving an old run within it."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab.errors import ConfigError, DataError, EnvError, Mistake
from ganlab.runs.renamed import to_current
from ganlab.schema import parameters
from ganlab.system import yaml_loader
from ganlab.system.files import (
    disk_error,
    folder_gone_error,
    read_json,
    remove_stale_files,
    sync_folder,
    to_strict_json,
    write_atomic,
    write_json,
)
from ganlab.system.lock import Lock

ELSEWHERE = "choose another folder with run_dir="
LINK = "is a link, and a run writes inside its own folder"
ABSENT = object()


class RunFolder:
    """Paths, lock, id and config of the run in ``path``. The constructor does not touch the disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.owner: Lock | None = None  # set while this process holds the lock

    def finished(self, result: Mapping[str, Any], steps: int = 0) -> bool:
        """Whether ``result`` says the run finished at ``steps`` or later, and its checkpoint exists."""
        step = result.get("step")
        if result.get("status") != "finished" or type(step) is not int or step < steps:
            return False
        return (self.checkpoints / f"step-{step:09d}" / "MANIFEST.json").is_file()

    def lock(self) -> Lock:
        """Create the folder if needed, lock it until `Lock.release` or the end of this process, clean up.

        Removes partial files of a killed owner and creates the run's id. Raises RunInUse naming the owner's
        pid@host, EnvError for a folder that can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise EnvError(str(self.path), "is a file, not a folder", ELSEWHERE) from error
        except OSError as error:
            raise disk_error(error, self.path) from error
        if self.path.is_symlink() and os.geteuid() not in {self.path.lstat().st_uid, self.path.stat().st_uid}:
            raise EnvError(str(self.path), "is a symbolic link that belongs to another user", ELSEWHERE)
        self.require_own()
        lock = self.owner = Lock(self.path / ".lock", heartbeat=True)
        try:
            remove_stale_files(self.path)
            if self.samples.is_dir() and not self.samples.is_symlink():
                remove_stale_files(self.samples)
            finish(self.path)
            self._identify()
        except BaseException:
            lock.release()
            raise
        return lock

    def require_own(self) -> None:
        """Raise EnvError if a symbolic link in the folder would redirect writes elsewhere."""
        for path in (self.checkpoints, self.samples, self.path / "evaluations", self.path / "analysis"):
            if path.is_symlink():
                raise EnvError(str(path), LINK, "put a real folder there")

    def require_here(self) -> None:
        """Raise EnvError if the folder was deleted or moved since it was locked: it is not recreated."""
        if self.owner is not None and not self.owner.folder_exists():
            raise folder_gone_error(self.path)

    def _identify(self) -> None:
        if read_json(self.path / "run.json") is None:
            write_json(self.path / "run.json", {"format": 1, "run_id": uuid.uuid4().hex})

    def restart(self) -> Path:
        """Move everything into the returned subfolder and begin a new run. Requires the lock."""
        place = set_aside(self.path)
        self._identify()
        return place

    @property
    def run_id(self) -> str:
        """32 hex digits, made when the folder was first locked. Raises DataError if there are none."""
        record = read_json(self.path / "run.json")
        if not isinstance(record, dict) or not isinstance(record.get("run_id"), str):
            raise DataError(str(self.path / "run.json"), "holds no run id", "name the folder of a ganlab run")
        return str(record["run_id"])

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """Write ``config.yaml`` atomically, as plain YAML in the config's own order."""
        write_atomic(self.config, _dump(resolved).encode())

    def read_config(self) -> dict[str, Any] | None:
        """The stored config, or None if the folder has none. Raises ConfigError if it is damaged."""
        if not os.path.lexists(self.config):
            return None
        try:
            return dict(to_current(yaml_loader.load(self.config, str(self.config), dumped=True)[0]))
        except ConfigError as error:
            mistake = error.mistakes[0]
            fix = "restore it, or use another run_dir="
            raise ConfigError(mistake.where, f"is damaged: {mistake.what}", fix) from error

    def check_config(
        self, resolved: Mapping[str, Any], free: set[str] | frozenset[str] = frozenset()
    ) -> list[Difference]:
        """Compare with the stored config; return the differences under ``free`` keys, which may change.

        A free key ("steps", "metric") covers its subkeys too. Raises ConfigError listing all others.
        """
        stored = self.read_config() or {}
        requested = yaml.safe_load(_dump(resolved))  # tuples become lists
        allowed, mistakes = list[Difference](), list[Mistake]()
        for d in differences(stored, requested):
            if any(f"{d.key}.".startswith(f"{key}.") for key in free):
                allowed.append(d)
                continue
            fix = f"use another run_dir=, the old value, or resume_allow=[{d.key}]"
            mistakes.append(Mistake(d.key, f"this run folder was made with {d}", fix))
        if mistakes:
            raise ConfigError(mistakes)
        return allowed


class Difference(NamedTuple):
    """A key whose requested value differs from the stored one; ``ABSENT`` where a side lacks the key."""

    key: str
    stored: Any
    requested: Any

    def __str__(self) -> str:
        return f"{brief(self.stored)}, requested {brief(self.requested)}"


def differences(stored: Any, requested: Any, where: str = "") -> Iterator[Difference]:
    """Dotted keys that differ, depth first. A node with another ``_target_`` is a single difference.

    A key that one side lacks takes its class's default, so an option newer than the run is no difference.
    """
    if isinstance(stored, dict) and isinstance(requested, dict):
        if where and stored.get("_target_") != requested.get("_target_"):
            yield Difference(where, stored, requested)
            return
        for key in [*stored, *(k for k in requested if k not in stored)]:
            below, default = f"{where}.{key}" if where else str(key), _default(requested, key)
            yield from differences(stored.get(key, default), requested.get(key, default), below)
    elif not _same(stored, requested):
        yield Difference(where, stored, requested)


def _default(node: Mapping[str, Any], key: str) -> Any:
    """The default of ``key`` in the class that a node builds, or ``ABSENT``."""
    module, _, name = str(node.get("_target_")).rpartition(".")
    target: Callable[..., Any] | None = getattr(sys.modules.get(module), name, None)
    if target is None or not module.startswith("ganlab."):
        return ABSENT
    default = parameters(target).get(key, (None, ABSENT))[1]
    return ABSENT if default is inspect.Parameter.empty else default


def _same(a: Any, b: Any) -> bool:
    """Equal as config values: 1 is 1.0 but not true, NaN is NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b) or (a != a and b != b)


def brief(value: Any) -> str:
    """A config value on one line; a node by its class."""
    if value is ABSENT:
        return "nothing"
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"])
    text = json.dumps(to_strict_json(value), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _dump(resolved: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return str(yaml.safe_dump(plain(resolved), sort_keys=False, allow_unicode=True, width=110))


NOTE = ".restart"
PLACE = re.compile(r"before-\d{1,9}")
LAST = "run.json"  # moved last: once it is gone, everything else was moved


def set_aside(folder: Path) -> Path:
    """Move the content of ``folder`` into a new subfolder ``before-N`` and return that. Requires the lock."""
    number = 1
    while os.path.lexists(folder / f"before-{number}"):
        number += 1
    write_json(folder / NOTE, {"into": f"before-{number}"})
    finish(folder)
    return folder / f"before-{number}"


def finish(folder: Path) -> None:
    """Complete an interrupted ``set_aside``. Raises DataError if its note is damaged; EnvError."""
    note = read_json(folder / NOTE)
    if note is None:
        return
    name = note.get("into") if isinstance(note, dict) else None
    if not isinstance(name, str) or not PLACE.fullmatch(name):
        raise DataError(str(folder / NOTE), "is damaged", "delete it; the run is partly in before-N")
    into = folder / name
    if into.is_symlink():
        raise EnvError(str(into), LINK, f"delete it and {folder / NOTE}")
    try:
        into.mkdir(exist_ok=True)
        if not (into / LAST).exists():  # otherwise only the note is left to remove
            for entry in sorted(os.listdir(folder), key=lambda n: (n == LAST, n)):
                if not (entry.startswith(".lock") or entry == NOTE or PLACE.fullmatch(entry)):
                    os.rename(folder / entry, into / entry)
            sync_folder(into)
        os.unlink(folder / NOTE)
        sync_folder(folder)
    except OSError as error:
        raise disk_error(error, into) from error
