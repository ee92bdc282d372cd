"""``bench.json``: stores measurements with their machine, versions, command and date."""

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
IDENTITY = (
    "device",
    "threads",
    "torch",
    "git",
    "rounds",
    "block",
    "paths",
)  # a measurement is reused if all of these match


class BenchFile:
    """Measurement records by section and key, written to disk immediately, so a killed run keeps them.

    Raises DataError if ``bench.json`` has another format, EnvError if the folder is not writable.
    """

    def __init__(self, folder: Path, device: torch.device, threads: int, arguments: list[str]) -> None:
        self.folder, self.path = folder, folder / "bench.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise EnvError(
                "out", f"cannot write to {folder} ({error.strerror})", "choose another folder"
            ) from error
        measurements = read_json(self.path)
        if measurements is not None and not (
            isinstance(measurements, dict) and measurements.get("format") == 1
        ):
            raise DataError(str(self.path), "was not written by this ganlab bench", "choose another out=")
        self.measurements: dict[str, Any] = measurements or {"format": 1, **{name: {} for name in SECTIONS}}
        self.stamp = {
            "device": device_name(device),
            "cores": os.cpu_count(),
            "threads": threads,
            "torch": torch.__version__,
            "git": git_revision(),
        }
        self.versions, self.command = versions(), shlex.join(["ganlab", "bench", *arguments])

    def section(self, name: str) -> dict[str, Any]:
        records: dict[str, Any] = self.measurements.setdefault(name, {})
        return records

    def done(self, section: str, key: str, settings: Mapping[str, Any]) -> bool:
        """Whether a record exists for this machine, these versions and these settings."""
        record = self.section(section).get(key)
        expected = {**self.stamp, **settings}
        return record is not None and all(record.get(k) == expected.get(k) for k in IDENTITY)

    def add(self, section: str, key: str, record: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Add or replace a record and write the file."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        metadata = {"when": now(), "load": load, "command": self.command, "versions": self.versions}
        # ``paths`` is a list of names in the settings, but rows in the record
        self.section(section)[key] = {**self.stamp, **metadata, **settings, "told": dict(record)}
        write_json(self.path, self.measurements)


def command_arguments() -> list[str]:
    """The command-line arguments after ``ganlab bench``."""
    return sys.argv[2:] if sys.argv[1:2] == ["bench"] else []
