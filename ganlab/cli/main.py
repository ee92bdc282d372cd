"""The command line: one word chooses a command, the rest are its arguments. Every mistake is one line.

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
from ganlab.cli.commands import COMMANDS, say
from ganlab.cli.launched import require_alone
from ganlab.errors import ConfigError, nearest
from ganlab.system import signals
from ganlab.system.environment import redact_stream
from ganlab.system.failures import report_failure


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ganlab`` with these words (default: ``sys.argv``) and return the exit code. Never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold anything
    if logging.lastResort is not None:  # where no run keeps a log
        logging.lastResort.setFormatter(_Line())
    with redirect_stdout(redact_stream(sys.stdout)), redirect_stderr(redact_stream(sys.stderr)):
        try:
            with signals.interrupting():  # until a run or a sweep takes them over
                code = _command(words)
                sys.stdout.flush()
            return code
        except BaseException as error:
            return report_failure(error, words)


def _open_streams() -> None:
    """Where a standard stream is closed (``>&-``), put the null device: a file would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


class _Line(logging.Formatter):
    """What ganlab's modules warn of, as the line that all its warnings are."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"ganlab: warning: {' '.join(text.split())}" if record.name.startswith("ganlab") else text


def _command(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name in ("-h", "--help", "help"):
        if rest and rest[0] in help.COMMANDS:
            return COMMANDS[rest[0]](["--help"])
        return say(help.program())
    if name in ("-V", "--version"):
        return say(f"ganlab {__version__}")
    if not name:
        print(help.program(), file=sys.stderr)
        return ConfigError.code
    if name not in help.COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        names = ["--help", "--version"] if kind == "option" else list(help.COMMANDS)
        near = nearest(name, names)
        fix = f"did you mean {near!r}?" if near else f"commands are {', '.join(help.COMMANDS)}"
        if "=" in name or name.startswith("+"):
            fix = f"write 'ganlab train {name}'"
        raise ConfigError(name, f"is no {kind} of ganlab", fix)
    require_alone(name, rest)
    return COMMANDS[name](rest)
