"""What each command of ``ganlab`` does with its words. Imports nothing heavy but inside them."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ganlab.bench import KEYS
from ganlab.cli import help
from ganlab.cli.arguments import no_near_miss, numbers, one_run, own_keys, parse
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.schema import MAX_COUNT
from ganlab.system.packages import PLOT_PACKAGES, require


def say(text: str) -> int:
    print(text)
    return 0


def train(rest: list[str]) -> int:
    """``ganlab train``."""
    words = parse(
        rest,
        flags={"-m": "--multirun", "-r": "--run"},
        values={"-cd": "--config-dir", "-c": "--cfg", "-p": "--package"},
        more=("--resolve", "--hydra-help", "--info", "-i"),
    )
    if words.on("--help"):
        from ganlab.config.files import user_dirs

        return say(help.train(user_dirs(words.all("--config-dir"))))
    dirs, overrides = words.all("--config-dir"), [*words.overrides, *words.names]
    show = words.last("--cfg")
    if show not in (None, "job", "hydra", "all"):
        raise ConfigError("--cfg", f"{show!r} is none of job, hydra, all", "write --cfg job")
    if words.on("--hydra-help", "--info", "-i") or show in ("hydra", "all"):
        from ganlab.sweeps.multirun import run_hydra_option

        options = [word for n, v in words.options if n != "--config-dir" for word in (n, v) if word]
        return run_hydra_option(options, overrides, dirs)
    rules = [word for word in overrides if word.startswith("sweep.")]
    overrides = [word for word in overrides if word not in rules]
    if words.on("--multirun") and show is None:
        own, others = own_keys(rules, help.RULES)
        if others:
            key = others[0].partition("=")[0]
            raise ConfigError(key, "is no rule of a sweep", suggest(key, list(help.RULES)))
        from ganlab.sweeps.multirun import sweep
        from ganlab.sweeps.plan import parse_rules

        most, retry, stall_minutes = own.values()
        return sweep(overrides, dirs, parse_rules(most, retry, stall_minutes, "sweep."))
    if rules and not words.on("--multirun"):
        raise ConfigError(rules[0].partition("=")[0], "is a rule of sweeps", "add -m, or leave it out")
    if show:
        from ganlab.config import compose

        composed = compose.compose(overrides, dirs)
        print(compose.show(composed, resolve=words.on("--resolve"), package=words.last("--package")), end="")
        sys.stdout.flush()
        from ganlab.training.trainer import require_possible

        require_possible(compose.build(composed))
        return 0
    for option in ("--resolve", "--package"):
        if words.on(option):
            raise ConfigError(option, "goes with --cfg", f"write --cfg job {option}")
    from ganlab.cli import launched

    return launched.train(overrides, dirs)


def sweep(rest: list[str]) -> int:
    """``ganlab sweep``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return say(help.sweep(words.all("--config-dir")))
    own, others = own_keys(words.overrides, help.SWEEP)
    if words.names:
        fix = f"write grid={words.names[0]}" if own["grid"] is None else "write key=value"
        raise ConfigError(words.names[0], "is no key=value", fix)
    if own["grid"] is None:
        raise ConfigError("grid", "is not chosen", "write grid=NAME; 'ganlab sweep --help' lists them")
    from ganlab.config.files import groups, user_dirs
    from ganlab.sweeps import grid, plan, runner

    known = grid.load(own["grid"], user_dirs(words.all("--config-dir"))).axis_keys()
    keys = {*known, *groups([]), *help.arguments("Experiment")}
    no_near_miss(
        [word for word in others if word.lstrip("+").partition("=")[0] not in keys], list(help.SWEEP)
    )

    rules = plan.parse_rules(own["max_jobs"], own["retry"], own["stall_minutes"])
    asked = plan.parse_placement(own["jobs"], own["per_gpu"], own["gpus"], others)
    dirs = words.all("--config-dir")
    scale = grid.parse_scale(own["scale"]) if own["scale"] else grid.Scale()
    places = runner.resolve_gpus(asked)
    found = runner.make_plan(own["grid"], others, scale, own["out"], dirs, rules.max_cells)
    if own["dry_run"]:
        from ganlab.sweeps import cost

        cost.print_cost(found, places)
        return 0
    return runner.sweep(found, places, dirs, rules)


def status(rest: list[str]) -> int:
    """``ganlab status``."""
    words = parse(rest)
    if words.on("--help"):
        return say(help.status())
    own, others = own_keys(words.overrides, help.STATUS)
    if others:
        key = others[0].partition("=")[0]
        raise ConfigError(key, "is no option of status", suggest(key, list(help.STATUS)))
    from ganlab.sweeps.status import show_status

    return show_status(words.names, own["watch"])


def check(rest: list[str]) -> int:
    """``ganlab check``."""
    words = parse(rest, more=("--json",))
    if words.on("--help"):
        return say(help.check())
    if words.overrides:
        raise ConfigError(words.overrides[0], "is no option of check", "it has only --json")
    if not words.names:
        raise ConfigError("check", "wants run folders", "name some, or a folder that holds some")
    from ganlab.cli.check import check as verify

    return verify(words.names, as_json=words.on("--json"))


