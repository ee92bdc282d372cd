"""The folder of one run: one owner at a time, its config, its metrics; setting an old run aside."""

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
    NO_FOLLOW,
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
ABSENT = object()


class RunFolder:
    """Paths, lock, identity and config of the run in ``path``. Building one touches nothing on the disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.owner: Lock | None = None  # while this process is

    def finished(self, result: Mapping[str, Any], steps: int = 0) -> bool:
        """Whether the run is over, at ``steps`` or later: ``result`` says so, and its checkpoint is there."""
        step = result.get("step")
        if result.get("status") != "finished" or type(step) is not int or step < steps:
            return False
        return (self.checkpoints / f"step-{step:09d}" / "MANIFEST.json").is_file()

    def create(self) -> None:
        """Make the folder if it is not there, and make sure that it can be written to. Raises EnvError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{uuid.uuid4().hex}.tmp"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))
            probe.unlink(missing_ok=True)  # its owner, if there is one, may have tidied it up
        except FileExistsError as error:
            raise EnvError(str(self.path), "is a file, not a folder", ELSEWHERE) from error
        except OSError as error:
            raise disk_error(error, self.path) from error

    def lock(self) -> Lock:
        """Become the folder's only owner, until `Lock.release` or this process's death, and tidy up.

        Removes what a killed owner left half-written, and gives the run its id. Raises RunInUse naming the
        owner's pid@host, and EnvError for a link that another user planted.
        """
        self.create()
        if self.path.is_symlink() and os.geteuid() not in {self.path.lstat().st_uid, self.path.stat().st_uid}:
            raise EnvError(str(self.path), "is a link that belongs to another user", ELSEWHERE)
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
        """Raise EnvError if what is written below the folder would land elsewhere, through a link in it."""
        wrong = [
            Mistake(str(path), "is a link, and a run writes inside its own folder", "put a real folder there")
            for path in (self.checkpoints, self.samples, self.path / "evaluations", self.path / "analysis")
            if path.is_symlink()
        ]
        if wrong:
            raise EnvError(wrong)

    def require_here(self) -> None:
        """Raise EnvError if the folder was deleted or moved since it was locked: nothing is revived there."""
        if self.owner is not None and not self.owner.folder_exists():
            raise folder_gone_error(self.path)

    def _identify(self) -> None:
        if read_json(self.path / "run.json") is None:
            write_json(self.path / "run.json", {"format": 1, "run_id": uuid.uuid4().hex})

    def restart(self) -> Path:
        """Set all that is here aside, in the folder returned; what follows is a new run. Hold the lock."""
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
            told = error.mistakes[0]
            fix = "restore it, or use another run_dir="
            raise ConfigError(told.where, f"is damaged: {told.what}", fix) from error

    def check_config(
        self, resolved: Mapping[str, Any], free: set[str] | frozenset[str] = frozenset()
    ) -> list[Difference]:
        """Compare with the stored config; return the differences under ``free`` keys, which may change.

        A free key ("steps", "metric") covers all below it. Raises ConfigError listing every other one.
        """
        stored = self.read_config() or {}
        asked = yaml.safe_load(_dump(resolved))  # as it would come back: tuples are lists
        found = list(differences(stored, asked))
        allowed = [d for d in found if any(d.key == k or d.key.startswith(f"{k}.") for k in free)]
        fix = "use another run_dir=, the old value, or resume_allow=[{}]"
        if refused := [d for d in found if d not in allowed]:
            what = "this run folder was made with"
            raise ConfigError([Mistake(d.key, f"{what} {d}", fix.format(d.key)) for d in refused])
        return allowed


class Difference(NamedTuple):
    """One key whose value is not the stored one; ``ABSENT`` where a side has no such key."""

    key: str
    stored: Any
    asked: Any

    def __str__(self) -> str:
        return f"{brief(self.stored)}, asked {brief(self.asked)}"


def differences(stored: Any, asked: Any, where: str = "") -> Iterator[Difference]:
    """Differing keys with dots, depth first. A node of another ``_target_`` is one difference, not many.

    A key that one side lacks has its class's default there: an option younger than a run is no difference.
    """
    if isinstance(stored, dict) and isinstance(asked, dict):
        if where and stored.get("_target_") != asked.get("_target_"):
            yield Difference(where, stored, asked)
            return
        for key in [*stored, *(k for k in asked if k not in stored)]:
            below, default = f"{where}.{key}" if where else str(key), _default(asked, key)
            yield from differences(stored.get(key, default), asked.get(key, default), below)
    elif not _same(stored, asked):
        yield Difference(where, stored, asked)


def _default(node: Mapping[str, Any], key: str) -> Any:
    """What the class of a built node takes for a key that is not given, or ``ABSENT``."""
    module, _, name = str(node.get("_target_")).rpartition(".")
    found: Callable[..., Any] | None = getattr(sys.modules.get(module), name, None)
    if found is None or not module.startswith("ganlab."):
        return ABSENT
    default = parameters(found).get(key, (None, ABSENT))[1]
    return ABSENT if default is inspect.Parameter.empty else default


def _same(a: Any, b: Any) -> bool:
    """Equal as config values: 1 is 1.0 but not true, NaN is NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b) or (a != a and b != b)


def brief(value: Any) -> str:
    """A config's value in a line: a part by its class."""
    if value is ABSENT:
        return "nothing"
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"])
    text = json.dumps(to_strict_json(value), ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _dump(resolved: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(_plain(resolved), sort_keys=False, allow_unicode=True, width=110))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


NOTE = ".restart"
PLACE = re.compile(r"before-\d{1,9}")
LAST = "run.json"  # a folder that has lost it has lost all else before


def set_aside(folder: Path) -> Path:
    """Move all that is in ``folder`` into a new ``before-N`` in it, which is returned. Hold its lock."""
    number = 1
    while os.path.lexists(folder / f"before-{number}"):
        number += 1
    write_json(folder / NOTE, {"into": f"before-{number}"})
    finish(folder)
    return folder / f"before-{number}"


def finish(folder: Path) -> None:
    """Go on with what a killed ``set_aside`` has left. Raises DataError if its note is damaged; EnvError."""
    note = read_json(folder / NOTE)
    if note is None:
        return
    name = note.get("into") if isinstance(note, dict) else None
    if not isinstance(name, str) or not PLACE.fullmatch(name):
        raise DataError(str(folder / NOTE), "is damaged", "delete it; the run is partly in before-N")
    into = folder / name
    if into.is_symlink():
        what = "is a link, and a run writes inside its own folder"
        raise EnvError(str(into), what, f"delete it and {folder / NOTE}")
    try:
        into.mkdir(exist_ok=True)
        if not (into / LAST).exists():  # else all is there, but for the note
            for entry in sorted(os.listdir(folder), key=lambda n: (n == LAST, n)):
                if not (entry.startswith(".lock") or entry == NOTE or PLACE.fullmatch(entry)):
                    os.rename(folder / entry, into / entry)
            sync_folder(into)
        os.unlink(folder / NOTE)
        sync_folder(folder)
    except OSError as error:
        raise disk_error(error, into) from error
