"""A run set aside, whole: what was in its folder goes into ``before-N`` there. Nothing is deleted. No torch.

A note is written first, so that one that a kill cut short is finished by the folder's next owner.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ganlab.disk import disk_error, read_json, sync_folder, write_json
from ganlab.errors import DataError, EnvError

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
