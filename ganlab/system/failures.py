"""What a user reads when a command fails: a line for each mistake; ``crash.txt`` for a bug of ours."""

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
from typing import Any

from ganlab import __version__
from ganlab.errors import GanlabError, Mistake, printable
from ganlab.system.environment import redact
from ganlab.system.files import BRIEF
from ganlab.system.packages import is_installed, missing_package

NO_MEMORY = (  # as C libraries and torch tell it
    "failed to map segment",
    "annot allocate memory",
    "can't start new thread",
    "DefaultCPUAllocator",
    "bad_alloc",
)
LINE = 240  # characters of an error's line, at most
MOST = 50  # lines for one failure


def report_failure(error: BaseException, words: Sequence[str]) -> int:
    """Tell what went wrong with the command ``words``, and return the exit code."""
    if getattr(error, "silent", False):  # another rank of the run tells it
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
    return _unforeseen(error, words)


def print_errors(error: GanlabError) -> int:
    """Print one line for each mistake, and return the exit code."""
    for mistake in error.mistakes[:MOST] or [Mistake("ganlab", type(error).__name__)]:
        print_error(mistake, error.code)
    if (more := len(error.mistakes) - MOST) > 0:
        print_error(Mistake("ganlab", f"{more} more mistakes", "mend these first"), error.code)
    return error.code


def print_error(mistake: Mistake, code: int) -> int:
    """``ganlab: error: where: what; fix`` on stderr, printable, at most ``LINE`` characters."""
    clean = Mistake(*(printable(" ".join(redact(part).split())) for part in mistake))
    for part, least in (("what", 60), ("where", 60), ("fix", 80)):
        over = len(f"ganlab: error: {clean}") - LINE
        text = getattr(clean, part)
        if over > 0 and len(text) > least:
            keep = max(least, len(text) - over) - 3
            head = keep // 3 if part == "where" else keep * 2 // 3  # the end of a path says more
            clean = clean._replace(**{part: f"{text[:head]}...{text[len(text) - (keep - head) :]}"})
    with _quiet():
        print(f"ganlab: error: {clean}"[:LINE], file=sys.stderr, flush=True)
    return code


def _quiet() -> Any:

    return contextlib.suppress(OSError, ValueError)  # stderr may be closed


def _debug() -> None:
    if os.environ.get("GANLAB_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


def _unforeseen(error: BaseException, words: Sequence[str]) -> int:
    """What no one foresaw: memory, disk and permissions are the machine's (5), all else is our bug (1)."""
    _debug()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported
        what = str(error).split(". ")[0] or "no memory is left"
        return print_error(Mistake("memory", what, "lower batch_size or architecture.width"), 5)
    if isinstance(error, ImportError) and error.name and error.name.partition(".")[0] != "ganlab":
        told = missing_package(error.name)
        if isinstance(error, ModuleNotFoundError) and not is_installed(error.name):
            return print_error(told, 5)
        return print_error(told._replace(what=f"can't be imported ({error})", fix="see 'ganlab doctor'"), 5)
    if isinstance(error, OSError):
        where = str(error.filename or "disk")
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return print_error(Mistake(where, f"can't write ({error.strerror})", "free some space"), 5)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return print_error(Mistake(where, f"no access ({error.strerror})", "mend its permissions"), 5)
        if error.errno in BRIEF:
            return print_error(
                Mistake(where, f"the disk fails ({error.strerror})", "check it and its mount"), 5
            )
    place = _write_crash(error, words)
    more = f"details in {place}" if place else "GANLAB_DEBUG=1 tells more"
    return print_error(Mistake("crash", f"{type(error).__name__}: {error}", f"a bug of ganlab's, {more}"), 1)


def _memory_limit(error: BaseException) -> Mistake | None:
    """For want of memory where a shell or a scheduler limits the process: that limit."""
    cause: BaseException | None = error
    while cause and not (isinstance(cause, MemoryError) or any(sign in str(cause) for sign in NO_MEMORY)):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        for name, shown in (("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")):
            limit = resource.getrlimit(getattr(resource, name))[0]
            if limit != resource.RLIM_INFINITY:
                what = f"{shown} lets a process have {limit / 1e9:.3g} GB, and that is not enough"
                return Mistake("memory", what, "raise it: torch's libraries alone map 3 GB, used or not")
    return None


def _write_crash(error: BaseException, words: Sequence[str]) -> str:
    """``crash.txt`` in the run folder, else here, else in the temporary folder; no environment variables."""
    lines = [f"ganlab {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{n} {v}" for n, v in _versions().items()]
    lines += [f"command: ganlab {' '.join(words)}", "", "".join(traceback.format_exception(error))]
    for find in (lambda: getattr(error, "ganlab_run", None), Path.cwd, tempfile.gettempdir):
        try:
            if (folder := find()) is None:
                continue
            path = Path(folder) / "crash.txt"
            path.unlink(missing_ok=True)  # never through a link that someone left there
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(redact("\n".join(lines)))
            return str(path)
        except OSError:
            continue
    return ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "torchvision", "numpy", "hydra-core", "torch-fidelity"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
