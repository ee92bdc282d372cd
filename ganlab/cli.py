"""The command line: one word chooses a command, the rest are its arguments. Every mistake is one line.

Imports nothing heavy: a command imports what it needs. Exit codes: ``ganlab --help`` and errors.py.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ganlab import __version__, help
from ganlab.bench import KEYS
from ganlab.errors import ConfigError, GanlabError, Mistake
from ganlab.tree import nearest, suggest

LINE = 240  # characters of an error's line, at most
MOST = 50  # lines for one failure
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ganlab`` with these words (default: ``sys.argv``) and return the exit code. Never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold anything
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except BaseException as error:
        return failed(error, words)


def failed(error: BaseException, words: Sequence[str]) -> int:
    """Tell what went wrong with the command ``words``, and return the exit code."""
    if isinstance(error, GanlabError):
        _debug()
        return tell(error)
    if isinstance(error, KeyboardInterrupt):
        return tell_line(Mistake("SIGINT", "stopped", "run the same command again"), 130)
    if isinstance(error, BrokenPipeError):  # `ganlab --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if not isinstance(error, Exception):
        raise error
    return _unforeseen(error, words)


def _command(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name in ("-h", "--help", "help"):
        if rest and rest[0] in help.COMMANDS:
            return _run(rest[0], ["--help"])
        return _say(help.program())
    if name in ("-V", "--version"):
        return _say(f"ganlab {__version__}")
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
    return _run(name, rest)


def _run(name: str, rest: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "sweep": sweep,
        "status": status,
        "evaluate": evaluate,
        "sample": sample,
        "report": report,
        "explain": explain,
        "analyze": analyze,
        "data": data,
        "bench": bench,
        "doctor": doctor,
    }
    return commands[name](rest)


def _say(text: str) -> int:
    print(text)
    return 0


# ---- the commands


def train(rest: list[str]) -> int:
    """``ganlab train``."""
    words = parse(
        rest,
        flags={"-m": "--multirun", "-r": "--run"},
        values={"-cd": "--config-dir", "-c": "--cfg", "-p": "--package"},
        more=("--resolve", "--hydra-help", "--info", "-i"),
    )
    if words.on("--help"):
        from ganlab.config_files import user_dirs

        return _say(help.train(user_dirs(words.all("--config-dir"))))
    dirs, overrides = words.all("--config-dir"), [*words.overrides, *words.names]
    show = words.last("--cfg")
    if show not in (None, "job", "hydra", "all"):
        raise ConfigError("--cfg", f"{show!r} is none of job, hydra, all", "write --cfg job")
    if words.on("--hydra-help", "--info", "-i") or show in ("hydra", "all"):
        from ganlab.sweep import hydra_itself

        options = [word for n, v in words.options if n != "--config-dir" for word in (n, v) if word]
        return hydra_itself(options, overrides, dirs)
    if words.on("--multirun") and show is None:
        from ganlab.sweep import sweep

        return sweep(overrides, dirs)
    from ganlab import config

    composed = config.compose(overrides, dirs)
    if show:
        print(config.show(composed, resolve=words.on("--resolve"), package=words.last("--package")), end="")
        sys.stdout.flush()
        if wrong := config.mistakes(composed):
            raise ConfigError(wrong)
        return 0
    for option in ("--resolve", "--package"):
        if words.on(option):
            raise ConfigError(option, "goes with --cfg", f"write --cfg job {option}")
    experiment = config.build(composed)
    from ganlab import loop

    return int(loop.train(experiment, composed.saved, composed.choices, composed.overrides) or 0)


def sweep(rest: list[str]) -> int:
    """``ganlab sweep``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return _say(help.sweep(words.all("--config-dir")))
    own, others = _own_keys(words.overrides, help.SWEEP)
    if words.names:
        fix = f"write grid={words.names[0]}" if own["grid"] is None else "write key=value"
        raise ConfigError(words.names[0], "is no key=value", fix)
    if own["grid"] is None:
        raise ConfigError("grid", "is not chosen", "write grid=NAME; 'ganlab sweep --help' lists them")
    from ganlab import grid, planned, runner

    asked = planned.places(own["jobs"], own["per_gpu"], own["gpus"], others)
    dirs = words.all("--config-dir")
    scale = grid.parse_scale(own["scale"]) if own["scale"] else grid.Scale()
    places = runner.checked(asked)
    found = runner.plan(own["grid"], others, scale, own["out"], dirs)
    if own["dry_run"]:
        from ganlab import cost

        cost.show(found, places)
        return 0
    return runner.sweep(found, places, dirs)


