"""The command line: the first argument names a command, the rest are its arguments. Errors are one line each.

Imports nothing heavy: a command imports what it needs. Exit codes: ``ganlab --help`` and errors.py.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from ganlab import __version__
from ganlab.cli import help
from ganlab.cli.commands import COMMANDS, SUMMARIES
from ganlab.cli.launched import require_single_process
from ganlab.errors import ConfigError, nearest
from ganlab.system import signals
from ganlab.system.environment import redact_stream
from ganlab.system.failures import report_failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ganlab`` with ``argv`` (default: ``sys.argv[1:]``) and return the exit code. Never raises."""
    args = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    if logging.lastResort is not None:  # outside a run, which has its own log
        logging.lastResort.setFormatter(_WarningFormatter())
    with redirect_stdout(redact_stream(sys.stdout)), redirect_stderr(redact_stream(sys.stderr)):
        try:
            with signals.interrupting():  # until a run or a sweep installs its own handlers
                code = _dispatch(args)
                sys.stdout.flush()
            return code
        except BaseException as error:
            return report_failure(error, args)


def _open_streams() -> None:
    """Open the null device for closed standard streams (``>&-``), lest a file get their descriptor."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # gets the lowest free descriptor: ``number``
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


class _WarningFormatter(logging.Formatter):
    """Formats ganlab's warnings as one line each."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"ganlab: warning: {' '.join(text.split())}" if record.name.startswith("ganlab") else text


def _dispatch(args: list[str]) -> int:
    name, rest = (args[0], args[1:]) if args else ("", [])
    if name in ("-h", "--help", "help"):
        if rest and rest[0] in COMMANDS:
            return COMMANDS[rest[0]](["--help"])
        print(help.program(SUMMARIES))
        return 0
    if name in ("-V", "--version"):
        print(f"ganlab {__version__}")
        return 0
    if not name:
        print(help.program(SUMMARIES), file=sys.stderr)
        return ConfigError.code
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        names = ["--help", "--version"] if kind == "option" else list(COMMANDS)
        near = nearest(name, names)
        fix = f"did you mean {near!r}?" if near else f"commands: {', '.join(COMMANDS)}"
        if "=" in name or name.startswith("+"):
            fix = f"write 'ganlab train {name}'"
        raise ConfigError(name, f"unknown {kind}", fix)
    require_single_process(name, rest)
    return COMMANDS[name](rest)
