"""A command's words sorted: overrides, names, options, and the command's own keys with their values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ganlab.errors import ConfigError, Mistake, nearest, suggest
from ganlab.system.paths import expanded


class ParsedArgs(NamedTuple):
    """A command's arguments sorted: ``overrides`` (with an =), bare ``names``, and options."""

    overrides: list[str]
    names: list[str]
    options: list[tuple[str, str]]

    def on(self, *names: str) -> bool:
        return any(n in names for n, _ in self.options)

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.options if n == name]

    def last(self, name: str) -> str | None:
        return next((v for n, v in reversed(self.options) if n == name), None)


def parse(
    rest: Sequence[str],
    flags: dict[str, str] | None = None,
    values: dict[str, str] | None = None,
    more: Sequence[str] = (),
) -> ParsedArgs:
    """Sort a command's words; options may stand anywhere. ``flags`` and ``values``: short form -> long.

    Raises ConfigError for an unknown option, or one without its value.
    """
    short = {**(flags or {}), **(values or {}), "-h": "--help"}
    takes = set((values or {}).values())
    known = [*short.values(), *more]
    words, waiting = ParsedArgs([], [], []), list(rest)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        name = short.get(name, name)
        if not word.startswith("-") or word == "-":
            bare = "=" not in word and not word.startswith(("+", "~"))
            (words.names if bare else words.overrides).append(word)
        elif name not in known:
            raise ConfigError(word, "is no option here", suggest(name, known))
        elif name in takes:
            if not equals and (not waiting or waiting[0].startswith("--")):
                raise ConfigError(name, "wants a value", f"write {name} VALUE")
            words.options.append((name, value if equals else waiting.pop(0)))
        else:
            if name in ("--info", "-i") and waiting and re.fullmatch(r"[a-z-]+", waiting[0]):
                value = waiting.pop(0)
            words.options.append((name, value))
    return words


def one_run(words: ParsedArgs, command: str) -> str:
    if len(words.names) != 1:
        what = f"wants one run folder, and was given {len(words.names) or 'none'}"
        raise ConfigError(command, what, f"write ganlab {command} RUN")
    return words.names[0]


def own_keys(words: Sequence[str], own: dict[str, tuple[Any, str]]) -> tuple[dict[str, Any], list[str]]:
    """The values of a command's own keys, defaults filled in, and the words that set other keys."""
    values: dict[str, Any] = {k: default for k, (default, _) in own.items()}
    others, wrong = [], []
    for word in words:
        key, _, text = word.partition("=")
        key = key.lstrip("+")
        if key not in own:
            others.append(word)
        elif isinstance(own[key][0], bool):
            if text.lower() in ("true", "false"):
                values[key] = text.lower() == "true"
            else:
                wrong.append(Mistake(key, f"{text!r} is not true or false", f"the default is {own[key][0]}"))
        elif isinstance(own[key][0], int):
            if re.fullmatch(r"-?\d{1,12}", text.replace("_", "")):
                values[key] = int(text)
            else:
                wrong.append(Mistake(key, f"{text!r} is not a whole number", f"the default is {own[key][0]}"))
        elif text:
            values[key] = str(expanded(text)) if key == "out" else text
        else:
            wrong.append(Mistake(key, "has no value", f"write {key}=..."))
    if wrong:
        raise ConfigError(wrong)
    return values, others


def numbers(key: str, text: str | None) -> list[float]:
    """``1,2.5`` as numbers; none if ``text`` is None. Raises ConfigError."""
    found = []
    for word in (text or "").strip("[]").split(",") if text is not None else ():
        try:
            found.append(float(word))
        except ValueError:
            found.append(math.nan)
    if not all(map(math.isfinite, found)):
        raise ConfigError(key, f"{text!r} is no list of numbers", f"write {key}=1,2.5,3")
    return found


def no_near_miss(others: Sequence[str], own: Sequence[str]) -> None:
    """Raise ConfigError where a key looks like a misspelling of the command's own."""
    keys = [word.partition("=")[0].lstrip("+") for word in others]
    wrong = [Mistake(k, "is no key here", f"did you mean {n!r}?") for k in keys if (n := nearest(k, own))]
    wrong = [m for m in wrong if "." not in m.where and m.where not in ("device", "threads", "metric")]
    if wrong:
        raise ConfigError(wrong)
