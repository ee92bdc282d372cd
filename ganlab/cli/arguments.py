"""Parse a command's arguments: overrides, names, options, and the values of the command's own keys."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ganlab.errors import ConfigError, Mistake, nearest, suggest
from ganlab.system.paths import expanded


class ParsedArgs(NamedTuple):
    """A command's arguments: ``overrides`` (with an =), bare ``names``, and options with their values."""

    overrides: list[str]
    names: list[str]
    options: list[tuple[str, str]]

    def on(self, *names: str) -> bool:
        """Whether any of these options is present."""
        return any(n in names for n, _ in self.options)

    def all(self, name: str) -> list[str]:
        """The values of a repeatable option."""
        return [v for n, v in self.options if n == name]

    def last(self, name: str) -> str | None:
        """The value of an option; the last one if repeated."""
        return next((v for n, v in reversed(self.options) if n == name), None)


def parse(
    argv: Sequence[str],
    flags: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
    more: Sequence[str] = (),
) -> ParsedArgs:
    """Parse a command's arguments; options may stand anywhere.

    ``flags`` and ``values``: short -> long options without and with a value; ``more``: further long ones.
    Raises ConfigError for an unknown option, or one without its value.
    """
    short = {**(flags or {}), **(values or {}), "-h": "--help"}
    valued = set((values or {}).values())
    options = [*short.values(), *more]
    parsed, remaining = ParsedArgs([], [], []), list(argv)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.partition("=")
        name = short.get(name, name)
        if not word.startswith("-") or word == "-":
            bare = "=" not in word and not word.startswith(("+", "~"))
            (parsed.names if bare else parsed.overrides).append(word)
        elif name not in options:
            raise ConfigError(word, "unknown option", suggest(name, options))
        elif name in valued:
            if not equals and (not remaining or remaining[0].startswith("--")):
                raise ConfigError(name, "requires a value", f"write {name} VALUE")
            parsed.options.append((name, value if equals else remaining.pop(0)))
        else:
            if name in ("--info", "-i") and remaining and re.fullmatch(r"[a-z-]+", remaining[0]):
                value = remaining.pop(0)
            parsed.options.append((name, value))
    return parsed


def own_keys(
    overrides: Sequence[str], own: Mapping[str, tuple[Any, str]]
) -> tuple[dict[str, Any], list[str]]:
    """The values of a command's own keys, with defaults filled in, and the overrides of other keys.

    ``own``: key -> (default, help). Raises ConfigError for values that do not have the default's type.
    """
    values: dict[str, Any] = {k: default for k, (default, _) in own.items()}
    others, mistakes = [], []
    for override in overrides:
        key, _, text = override.partition("=")
        key = key.lstrip("+")
        if key not in own:
            others.append(override)
        elif isinstance(own[key][0], bool):
            if text.lower() in ("true", "false"):
                values[key] = text.lower() == "true"
            else:
                mistakes.append(
                    Mistake(key, f"{text!r} is not true or false", f"the default is {own[key][0]}")
                )
        elif isinstance(own[key][0], int):
            if re.fullmatch(r"-?\d{1,12}", text.replace("_", "")):
                values[key] = int(text)
            else:
                mistakes.append(Mistake(key, f"{text!r} is not an integer", f"the default is {own[key][0]}"))
        elif text:
            values[key] = str(expanded(text)) if key == "out" else text
        else:
            mistakes.append(Mistake(key, "requires a value", f"write {key}=..."))
    if mistakes:
        raise ConfigError(mistakes)
    return values, others


def numbers(key: str, text: str | None) -> list[float]:
    """Parse numbers as in ``1,2.5``; an empty list if ``text`` is None. Raises ConfigError."""
    values = []
    for word in (text or "").strip("[]").split(",") if text is not None else ():
        try:
            values.append(float(word))
        except ValueError:
            values.append(math.nan)
    if not all(map(math.isfinite, values)):
        raise ConfigError(key, f"{text!r} is not a list of numbers", f"write {key}=1,2.5,3")
    return values


def refuse_misspellings(overrides: Sequence[str], own: Iterable[str]) -> None:
    """Raise ConfigError for a key that looks like a misspelling of the command's own."""
    own = list(own)
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    keys = [k for k in keys if "." not in k and k not in ("device", "threads", "metric")]
    mistakes = [Mistake(k, "unknown key", f"did you mean {n!r}?") for k in keys if (n := nearest(k, own))]
    if mistakes:
        raise ConfigError(mistakes)
