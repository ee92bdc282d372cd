"""``bench.json``: every measurement in a folder, with the machine, versions, command and date of each."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ganlab.errors import DataError, EnvError
from ganlab.runs.provenance import git_revision, now, versions
from ganlab.system.files import read_json, write_json
from ganlab.system.hardware import device_name

SECTIONS = ("cases", "evaluation", "packing", "scaling")
SAME = (
    "device",
    "threads",
    "torch",
    "git",
    "rounds",
    "block",
    "paths",
)  # of two measurements that need not be repeated


class Book:
    """Records by section and key. Each is written at once: what a killed measurement has is kept.

    Raises DataError if ``bench.json`` is not one, EnvError if the folder can't be written.
    """

    def __init__(self, folder: Path, device: torch.device, threads: int, words: list[str]) -> None:
        self.folder, self.path = folder, folder / "bench.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise EnvError(
                "out", f"{folder} can't be written ({error.strerror})", "name another folder"
            ) from error
        told = read_json(self.path)
        if told is not None and not (isinstance(told, dict) and told.get("format") == 1):
            raise DataError(str(self.path), "is no record of ganlab bench", "choose another out=")
        self.all: dict[str, Any] = told or {"format": 1, **{name: {} for name in SECTIONS}}
        self.stamp = {
            "device": device_name(device),
            "cores": os.cpu_count(),
            "threads": threads,
            "torch": torch.__version__,
            "git": git_revision(),
        }
        self.versions, self.command = versions(), shlex.join(["ganlab", "bench", *words])

    def section(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.all.setdefault(name, {})
        return found

    def done(self, section: str, key: str, settings: Mapping[str, Any]) -> bool:
        """Whether the record is there, of this machine, these versions and these settings."""
        record = self.section(section).get(key)
        wanted = {**self.stamp, **settings}
        return record is not None and all(record.get(k) == wanted.get(k) for k in SAME)

    def put(self, section: str, key: str, record: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Add or replace a record, and write the file."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        about = {"when": now(), "load": load, "command": self.command, "versions": self.versions}
        # the settings' own ``paths`` are names; the record's are rows
        self.section(section)[key] = {**self.stamp, **about, **settings, "told": dict(record)}
        write_json(self.path, self.all)


def arguments() -> list[str]:
    """The words behind ``ganlab bench``."""
    return sys.argv[2:] if sys.argv[1:2] == ["bench"] else []
