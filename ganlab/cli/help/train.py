"""The help pages of ``ganlab train``: the everyday keys, one group, or everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ganlab.cli.actions import SWEEP_KEYS
from ganlab.cli.arguments import ParsedArgs
from ganlab.cli.command import CONFIG_DIR, HELP, Command
from ganlab.cli.help.page import arguments, default_of, marked, plain, table, title, wrap
from ganlab.config.files import NAMED, find, groups, read, user_dirs
from ganlab.errors import ConfigError, suggest
from ganlab.system.paths import config_dir

EVERYDAY = ("steps", "batch_size", "seed", "device", "eval_every", "save_every", "run_dir")
GROUPS = {
    "experiment": "a paper's recipe",
    "dataset": "the images",
    "architecture": "G and D",
    "loss": "the adversarial loss",
    "normalization": "normalization or penalty of D; several as [sn,gp]",
    "technique": "further methods; several as [feature_matching,label_smoothing]",
    "setting": "optimizer settings A to F of SNGAN's Table 1",
}
OPTIONS = [
    ("-m, --multirun", "a run for each combination: setting=A,B seed=0,1 or 'seed=range(0,3)'"),
    CONFIG_DIR,
    ("--cfg job [--resolve]", "print and check the composed config; train nothing"),
    ("-p, --package KEY", "with --cfg: only the part under KEY"),
    ("--cfg hydra|all, --info [WHAT], --hydra-help", "Hydra's own"),
    HELP,
]
MORE = [
    ("ganlab train --help GROUP", "the options of a group with their keys, as --help dataset"),
    ("ganlab train --help all", "all experiments, groups, keys and options"),
]


def page(command: Command, parsed: ParsedArgs) -> str:
    """``ganlab train --help [GROUP|all]``. Raises ConfigError for an unknown group."""
    dirs = user_dirs(parsed.all("--config-dir"))
    root, _ = read(config_dir() / "train.yaml")
    topic = parsed.names[0] if parsed.names else ""
    known = {g: options for g, options in groups(dirs).items() if "/" not in g}
    if not topic:
        return everyday(command, root)
    if topic == "all":
        return everything(command, root, dirs)
    if topic not in known:
        raise ConfigError(topic, "is not a group", suggest(topic, [*known, "all"]))
    return "\n".join(group(topic, known[topic], root, dirs))


def defaults_of(root: dict[str, Any]) -> dict[str, Any]:
    """Group -> its default, from the content of train.yaml."""
    entries = [entry for entry in root["defaults"] if isinstance(entry, dict)]
    return {key.split()[-1]: value for entry in entries for key, value in entry.items()}


def everyday(command: Command, root: dict[str, Any]) -> str:
    """The keys that most runs set."""
    keys, defaults = arguments("Experiment"), defaults_of(root)
    rows = [(f"{g}={plain(defaults[g])}" if g in defaults else f"+{g}=NAME", t) for g, t in GROUPS.items()]
    rows += [("optimizer.lr=(by setting)", "learning rate of both players")]
    rows += [(f"{k}={default_of(root, k)}", keys[k]) for k in EVERYDAY]
    everyday_keys = ["everyday keys: key=default", *table(rows)]
    return command.laid_out(everyday_keys, ["options", *table(OPTIONS)], ["more", *table(MORE)])


def group(name: str, options: Sequence[str], root: dict[str, Any], dirs: Sequence[Path]) -> list[str]:
    """The options of a group, and their keys with the values of their files."""
    key = next((key for key, folder in NAMED.items() if folder == name), name)
    default = defaults_of(root).get(name)
    if key != name:
        default = (root.get("metric") or {}).get(key.partition(".")[2])
    chosen = default if isinstance(default, list) else [default]
    sign = "" if name in defaults_of(root) or key != name else "+"
    lines = [f"ganlab train {sign}{key}=NAME: options of the group {name} (* is the default)", ""]
    for option in options:
        lines += table([(f"{'*' if option in chosen else ''}{option}", title(f"{name}/{option}", dirs))])
        path = find(f"{name}/{option}", dirs)
        content = read(path)[0] if path and name not in ("experiment", "metric") else {}
        content = next(iter(content.values())) if _is_nested(content) else content
        lines += wrap(", ".join(_settings(content)), " " * 28)
    choice = f"{sign}{key}={options[0]}"
    return [*lines, "", "the composed config of a choice", f"  ganlab train --cfg job {choice}"]


def _settings(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """``key=value`` for every key of a config file."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")
        elif key not in ("_target_", "_partial_", "defaults"):
            yield f"{prefix}{key}={plain(value)}"


def _is_nested(content: dict[str, Any]) -> bool:
    """Whether a file has one named part, as those of groups that may have several options."""
    values = list(content.values())
    return len(values) == 1 and isinstance(values[0], dict) and "_target_" in values[0]


def everything(command: Command, root: dict[str, Any], dirs: Sequence[Path]) -> str:
    """All groups with their options, and all top-level keys with default and description."""
    defaults, known = defaults_of(root), groups(dirs)
    keys, scoring = arguments("Experiment"), arguments("Scoring")
    names = [*defaults, *(g for g in known if g not in {*defaults, *NAMED.values(), "experiment"})]
    metric = {k: v for k, v in (root.get("metric") or {}).items() if k in scoring}
    launchers = "|".join(["basic", "joblib", *(n for n in known.get("hydra/launcher", []) if n != "ray")])
    slurm = "sweeps: on SLURM, or locally in its manner; pip install 'ganlab[slurm]'"
    options = [
        (f"hydra/launcher={launchers}", "sweeps: one run at a time, or several in parallel"),
        ("hydra/launcher=submitit_slurm|submitit_local", slurm),
        ("hydra/launcher=ray", "sweeps: on Ray; pip install 'ganlab[ray]'"),
        *((f"{k}={plain(default)}", f"with -m: {text}") for k, (default, text) in SWEEP_KEYS.items()),
    ]
    return command.laid_out(
        [
            "experiments: +experiment=NAME",
            *table((name, title(f"experiment/{name}", dirs)) for name in known.get("experiment", [])),
        ],
        [
            "groups: group=option (* is the default; several as normalization=[sn,gp])",
            *table((g, marked(known[g], defaults.get(g))) for g in names if g in known and "/" not in g),
        ],
        [
            "keys: key=default",
            *table((f"{k}={default_of(root, k)}", keys[k]) for k in keys if k not in {*known, "optimizer"}),
            *table((f"metric.{k}={plain(v)}", scoring[k]) for k, v in metric.items()),
            *wrap(
                "Options have keys of their own, such as optimizer.lr, dataset.path and architecture.width; "
                "see 'ganlab train --help GROUP', or 'ganlab train --cfg job [overrides]' for their values."
            ),
        ],
        ["options", *table([*OPTIONS, *options])],
    )
