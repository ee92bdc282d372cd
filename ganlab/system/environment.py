"""Redact environment variables that a config reads (``${oc.env:NAME}``) from all output and saved files.

Screens, logs and results are shared, so a token must not appear in them. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from typing import Any, TextIO, cast

MIN_LENGTH = 4  # characters: a shorter value is no secret, and occurs by chance
MIN_PREFIX = 12  # characters of a truncated value that are recognized
_placeholders: dict[str, str] = {}  # a value, as messages may spell it -> its placeholder


def register(name: str) -> None:
    """Redact this variable's value from now on."""
    value, placeholder = os.environ.get(name, ""), f"${{oc.env:{name}}}"
    if len(value.strip()) >= MIN_LENGTH:
        for text in (value, repr(value)[1:-1], json.dumps(value)[1:-1], " ".join(value.split())):
            _placeholders[text] = placeholder


def redact(value: Any) -> Any:
    """Replace registered values by ``${oc.env:NAME}`` in a string, or in nested dicts and lists."""
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str):
        for text in sorted(_placeholders, key=len, reverse=True):
            value = _replace(value, text, _placeholders[text])
    return value


def _replace(text: str, value: str, placeholder: str) -> str:
    """Replace ``value``, and prefixes of it that are followed by a quote, a dot or the end of the text."""
    at = text.find(value[:MIN_PREFIX])
    while at >= 0:
        end = at + next((n for n in range(len(value), 0, -1) if text.startswith(value[:n], at)), 0)
        if end - at == len(value) or text[end : end + 1] in ("", "'", '"', "."):
            text, end = text[:at] + placeholder + text[end:], at + len(placeholder)
        at = text.find(value[:MIN_PREFIX], end)
    return text


class _RedactingStream:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def redact_stream(stream: TextIO) -> TextIO:
    """Wrap a stream so that what is written to it is redacted."""
    return cast("TextIO", _RedactingStream(stream))
