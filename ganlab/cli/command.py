"""What a command of ``ganlab`` consists of: its keys, its options, its help page and its function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ganlab.cli.arguments import ParsedArgs, own_keys, parse
from ganlab.cli.help.page import plain, table, wrap
from ganlab.errors import ConfigError, suggest

CONFIG_DIR = ("--config-dir DIR", "a folder with your own groups and experiments; may be repeated")
JSON = ("--json", "print JSON")
HELP = ("-h, --help", "show this help")


class Args(NamedTuple):
    """A command's arguments.

    names: bare arguments. keys: the command's own keys with their values. overrides: other ``key=value``
    arguments. dirs: the folders of ``--config-dir``. options: all options, as parsed.
    """

    names: list[str]
    keys: dict[str, Any]
    overrides: list[str]
    dirs: list[str]
    options: ParsedArgs


@dataclass(frozen=True)
class Command:
    """A command. Calling it with its arguments runs it and returns the exit code.

    summary: one line for ``ganlab --help``. usage: arguments after the command's name. about: a paragraph.
    run: the function. keys: name -> (default, help). rows: further rows of the table of keys. strict: refuse
    other keys. takes_names: accept bare arguments. one_run: require exactly one, a run folder. config_dir and
    json: accept these options. flags, values: short -> long options without and with a value. more: further
    long options. sections: lines of the help page above the keys. page: the whole page, in place of the
    rendered one.
    """

    name: str
    summary: str
    usage: str
    about: str
    run: Callable[[Args], int]
    keys: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    rows: Sequence[tuple[str, str]] = ()
    strict: bool = False
    takes_names: bool = True
    one_run: bool = False
    config_dir: bool = False
    json: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    more: Sequence[str] = ()
    sections: Callable[[ParsedArgs], list[str]] | None = None
    examples: Sequence[str] = ()
    page: Callable[[Command, ParsedArgs], str] | None = None

    def __call__(self, argv: Sequence[str]) -> int:
        """Parse ``argv``, then print the help page or run the command. Raises ConfigError."""
        values = {**self.values, **({"-cd": "--config-dir"} if self.config_dir else {})}
        parsed = parse(argv, self.flags, values, [*self.more, *(["--json"] if self.json else [])])
        if parsed.on("--help"):
            print(self.page(self, parsed) if self.page else self.help_page(parsed))
            return 0
        if self.one_run and len(parsed.names) != 1:
            what = f"requires one run folder, got {len(parsed.names) or 'none'}"
            raise ConfigError(self.name, what, f"write ganlab {self.name} RUN")
        keys, others = own_keys(parsed.overrides, self.keys)
        unknown = [*(others if self.strict else ()), *(() if self.takes_names else parsed.names)]
        if unknown:
            key = unknown[0].partition("=")[0]
            fix = suggest(key, self.keys) if self.keys else f"see 'ganlab {self.name} --help'"
            raise ConfigError(key, f"unknown key of ganlab {self.name}", fix)
        return self.run(Args(parsed.names, keys, others, parsed.all("--config-dir"), parsed))

    def help_page(self, parsed: ParsedArgs) -> str:
        """The page of ``ganlab COMMAND --help``."""
        rows = [*((f"{k}={plain(default)}", text) for k, (default, text) in self.keys.items()), *self.rows]
        options = [*([JSON] if self.json else []), *([CONFIG_DIR] if self.config_dir else []), HELP]
        sections = [self.sections(parsed)] if self.sections else []
        return self.laid_out(*sections, ["keys", *table(rows)] if rows else [], ["options", *table(options)])

    def laid_out(self, *parts: Sequence[str]) -> str:
        """A page of parts: what the command is for, lists of lines, its examples."""
        head = [f"ganlab {self.name}: {self.summary}", "", f"usage: ganlab {self.name} {self.usage}", ""]
        examples = ["examples", *(f"  ganlab {example}" for example in self.examples)]
        pages = [[*head, *wrap(self.about)], *parts, examples if self.examples else []]
        return "\n\n".join("\n".join(part) for part in pages if part)
