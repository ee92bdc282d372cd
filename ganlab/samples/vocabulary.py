"""``vocabulary.json`` of a run on text: what its symbols stand for, kept where the corpus may be gone."""

from __future__ import annotations

from ganlab.data.base import Dataset, SampleSet
from ganlab.distributed import collectives
from ganlab.errors import DataError
from ganlab.runs.folder import RunFolder
from ganlab.system.files import read_json, write_json

NAME = "vocabulary.json"


def write_vocabulary(folder: RunFolder, images: SampleSet) -> None:
    """Write the file of a new run; nothing where the samples are no text. The first rank does it.

    Raises DataError if the run was made with another vocabulary, whatever ``resume_allow`` says: its nets
    know symbols by number. EnvError if it can't be written.
    """
    if images.shape.kind == "text":
        collectives.current().on_rank_zero(lambda: _keep(folder, images))


def _keep(folder: RunFolder, images: SampleSet) -> None:
    place, now = folder.path / NAME, list(images.manifest["vocabulary"])
    was = _read(folder)
    if was is None:
        write_json(place, {"format": 1, "symbols": now})
    elif was != now:
        what = f"this run was made with another vocabulary, of {len(was)} symbols; there are {len(now)} now"
        raise DataError(str(place), what, "restore its text, or use another run_dir=")


def symbols(folder: RunFolder, dataset: Dataset, size: int) -> list[str]:
    """What the ``size`` symbols of a run stand for: from its folder, else from its text.

    Raises DataError where neither tells.
    """
    found = _read(folder)
    if found is None:
        found = list(dataset.load().manifest["vocabulary"])
    if len(found) != size:
        what = f"tells {len(found)} symbols, the run has {size}"
        raise DataError(str(folder.path / NAME), what, "restore it, or the run's text")
    return found


def _read(folder: RunFolder) -> list[str] | None:
    """None if there is none. Raises DataError if it is damaged."""
    told = read_json(folder.path / NAME)
    if told is None:
        return None
    found = told.get("symbols") if isinstance(told, dict) else None
    if not isinstance(found, list) or not all(isinstance(s, str) and len(s) == 1 for s in found):
        raise DataError(str(folder.path / NAME), "holds no vocabulary", "restore it, or remove it")
    return found
