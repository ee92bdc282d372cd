"""Text: symbols int16 (B, L) as stored, one-hot float32 (B, V, L) as model input, lines for people.

``vocabulary.json`` of a run holds its symbols, which outlast the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganlab.distributed import collectives
from ganlab.errors import DataError
from ganlab.samples.base import Context, Export, RealSamples, Rendered, SampleKind
from ganlab.schema import Quantize
from ganlab.system.files import read_json, write_atomic, write_json
from ganlab.types import Shape, TextShape

NAME = "vocabulary.json"


class Text(SampleKind):
    """``shape`` is a ``TextShape``."""

    noun, architecture, metrics = "lines", "charlm", "ngram_js"
    suffix = "txt"

    def describe(self) -> str:
        return f"lines of {self.shape.length} characters, a vocabulary of at most {self.shape.vocabulary}"

    def to_model_input(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hot = torch.zeros(x.shape[0], self.shape.vocabulary, x.shape[1], device=x.device)
        return hot.scatter_(1, x.long().unsqueeze(1), 1.0)

    def to_stored(self, x: Tensor, how: Quantize = "round") -> Tensor:
        """The symbol of the largest weight."""
        return x.argmax(1).to(torch.int16)

    def restored_shape(self, sizes: Sequence[int]) -> Shape:
        """The vocabulary is that of the data, at most the config's."""
        shape = TextShape(*map(int, sizes))
        if not 1 <= shape.vocabulary <= self.shape.vocabulary or shape.length != self.shape.length:
            raise ValueError(f"shape: {list(sizes)} is not that of the config")
        return shape

    def begin_run(self, folder: Path, data: RealSamples) -> None:
        """Write ``vocabulary.json``, on rank 0.

        Raises DataError if the run has another vocabulary, regardless of ``resume_allow``, as its networks
        encode symbols by index. EnvError if the file cannot be written.
        """

        def write() -> None:
            path, current, stored = folder / NAME, list(data.manifest["vocabulary"]), _read(folder)
            if stored is None:
                write_json(path, {"format": 1, "symbols": current})
            elif stored != current:
                what = f"this run has another vocabulary: {len(stored)} symbols, the text has {len(current)}"
                raise DataError(str(path), what, "restore its text, or use another run_dir=")

        collectives.current().on_rank_zero(write)

    def context(self, data: RealSamples, seed: int) -> Context:
        return Context(symbols=data.manifest["vocabulary"])

    def saved_context(self, folder: Path, load: Callable[[], RealSamples]) -> Context:
        symbols = _read(folder)
        if symbols is None:
            symbols = list(load().manifest["vocabulary"])
        if len(symbols) != self.shape.vocabulary:
            what = f"has {len(symbols)} symbols, the run {self.shape.vocabulary}"
            raise DataError(str(folder / NAME), what, "restore it, or the run's text")
        return Context(symbols=symbols)

    def preview(self, samples: Tensor, context: Context) -> Rendered:
        """Lines, one per sample, without the padding at the end."""
        return Rendered(None, "".join(f"{line}\n" for line in lines(samples, context.symbols)))

    def export(self, out: Path, samples: Export, context: Context) -> None:
        """``samples.txt``, a line each, and ``interpolation.txt``, an empty line after each path."""
        _write_lines(out / "samples.txt", lines(samples.samples, context.symbols))
        if samples.path is not None:
            steps = lines(samples.path, context.symbols)
            paths = [steps[i : i + samples.columns] for i in range(0, len(steps), samples.columns)]
            _write_lines(out / "interpolation.txt", [line for path in paths for line in [*path, ""]])


KIND = Text


def lines(rows: Tensor, symbols: Sequence[str], pad: str = "`") -> list[str]:
    """Symbols (n, L) as lines of text, without the padding at the end."""
    return ["".join(symbols[int(i)] for i in row).rstrip(pad) for row in rows]


def _write_lines(path: Path, lines: list[str]) -> None:
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode(), durable=False)


def _read(folder: Path) -> list[str] | None:
    """The stored symbols, or None without a file. Raises DataError if it is damaged."""
    content = read_json(folder / NAME)
    if content is None:
        return None
    symbols = content.get("symbols") if isinstance(content, dict) else None
    if not isinstance(symbols, list) or not all(isinstance(s, str) and len(s) == 1 for s in symbols):
        raise DataError(str(folder / NAME), "is not a valid vocabulary", "restore it, or remove it")
    return symbols
