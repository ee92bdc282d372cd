"""What a config read of the environment (``${oc.env:NAME}``): used as it is, shown and saved unread.

Screens, logs and results are shared; a token in them is lost. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from typing import Any, TextIO, cast

LEAST = 4  # characters: a shorter value is no secret, and stands in every line by chance
HEAD = 12  # characters of a value that was cut off, at least
_shown: dict[str, str] = {}  # a value that was read, as messages may spell it -> what stands in its place


def read(name: str) -> None:
    """Note that the config reads this variable."""
    value, shown = os.environ.get(name, ""), f"${{oc.env:{name}}}"
    if len(value.strip()) >= LEAST:
        for text in (value, repr(value)[1:-1], json.dumps(value)[1:-1], " ".join(value.split())):
            _shown[text] = shown


def unread(value: Any) -> Any:
    """A text, or plain values with texts in them, with ``${oc.env:NAME}`` in the place of what was read."""
    if isinstance(value, dict):
        return {key: unread(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [unread(below) for below in value]
    if isinstance(value, str):
        for text in sorted(_shown, key=len, reverse=True):
            value = _replaced(value, text, _shown[text])
    return value


def _replaced(text: str, value: str, shown: str) -> str:
    """``text`` without ``value``, nor a beginning of it that ends in quotes, dots or the end of the text."""
    at = text.find(value[:HEAD])
    while at >= 0:
        end = at + next((n for n in range(len(value), 0, -1) if text.startswith(value[:n], at)), 0)
        if end - at == len(value) or text[end : end + 1] in ("", "'", '"', "."):
            text, end = text[:at] + shown + text[end:], at + len(shown)
        at = text.find(value[:HEAD], end)
    return text


class _Screen:
    """A text stream that says what is written to it unread."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(unread(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def screen(stream: TextIO) -> TextIO:
    """The stream, what is written to it being said unread."""
    return cast("TextIO", _Screen(stream))