def status(rest: list[str]) -> int:
    """``ganlab status``."""
    words = parse(rest)
    if words.on("--help"):
        return _say(help.status())
    own, others = _own_keys(words.overrides, help.STATUS)
    if others:
        key = others[0].partition("=")[0]
        raise ConfigError(key, "is no option of status", suggest(key, list(help.STATUS)))
    from ganlab.status import status as tell_status

    return tell_status(words.names, own["watch"])


def evaluate(rest: list[str]) -> int:
    """``ganlab evaluate``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return _say(help.evaluate())
    run = _one_run(words, "evaluate")
    own, others = _own_keys(words.overrides, {"checkpoint": ("last", ""), "protocols": (None, "")})
    _no_near_miss(others, ["checkpoint", "protocols"])
    several = own["protocols"] and [name.strip() for name in own["protocols"].strip("[]").split(",")]
    if several and any(word.lstrip("+").startswith("metric.protocol=") for word in others):
        raise ConfigError("metric.protocol", "is given beside protocols=", "keep one of the two")
    if several and len(set(several)) < len(several):
        raise ConfigError("protocols", "names one twice", "name each once")
    from ganlab import tools

    dirs, checkpoint = words.all("--config-dir"), own["checkpoint"]
    if several:
        tools.evaluate_protocols(run, several, others, checkpoint=checkpoint, config_dirs=dirs)
    else:
        tools.evaluate_run(run, others, checkpoint=checkpoint, config_dirs=dirs)
    return 0


def sample(rest: list[str]) -> int:
    """``ganlab sample``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return _say(help.sample())
    run = _one_run(words, "sample")
    own, others = _own_keys(words.overrides, help.SAMPLE)
    wrong = [
        Mistake(key, f"{own[key]} is less than {least}", f"the default is {help.SAMPLE[key][0]}")
        for key, least in (("n", 1), ("seed", 0), ("columns", 1), ("interpolations", 0))
        if own[key] < least
    ]
    if wrong:
        raise ConfigError(wrong)
    _no_near_miss(others, list(help.SAMPLE))
    from ganlab import tools

    tools.sample_run(run, overrides=others, config_dirs=words.all("--config-dir"), **own)
    return 0


def report(rest: list[str]) -> int:
    """``ganlab report``."""
    words = parse(rest)
    if words.on("--help"):
        return _say(help.report())
    own, others = _own_keys(words.overrides, {"out": (None, "")})
    if others:
        key = others[0].partition("=")[0]
        raise ConfigError(key, "is no option of report", suggest(key, ["out"]))
    if not words.names:
        raise ConfigError("report", "wants run folders", "name some, or a folder that holds some")
    from ganlab.report import report as write

    print(write(words.names, own["out"]))
    return 0


def analyze(rest: list[str]) -> int:
    """``ganlab analyze``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    own, others = _own_keys(words.overrides, {"analysis": (None, ""), "out": (None, "")})
    if words.on("--help"):
        return _say(help.analyze(own["analysis"]))
    if own["analysis"] is None:
        _no_near_miss(others, ["analysis", "out"])
        raise ConfigError(
            "analysis", "is not chosen", "write analysis=NAME; 'ganlab analyze --help' lists them"
        )
    from ganlab.analysis import analyze as make

    make(words.names, own["analysis"], own["out"], others, words.all("--config-dir"))
    return 0


def explain(rest: list[str]) -> int:
    """``ganlab explain``."""
    words = parse(rest, values={"-cd": "--config-dir"}, more=("--json",))
    if words.on("--help"):
        return _say(help.explain())
    if len(words.names) > 1 or (words.names and words.overrides):
        fix = "name one run folder, or write overrides as for ganlab train"
        raise ConfigError("explain", "wants one run folder, or overrides alone", fix)
    from ganlab.explain import explain as tell_apart

    run, dirs = "".join(words.names), words.all("--config-dir")
    tell_apart(run, words.overrides, dirs, as_json=words.on("--json"))
    return 0


def data(rest: list[str]) -> int:
    """``ganlab data``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help") or not words.names:
        return _say(help.data()) if words.on("--help") else _usage(help.data())
    what = words.names[0]
    if what not in ("prepare", "info"):
        raise ConfigError(f"data {what}", "is no command", suggest(what, ["prepare", "info"]))
    from ganlab import datasets

    if len(words.names) != 2:
        raise ConfigError(f"data {what}", "wants one dataset", f"choose one of {', '.join(datasets.names())}")
    show = datasets.prepare if what == "prepare" else datasets.info
    show(words.names[1], words.overrides, words.all("--config-dir"))
    return 0


