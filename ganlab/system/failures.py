"""Report a failed command: one line for each mistake, and ``crash.txt`` for a bug in ganlab."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from ganlab import __version__
from ganlab.errors import GanlabError, Mistake, printable
from ganlab.system.environment import redact
from ganlab.system.files import TRANSIENT
from ganlab.system.packages import is_installed, missing_package

OUT_OF_MEMORY = (  # messages of C libraries and torch
    "failed to map segment",
    "annot allocate memory",
    "can't start new thread",
    "DefaultCPUAllocator",
    "bad_alloc",
)
MAX_LINE = 240  # characters of an error line
MAX_LINES = 50  # lines for one failure


def report_failure(error: BaseException, words: Sequence[str]) -> int:
    """Print what went wrong with the command ``words``, and return the exit code."""
    if getattr(error, "silent", False):  # another rank reports it
        return int(getattr(error, "code", 1))
    if (limit := _memory_limit(error)) is not None:
        _debug()
        return print_error(limit, 5)
    if isinstance(error, GanlabError):
        _debug()
        return print_errors(error)
    if isinstance(error, KeyboardInterrupt):
        signum = getattr(error, "signum", signal.SIGINT)
        name = signal.Signals(signum).name
        return print_error(Mistake(name, "stopped", "run the same command again"), 128 + signum)
    if isinstance(error, BrokenPipeError):  # `ganlab --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if not isinstance(error, Exception):
        raise error
    return _report_unexpected(error, words)


def print_errors(error: GanlabError) -> int:
    """Print one line for each mistake, and return the exit code."""
    for mistake in error.mistakes[:MAX_LINES] or [Mistake("ganlab", type(error).__name__)]:
        print_error(mistake, error.code)
    if (more := len(error.mistakes) - MAX_LINES) > 0:
        print_error(Mistake("ganlab", f"{more} more mistakes", "fix these first"), error.code)
    return error.code


def print_error(mistake: Mistake, code: int) -> int:
    """Print ``ganlab: error: where: what; fix`` to stderr, printable, at most ``MAX_LINE`` characters."""
    clean = Mistake(*(printable(" ".join(redact(part).split())) for part in mistake))
    for part, min_length in (("what", 60), ("where", 60), ("fix", 80)):
        excess = len(f"ganlab: error: {clean}") - MAX_LINE
        text = getattr(clean, part)
        if excess > 0 and len(text) > min_length:
            keep = max(min_length, len(text) - excess) - 3
            head = keep // 3 if part == "where" else keep * 2 // 3  # the end of a path matters most
            clean = clean._replace(**{part: f"{text[:head]}...{text[len(text) - (keep - head) :]}"})
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        print(f"ganlab: error: {clean}"[:MAX_LINE], file=sys.stderr, flush=True)
    return code


def _debug() -> None:
    if os.environ.get("GANLAB_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


def _report_unexpected(error: BaseException, words: Sequence[str]) -> int:
    """Memory, disk and permission errors are the machine's (exit code 5), all others are bugs (1)."""
    _debug()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported
        what = str(error).split(". ")[0] or "out of memory"
        return print_error(Mistake("memory", what, "lower batch_size or architecture.width"), 5)
    if isinstance(error, ImportError) and error.name and error.name.partition(".")[0] != "ganlab":
        mistake = missing_package(error.name)
        if not isinstance(error, ModuleNotFoundError) or is_installed(error.name):
            mistake = mistake._replace(what=f"can't be imported ({error})", fix="see 'ganlab doctor'")
        return print_error(mistake, 5)
    if isinstance(error, OSError):
        where = str(error.filename or "disk")
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return print_error(Mistake(where, f"can't write ({error.strerror})", "free some space"), 5)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return print_error(Mistake(where, f"no access ({error.strerror})", "fix its permissions"), 5)
        if error.errno in TRANSIENT:
            what = f"disk error ({error.strerror})"
            return print_error(Mistake(where, what, "check the disk and its mount"), 5)
    path = _write_crash(error, words)
    more = f"details in {path}" if path else "set GANLAB_DEBUG=1 for the traceback"
    return print_error(Mistake("crash", f"{type(error).__name__}: {error}", f"a bug in ganlab, {more}"), 1)


def _memory_limit(error: BaseException) -> Mistake | None:
    """If the error is a lack of memory and a shell or scheduler limits the process: that limit."""
    cause: BaseException | None = error
    while cause and not (isinstance(cause, MemoryError) or any(m in str(cause) for m in OUT_OF_MEMORY)):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        for name, command in (("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")):
            limit = resource.getrlimit(getattr(resource, name))[0]
            if limit != resource.RLIM_INFINITY:
                what = f"{command} limits the process to {limit / 1e9:.3g} GB, which is not enough"
                return Mistake("memory", what, "raise the limit: torch's libraries alone map 3 GB")
    return None


def _write_crash(error: BaseException, words: Sequence[str]) -> str:
    """Write ``crash.txt`` to the run folder, else the working folder, else the temporary one; its path."""
    lines = [f"ganlab {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{n} {v}" for n, v in _versions().items()]
    lines += [f"command: ganlab {' '.join(words)}", "", "".join(traceback.format_exception(error))]
    for get_folder in (lambda: getattr(error, "ganlab_run", None), Path.cwd, tempfile.gettempdir):
        try:
            if (folder := get_folder()) is None:
                continue
            path = Path(folder) / "crash.txt"
            path.unlink(missing_ok=True)  # never write through a symlink
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(redact("\n".join(lines)))
            return str(path)
        except OSError:
            continue
    return ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("torch", "torchvision", "numpy", "hydra-core", "torch-fidelity"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions
