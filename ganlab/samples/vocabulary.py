"""``vocabulary.json`` of a run on text: its symbols, which outlast the corpus."""

from __future__ import annotations

from ganlab.data.base import Dataset, SampleSet
from ganlab.distributed import collectives
from ganlab.errors import DataError
from ganlab.runs.folder import RunFolder
from ganlab.system.files import read_json, write_json

NAME = "vocabulary.json"


def write_vocabulary(folder: RunFolder, images: SampleSet) -> None:
    """Write the file of a new run on text, on rank 0; do nothing for other samples.

    Raises DataError if the run has another vocabulary, regardless of ``resume_allow``, as its networks encode
    symbols by index. EnvError if the file cannot be written.
    """
    if images.shape.kind == "text":
        collectives.current().on_rank_zero(lambda: _write(folder, images))


def _write(folder: RunFolder, images: SampleSet) -> None:
    path, current, stored = folder.path / NAME, list(images.manifest["vocabulary"]), _read(folder)
    if stored is None:
        write_json(path, {"format": 1, "symbols": current})
    elif stored != current:
        what = f"this run has another vocabulary: {len(stored)} symbols, the text has {len(current)}"
        raise DataError(str(path), what, "restore its text, or use another run_dir=")


def symbols(folder: RunFolder, dataset: Dataset, size: int) -> list[str]:
    """The ``size`` symbols of a run, from its folder or else from its text.

    Raises DataError if neither is available.
    """
    vocabulary = _read(folder)
    if vocabulary is None:
        vocabulary = list(dataset.load().manifest["vocabulary"])
    if len(vocabulary) != size:
        what = f"has {len(vocabulary)} symbols, the run {size}"
        raise DataError(str(folder.path / NAME), what, "restore it, or the run's text")
    return vocabulary


def _read(folder: RunFolder) -> list[str] | None:
    """The stored symbols, or None without a file. Raises DataError if it is damaged."""
    content = read_json(folder.path / NAME)
    if content is None:
        return None
    symbols = content.get("symbols") if isinstance(content, dict) else None
    if not isinstance(symbols, list) or not all(isinstance(s, str) and len(s) == 1 for s in symbols):
        raise DataError(str(folder.path / NAME), "is not a valid vocabulary", "restore it, or remove it")
    return symbols
