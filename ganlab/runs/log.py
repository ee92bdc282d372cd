"""A run's output: metrics.jsonl, TensorBoard, log.txt, and a progress line or plain lines on the console.

``metrics.jsonl`` is the source of truth. If the disk is full, records are buffered, and no checkpoint is
saved until they are flushed. The others are optional: each warns once when it fails and never stops training.
No torch here; TensorBoard and rich are imported on first use.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, TextIO

from ganlab.errors import GanlabError
from ganlab.runs.metrics_file import Metrics
from ganlab.system.environment import redact
from ganlab.system.files import NO_FOLLOW, folder_gone_error

REFRESH_S = 0.2  # seconds between two redraws of the progress line


class Log:
    """Output of a run in ``folder``, from ``start_step`` to ``total_steps``; also of ganlab's own warnings.

    Records of earlier attempts beyond ``start_step`` are dropped; at 0 all of them, as step 0 is repeated.
    silent: no output at all, for all ranks but the first. wall_s: the run's seconds before this process.
    phases: steps at which updates begin to cost more or less; the time left is that to the next one. Use
    it as a context manager, or call `close`. Raises EnvError if metrics.jsonl can't be written.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        start_step: int = 0,
        wall_s: float = 0.0,
        silent: bool = False,
        phases: Sequence[int] = (),
    ) -> None:
        self.folder, self.total_steps, self.silent, self.phases = Path(folder), total_steps, silent, phases
        self._start_step = self._step = start_step
        self._opened = time.monotonic()
        self._began = self._opened - wall_s
        self._broken: set[str] = set()  # optional outputs that have failed
        self._writer: Any = None
        self._text: TextIO | None = None
        self._bar: Any = None
        self._drawn = self._it_per_s = 0.0
        self._losses = self._scores = ""
        self._handler = logging.Handler(logging.WARNING)  # for the warnings of ganlab's modules
        self._handler.emit = lambda record: self.warn(record.getMessage())  # type: ignore[method-assign]
        if silent:
            return
        self.metrics = Metrics(self.folder / "metrics.jsonl")
        self._kept = start_step if start_step > 0 else -1
        self.metrics.truncate_after(self._kept)
        self._try("log.txt", self._open_text)
        if _is_terminal(sys.stderr):
            self._try("the progress line", self._open_bar)
        if lost := self.metrics.lost:
            self.warn(f"{self.metrics.path}: {lost} damaged line{'s' if lost > 1 else ''} dropped")
        logging.getLogger("ganlab").addHandler(self._handler)
        self._old_hook, self._hook = threading.excepthook, self._thread_failed
        threading.excepthook = self._hook

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def wall_s(self) -> float:
        """Seconds of this run, earlier processes included, by a monotonic clock."""
        return time.monotonic() - self._began

    # ---- what a run logs

    def train(self, step: int, values: Mapping[str, float | None], it_per_s: float) -> None:
        """Log a training step: ``values`` by name (the console shows ``loss/``), G updates per second."""
        self._step, self._it_per_s = step, it_per_s
        self._losses = _format_values({k: v for k, v in values.items() if k.startswith("loss/")})
        times = {"it_per_s": it_per_s, "wall_s": round(self.wall_s, 3)}
        self._record({"step": step, "kind": "train", **values, **times})
        self._scalars(step, {**values, "time/it_per_s": it_per_s})
        line = f"step {step}/{self.total_steps}  {self._losses}  {self._speed()}"
        self._write(line)
        if self._bar is None or not _is_terminal(sys.stdout):
            self._print(line)
        self._draw()

    def scores(
        self,
        step: int,
        values: Mapping[str, float | None],
        protocol_id: str,
        kind: str = "eval",
        own_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Log the scores of one evaluation by name (``fid_cifar``; None: no value) and their protocol id.

        kind: ``eval`` during training (TensorBoard's ``metric/``), ``final`` under its own protocol.
        own_ids: protocol ids of the scores that have their own, by name.
        """
        self._scores = _format_values(values)
        record = {"step": step, "kind": kind, "scores": dict(values), "protocol_id": protocol_id}
        own = {"own_ids": dict(own_ids)} if own_ids else {}
        self._record({**record, **own, "wall_s": round(self.wall_s, 3)})
        tag = "metric" if kind == "eval" else kind
        self._scalars(step, {f"{tag}/{name}": value for name, value in values.items()})
        self.say(f"step {step}/{self.total_steps}  {self._scores}")

    def numbers(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Log named values as a record of ``kind``, to metrics.jsonl and TensorBoard only."""
        if self._record({"step": step, "kind": kind, **values}):
            self._scalars(step, values)

    def image(self, step: int, grid: Any) -> None:
        """Log a grid of samples, uint8 array (H, W, C), to TensorBoard."""
        self._board(lambda writer: writer.add_image("samples", grid, step, dataformats="HWC"))

    def text(self, step: int, text: str) -> None:
        """Log sampled lines to TensorBoard's text page, one per row, verbatim."""
        block = "\n".join(f"    {line}" for line in text.splitlines())  # indented: verbatim in Markdown
        self._board(lambda writer: writer.add_text("samples", block, step))

    def say(self, text: str) -> None:
        """Print a plain line on the console and in log.txt."""
        self._write(text)
        self._print(text)
        self._draw()

    def warn(self, text: str) -> None:
        """Print a warning on stderr and in log.txt."""
        line = f"ganlab: warning: {' '.join(text.split())}"
        self._write(line)
        self._print(line, warning=True)

    def set_progress(self, step: int) -> None:
        """Move the progress line; cheap enough for every step."""
        self._step = step
        if self._bar is not None and time.monotonic() - self._drawn > REFRESH_S:
            self._draw()

    # ---- begin and end

    def flush(self) -> None:
        """Flush all output to the disk; called before each checkpoint. Raises EnvError."""
        if self.silent:
            return
        self.metrics.sync()
        if self._writer is not None:
            self._board(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush and close everything; later calls do nothing."""
        logging.getLogger("ganlab").removeHandler(self._handler)
        if self.silent:
            return
        if self._bar is not None:
            self._draw()
            self._try("the progress line", self._bar.stop)
            self._bar = None
        if self._writer is not None and self.metrics.here():  # TensorBoard opens its file by name: no other's
            self._board(lambda writer: writer.close())
        self._writer = None
        self._broken.add("TensorBoard")
        if threading.excepthook == self._hook:
            threading.excepthook = self._old_hook
        if self._text is not None:
            self._try("log.txt", self._text.close)
            self._text = None
        self.metrics.close()

    # ---- the outputs

    def _record(self, record: Mapping[str, Any]) -> bool:
        """Append to metrics.jsonl, warning once if the disk is full. Raises EnvError if the file is gone."""
        if self.silent:
            return False
        if not self.metrics.here():
            raise folder_gone_error(self.folder)
        failing, new = self.metrics.failing, self.metrics.append(record)
        if self.metrics.failing and not failing:
            self.warn(f"{self.metrics.failing.mistakes[0]}; records are buffered until the next checkpoint")
        return new

    def _try(self, output: str, action: Callable[[], object]) -> None:
        """Write to an optional output; at its first failure warn and disable it."""
        if self.silent or output in self._broken:
            return
        try:
            action()
        except GanlabError:  # a signal's Stopped
            raise
        except Exception as error:
            self._broken.add(output)
            if output == "the progress line":
                self._bar = None
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            self.warn(f"{output} failed ({reason}); continuing without it")

    def _board(self, action: Callable[[Any], object]) -> None:
        def act() -> None:
            if self._writer is None:
                if not self.metrics.here():  # it would write into a stranger's folder
                    raise folder_gone_error(self.folder)
                from torch.utils.tensorboard import SummaryWriter

                # TensorBoard hides what earlier attempts wrote from purge_step on.
                self._writer = SummaryWriter(str(self.folder), purge_step=self._kept + 1)
            action(self._writer)

        self._try("TensorBoard", act)

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None and math.isfinite(value):  # TensorBoard would only warn
                self._board(methodcaller("add_scalar", name, value, step))

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        """Suppress the traceback of TensorBoard's thread on a full disk; the next call reports it."""
        if type(args.thread).__name__ != "_AsyncWriterThread":
            self._old_hook(args)

    def _open_text(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW
        fd = os.open(self.folder / "log.txt", flags, 0o666)
        self._text = open(fd, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def _write(self, text: str) -> None:
        file = self._text
        if file is not None:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._try("log.txt", lambda: file.write(f"{now}  {_clean(text)}\n"))

    def _print(self, text: str, warning: bool = False) -> None:
        """To stdout, or a warning to stderr; above the progress line where they share a terminal."""
        if self.silent:
            return
        stream = sys.stderr if warning else sys.stdout
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed pipe must not stop training
            if self._bar is not None and (warning or _is_terminal(sys.stdout)):
                self._bar.console.print(_clean(text), markup=False, highlight=False, soft_wrap=True)
            else:
                encoding = stream.encoding or "utf-8"
                safe = _clean(text).encode(encoding, "backslashreplace").decode(encoding)
                print(safe, file=stream, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        count, text = "{task.completed}/{task.total}", "{task.fields[text]}"
        columns = TextColumn(count, markup=False), BarColumn(bar_width=20), TextColumn(text, markup=False)
        screen, both = Console(stderr=True), _is_terminal(sys.stdout)
        # drawn by set_progress: no thread
        self._bar = Progress(*columns, console=screen, auto_refresh=False, redirect_stdout=both)
        self._bar.add_task("", total=self.total_steps, completed=self._step, text="")
        self._bar.start()

    def _draw(self) -> None:
        if self._bar is None:
            return
        self._drawn = time.monotonic()
        text = _clean("  ".join(filter(None, [self._speed(), self._losses, self._scores])))
        draw = partial(self._bar.update, 0, completed=self._step, text=text, refresh=True)
        self._try("the progress line", draw)

    def _speed(self) -> str:
        """Updates per second and the time left, of the run or of its phase."""
        elapsed = time.monotonic() - self._opened
        end = next((step for step in self.phases if step > self._step), self.total_steps)
        rate, eta = self._it_per_s or (self._step - self._start_step) / max(elapsed, 1e-9), "-"
        if rate > 0 and math.isfinite(rate):
            minutes, seconds = divmod(round(max(end - self._step, 0) / rate), 60)
            eta = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        return f"{rate:.3g} it/s  ETA {eta}{'' if end == self.total_steps else f' to step {end}'}"


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _format_values(values: Mapping[str, float | None]) -> str:
    return "  ".join(f"{k} {'-' if v is None else format(v, '.4g')}" for k, v in values.items())


def _clean(text: str) -> str:
    """``text`` without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in redact(text))