def evaluate(rest: list[str]) -> int:
    """``ganlab evaluate``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return say(help.evaluate())
    run = one_run(words, "evaluate")
    own, others = own_keys(words.overrides, {"checkpoint": ("last", ""), "protocols": (None, "")})
    no_near_miss(others, ["checkpoint", "protocols"])
    several = own["protocols"] and [name.strip() for name in own["protocols"].strip("[]").split(",")]
    if several and any(word.lstrip("+").startswith("metric.protocol=") for word in others):
        raise ConfigError("metric.protocol", "is given beside protocols=", "keep one of the two")
    if several and len(set(several)) < len(several):
        raise ConfigError("protocols", "names one twice", "name each once")
    from ganlab.cli import evaluate as evaluate_module

    dirs, checkpoint = words.all("--config-dir"), own["checkpoint"]
    if several:
        evaluate_module.evaluate_protocols(run, several, others, checkpoint=checkpoint, config_dirs=dirs)
    else:
        evaluate_module.evaluate_run(run, others, checkpoint=checkpoint, config_dirs=dirs)
    return 0


def sample(rest: list[str]) -> int:
    """``ganlab sample``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return say(help.sample())
    run = one_run(words, "sample")
    own, others = own_keys(words.overrides, help.SAMPLE)
    bounds = {"n": (1, 100_000), "seed": (0, MAX_COUNT), "columns": (1, 1000), "interpolations": (0, 1000)}
    wrong = [
        Mistake(
            key,
            f"{own[key]} is {f'less than {least}' if own[key] < least else f'more than {most:,}'}",
            f"the default is {help.SAMPLE[key][0]}",
        )
        for key, (least, most) in bounds.items()
        if not least <= own[key] <= most
    ]
    if wrong:
        raise ConfigError(wrong)
    no_near_miss(others, list(help.SAMPLE))
    from ganlab.cli import sample as sample_module

    sample_module.sample_run(run, overrides=others, config_dirs=words.all("--config-dir"), **own)
    return 0


def report(rest: list[str]) -> int:
    """``ganlab report``."""
    words = parse(rest)
    if words.on("--help"):
        return say(help.report())
    own, others = own_keys(words.overrides, help.REPORT)
    if others:
        key = others[0].partition("=")[0]
        raise ConfigError(key, "is no option of report", suggest(key, list(help.REPORT)))
    thresholds = numbers("thresholds", own["thresholds"])
    if not words.names:
        raise ConfigError("report", "wants run folders", "name some, or a folder that holds some")
    require(*PLOT_PACKAGES)
    from ganlab.report import report as write

    print(write(words.names, own["out"], thresholds))
    return 0


def analyze(rest: list[str]) -> int:
    """``ganlab analyze``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    own, others = own_keys(words.overrides, {"analysis": (None, ""), "out": (None, "")})
    if words.on("--help"):
        return say(help.analyze(own["analysis"]))
    if own["analysis"] is None:
        no_near_miss(others, ["analysis", "out"])
        raise ConfigError(
            "analysis", "is not chosen", "write analysis=NAME; 'ganlab analyze --help' lists them"
        )
    require(*PLOT_PACKAGES)
    from ganlab.analysis import analyze as make

    make(words.names, own["analysis"], own["out"], others, words.all("--config-dir"))
    return 0


def explain(rest: list[str]) -> int:
    """``ganlab explain``."""
    words = parse(rest, values={"-cd": "--config-dir"}, more=("--json",))
    if words.on("--help"):
        return say(help.explain())
    if len(words.names) > 1 or (words.names and words.overrides):
        fix = "name one run folder, or write overrides as for ganlab train"
        raise ConfigError("explain", "wants one run folder, or overrides alone", fix)
    from ganlab.papers.explain import explain as tell_apart

    run, dirs = "".join(words.names), words.all("--config-dir")
    tell_apart(run, words.overrides, dirs, as_json=words.on("--json"))
    return 0


def data(rest: list[str]) -> int:
    """``ganlab data``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help") or not words.names:
        return say(help.data()) if words.on("--help") else _usage(help.data())
    what, *names = words.names
    if what not in ("prepare", "info", "check"):
        raise ConfigError(f"data {what}", "is no command", suggest(what, ["prepare", "info", "check"]))
    from ganlab.cli import data as data_module

    names += [word.removeprefix("dataset=") for word in words.overrides if word.startswith("dataset=")]
    if len(names) != 1:
        raise ConfigError(
            f"data {what}", "wants one dataset", f"choose one of {', '.join(data_module.names())}"
        )
    show = {"prepare": data_module.prepare, "info": data_module.info, "check": data_module.check}[what]
    others = [word for word in words.overrides if not word.startswith("dataset=")]
    show(names[0], others, words.all("--config-dir"))
    return 0


def bench(rest: list[str]) -> int:
    """``ganlab bench``."""
    words = parse(rest, values={"-cd": "--config-dir"})
    if words.on("--help"):
        return say(help.bench())
    own, others = own_keys(words.overrides, KEYS)
    if others or words.names:
        key = [*others, *words.names][0].partition("=")[0]
        raise ConfigError(key, "is no key of bench", suggest(key, list(KEYS)))
    from ganlab.bench.run import bench as measure

    return measure(own, words.all("--config-dir"))


def doctor(rest: list[str]) -> int:
    """``ganlab doctor``."""
    words = parse(rest, more=("--json",))
    if words.on("--help"):
        return say(help.doctor())
    if words.names or words.overrides:
        raise ConfigError([*words.names, *words.overrides][0], "is no option of doctor", "it has only --json")
    from ganlab.cli.doctor import doctor as examine

    return examine(as_json=words.on("--json"))


def _usage(text: str) -> int:
    print(text, file=sys.stderr)
    return ConfigError.code


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "sweep": sweep,
    "status": status,
    "check": check,
    "evaluate": evaluate,
    "sample": sample,
    "report": report,
    "explain": explain,
    "analyze": analyze,
    "data": data,
    "bench": bench,
    "doctor": doctor,
}