def bench(rest: list[str]) -> int:
    """``ganlab bench``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return _say(help.bench())
    own, others = _own_keys(words.overrides, KEYS)
    if others or words.names:
        key = [*others, *words.names][0].partition("=")[0]
        raise ConfigError(key, "is no key of bench", suggest(key, list(KEYS)))
    from ganlab.bench.run import bench as measure

    return measure(own, words.all("--config-dir"))


def doctor(rest: list[str]) -> int:
    """``ganlab doctor``."""
    words = parse(rest, more=("--json",))
    if words.on("--help"):
        return _say(help.doctor())
    if words.names or words.overrides:
        raise ConfigError([*words.names, *words.overrides][0], "is no option of doctor", "it has only --json")
    from ganlab.doctor import doctor as examine

    return examine(as_json=words.on("--json"))


# ---- words


class Words(NamedTuple):
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
) -> Words:
    """Sort a command's words; options may stand anywhere. ``flags`` and ``values``: short form -> long.

    Raises ConfigError for an unknown option, or one without its value.
    """
    short = {**(flags or {}), **(values or {}), "-h": "--help"}
    takes = set((values or {}).values())
    known = [*short.values(), *more]
    words, waiting = Words([], [], []), list(rest)
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


def _one_run(words: Words, command: str) -> str:
    if len(words.names) != 1:
        what = f"wants one run folder, and was given {len(words.names) or 'none'}"
        raise ConfigError(command, what, f"write ganlab {command} RUN")
    return words.names[0]


def _own_keys(words: Sequence[str], own: dict[str, tuple[Any, str]]) -> tuple[dict[str, Any], list[str]]:
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
            values[key] = os.path.expanduser(text) if key == "out" else text
        else:
            wrong.append(Mistake(key, "has no value", f"write {key}=..."))
    if wrong:
        raise ConfigError(wrong)
    return values, others


def _no_near_miss(others: Sequence[str], own: Sequence[str]) -> None:
    """Raise ConfigError where a key looks like a misspelling of the command's own."""
    keys = [word.partition("=")[0].lstrip("+") for word in others]
    wrong = [Mistake(k, "is no key here", f"did you mean {n!r}?") for k in keys if (n := nearest(k, own))]
    wrong = [m for m in wrong if "." not in m.where and m.where not in ("device", "threads", "metric")]
    if wrong:
        raise ConfigError(wrong)


def _usage(text: str) -> int:
    print(text, file=sys.stderr)
    return ConfigError.code


# ---- what went wrong


def tell(error: GanlabError) -> int:
    """Print one line for each mistake, and return the exit code."""
    for mistake in error.mistakes[:MOST] or [Mistake("ganlab", type(error).__name__)]:
        tell_line(mistake, error.code)
    if (more := len(error.mistakes) - MOST) > 0:
        tell_line(Mistake("ganlab", f"{more} more mistakes", "mend these first"), error.code)
    return error.code


def tell_line(mistake: Mistake, code: int) -> int:
    """``ganlab: error: where: what; fix`` on stderr, printable, at most ``LINE`` characters."""
    clean = Mistake(*(_CONTROL.sub("?", " ".join(part.split())) for part in mistake))
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
    import contextlib

    return contextlib.suppress(OSError, ValueError)  # stderr may be closed


def _debug() -> None:
    if os.environ.get("GANLAB_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


def _unforeseen(error: BaseException, words: Sequence[str]) -> int:
    """What no one foresaw: memory, disk and permissions are the machine's (5), all else is our bug (1)."""
    _debug()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported
        what = str(error).split(". ")[0] or "no memory is left"
        return tell_line(Mistake("memory", what, "lower batch_size or architecture.width"), 5)
    if isinstance(error, OSError):
        where = str(error.filename or "disk")
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return tell_line(Mistake(where, f"can't write ({error.strerror})", "free some space"), 5)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return tell_line(Mistake(where, f"no access ({error.strerror})", "mend its permissions"), 5)
    place = _write_crash(error, words)
    more = f"details in {place}" if place else "GANLAB_DEBUG=1 tells more"
    return tell_line(Mistake("crash", f"{type(error).__name__}: {error}", f"a bug of ganlab's, {more}"), 1)


def _write_crash(error: BaseException, words: Sequence[str]) -> str:
    """``crash.txt`` in the run folder, else here, else in the temporary folder; no environment variables."""
    lines = [f"ganlab {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{n} {v}" for n, v in _versions().items()]
    lines += [f"command: ganlab {' '.join(words)}", "", "".join(traceback.format_exception(error))]
    for folder in (getattr(error, "ganlab_run", None), Path.cwd(), Path(tempfile.gettempdir())):
        if folder is None:
            continue
        path = Path(folder) / "crash.txt"
        try:
            path.unlink(missing_ok=True)  # never through a link that someone left there
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
                file.write("\n".join(lines))
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
