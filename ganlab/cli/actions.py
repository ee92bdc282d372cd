"""What each command does with its arguments. Heavy imports happen inside the functions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ganlab.cli.arguments import numbers, own_keys, refuse_misspellings
from ganlab.cli.command import Args
from ganlab.cli.help.page import arguments
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.system.packages import PLOT_PACKAGES, require

if TYPE_CHECKING:
    from ganlab.config.overrides import ParsedOverride
    from ganlab.sweeps.plan import Plan

SWEEP_KEYS: dict[str, tuple[Any, str]] = {  # of ``sweep`` and ``train -m``
    "jobs": (None, "processes at a time on this machine, which share its threads or GPUs; default 1"),
    "per_gpu": (None, "instead of jobs: processes at a time on each GPU; default 1"),
    "gpus": (None, "the GPUs to use, as gpus=[0,1]; default all, if jobs or per_gpu is above 1"),
    "dry_run": (False, "print the cells and their estimated cost; run nothing"),
    "max_jobs": (1000, "refuse more cells than this"),
    "retry": ("failed", "failed: rerun cells that failed in an earlier sweep; never: only list them"),
    "stall_minutes": (
        "60",
        "end and retry a cell that makes no progress (an update or a scored batch) for this long; 0: never",
    ),
}
SAMPLE_BOUNDS = {"n": (1, 10**5), "seed": (0, 10**9), "columns": (1, 1000), "interpolations": (0, 1000)}
RUNS_NEEDED = ("requires run folders", "give some, or a folder that contains some")


def train(args: Args) -> int:
    """Train a run (``-m``: several), or print its config."""
    options, overrides = args.options, [*args.overrides, *args.names]
    show = options.last("--cfg")
    if show not in (None, "job", "hydra", "all"):
        raise ConfigError("--cfg", f"{show!r} is none of job, hydra, all", "write --cfg job")
    if options.on("--hydra-help", "--info", "-i") or show in ("hydra", "all"):
        from ganlab.sweeps.launchers import run_hydra_option

        words = [word for name, v in options.options if name != "--config-dir" for word in (name, v) if word]
        return run_hydra_option(words, overrides, args.dirs)
    keys = [o for o in overrides if o.startswith("sweep.") or o.partition("=")[0] in SWEEP_KEYS]
    if keys and not options.on("--multirun"):
        raise ConfigError(keys[0].partition("=")[0], "applies to sweeps only", "add -m, or omit it")
    if options.on("--multirun") and show is None:
        return _multirun([o for o in overrides if o not in keys], args.dirs, keys)
    if show:
        from ganlab.config import compose

        composed = compose.compose(overrides, args.dirs)
        resolve, package = options.on("--resolve"), options.last("--package")
        print(compose.show(composed, resolve=resolve, package=package), end="")
        sys.stdout.flush()
        from ganlab.training.prepare import require_possible

        require_possible(compose.build(composed))
        return 0
    for option in ("--resolve", "--package"):
        if options.on(option):
            raise ConfigError(option, "requires --cfg", f"write --cfg job {option}")
    from ganlab.cli import launched

    return launched.train(overrides, args.dirs)


def _multirun(overrides: list[str], dirs: list[str], words: list[str]) -> int:
    """Run a grid without a name; ``sweep.KEY`` is an older spelling of its keys."""
    keys, others = own_keys([word.removeprefix("sweep.") for word in words], SWEEP_KEYS)
    if others:
        key = others[0].partition("=")[0]
        fix = suggest(key, list(SWEEP_KEYS))
        raise ConfigError(f"sweep.{key}", "unknown key of a sweep", fix)
    from ganlab.config.overrides import command_line
    from ganlab.sweeps import plan

    line = command_line(overrides, dirs, multirun=True)
    launcher = [o for o in line.overrides if o.key.startswith("hydra")]
    return _run_cells(
        keys, overrides, dirs, launcher, lambda count: plan.plan_combinations(line, dirs, count)
    )


def sweep(args: Args) -> int:
    """Run a grid, or print its cells and cost."""
    keys, dirs = args.keys, args.dirs
    if args.names:
        fix = f"write grid={args.names[0]}" if keys["grid"] is None else "write key=value"
        raise ConfigError(args.names[0], "expected key=value", fix)
    if keys["grid"] is None:
        raise ConfigError("grid", "missing", "write grid=NAME; 'ganlab sweep --help' lists them")
    from ganlab.config.files import groups, user_dirs
    from ganlab.config.overrides import command_line
    from ganlab.sweeps import grid, plan

    hydra = [o for o in args.overrides if o.lstrip("+~").startswith(("hydra.", "hydra/"))]
    overrides = [o for o in args.overrides if o not in hydra]
    axes = grid.load(keys["grid"], user_dirs(dirs)).axis_keys()
    valid = {*axes, *groups([]), *arguments("Experiment")}
    refuse_misspellings([o for o in overrides if o.lstrip("+").partition("=")[0] not in valid], keys)
    launcher = command_line(hydra, dirs, multirun=True, demo=False)
    if launcher.mistakes:
        raise ConfigError(launcher.mistakes)
    scale = grid.parse_scale(keys["scale"]) if keys["scale"] else grid.Scale()

    def make_plan(max_cells: int) -> Plan:
        return plan.plan_grid(keys["grid"], overrides, scale, keys["out"], dirs, max_cells)

    return _run_cells(keys, overrides, dirs, launcher.overrides, make_plan)


def _run_cells(
    keys: dict[str, Any],
    overrides: list[str],
    dirs: list[str],
    launcher: list[ParsedOverride],
    make_plan: Callable[[int], Plan],
) -> int:
    """Plan the cells of a sweep; run them, or print their cost."""
    from ganlab.sweeps import placement, runner

    if launcher and (local := [key for key in ("jobs", "per_gpu", "gpus") if keys[key] is not None]):
        fix = "set hydra.launcher.* instead, or omit hydra/launcher"
        raise ConfigError(Mistake(key, "applies to processes of this machine", fix) for key in local)
    rules = placement.parse_rules(keys["max_jobs"], keys["retry"], keys["stall_minutes"])
    places = placement.parse_placement(keys["jobs"], keys["per_gpu"], keys["gpus"], overrides)
    cells = make_plan(rules.max_cells)
    if keys["dry_run"]:
        from ganlab.sweeps import cost

        cost.print_cost(cells, places)
        return 0
    return runner.sweep(cells, places, dirs, rules, launcher)


def status(args: Args) -> int:
    """Print the state of runs."""
    from ganlab.sweeps.status import show_status

    return show_status(args.names, args.keys["watch"])


def check(args: Args) -> int:
    """Verify checkpoints."""
    if not args.names:
        raise ConfigError("check", *RUNS_NEEDED)
    from ganlab.cli.check import check as check_runs

    return check_runs(args.names, as_json=args.options.on("--json"))


def evaluate(args: Args) -> int:
    """Score a checkpoint again."""
    keys, (run,) = args.keys, args.names
    refuse_misspellings(args.overrides, keys)
    protocols = keys["protocols"] and [name.strip() for name in keys["protocols"].strip("[]").split(",")]
    if protocols and any(o.lstrip("+").startswith("metric.protocol=") for o in args.overrides):
        raise ConfigError("metric.protocol", "cannot be combined with protocols=", "keep one of the two")
    if protocols and len(set(protocols)) < len(protocols):
        raise ConfigError("protocols", "contains a duplicate", "give each name once")
    from ganlab.cli import evaluate as module

    if protocols:
        module.evaluate_protocols(run, protocols, args.overrides, keys["checkpoint"], args.dirs)
    else:
        module.evaluate_run(run, args.overrides, keys["checkpoint"], args.dirs)
    return 0


def score(args: Args) -> int:
    """Score images."""
    if len(args.names) != 1:
        raise ConfigError("score", "requires exactly one source of images", "give a folder, zip, tar or npz")
    from ganlab.cli.score import score_images

    score_images(args.names[0], [*args.overrides], args.options.on("--json"))
    return 0


def sample(args: Args) -> int:
    """Draw samples."""
    keys = args.keys
    mistakes = [
        Mistake(key, f"{keys[key]} is not between {low} and {high:,}")
        for key, (low, high) in SAMPLE_BOUNDS.items()
        if not low <= keys[key] <= high
    ]
    if mistakes:
        raise ConfigError(mistakes)
    refuse_misspellings(args.overrides, keys)
    from ganlab.cli.sample import sample_run

    sample_run(args.names[0], overrides=args.overrides, config_dirs=args.dirs, **keys)
    return 0


def report(args: Args) -> int:
    """Write a report of runs."""
    thresholds = numbers("thresholds", args.keys["thresholds"])
    if not args.names:
        raise ConfigError("report", *RUNS_NEEDED)
    require(*PLOT_PACKAGES)
    from ganlab.report import report as write

    print(write(args.names, args.keys["out"], thresholds))
    return 0


def analyze(args: Args) -> int:
    """Draw an analysis of runs."""
    if args.keys["analysis"] is None:
        refuse_misspellings(args.overrides, args.keys)
        raise ConfigError("analysis", "missing", "write analysis=NAME; 'ganlab analyze --help' lists them")
    require(*PLOT_PACKAGES)
    from ganlab.analysis import analyze as draw

    draw(args.names, args.keys["analysis"], args.keys["out"], args.overrides, args.dirs)
    return 0


def explain(args: Args) -> int:
    """Compare a run with the paper's recipe."""
    if len(args.names) > 1 or (args.names and args.overrides):
        fix = "give one run folder, or overrides as for ganlab train"
        raise ConfigError("explain", "requires either one run folder or overrides", fix)
    from ganlab.papers.explain import explain as compare

    compare("".join(args.names), args.overrides, args.dirs, as_json=args.options.on("--json"))
    return 0


def data(args: Args) -> int:
    """Prepare, check or describe a dataset."""
    if not args.names:
        fix = "write ganlab data prepare|check|info DATASET"
        raise ConfigError("data", "requires a command and a dataset", fix)
    command, *names = args.names
    if command not in ("prepare", "info", "check"):
        fix = suggest(command, ["prepare", "info", "check"])
        raise ConfigError(f"data {command}", "unknown command", fix)
    from ganlab.cli import data as module

    names += [o.removeprefix("dataset=") for o in args.overrides if o.startswith("dataset=")]
    if len(names) != 1:
        fix = f"choose one of {', '.join(module.names())}"
        raise ConfigError(f"data {command}", "requires exactly one dataset", fix)
    function = {"prepare": module.prepare, "info": module.info, "check": module.check}[command]
    function(names[0], [o for o in args.overrides if not o.startswith("dataset=")], args.dirs)
    return 0


def doctor(args: Args) -> int:
    """Report what is installed."""
    from ganlab.cli.doctor import doctor as examine

    return examine(as_json=args.options.on("--json"))
