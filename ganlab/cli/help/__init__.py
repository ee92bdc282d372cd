"""What ``--help`` prints. Reads YAML and docstrings as text, so it needs neither torch nor Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ganlab import __version__, analysis
from ganlab.cli.arguments import ParsedArgs
from ganlab.cli.help.page import argument_descriptions, arguments, body, default, table, title, wrap
from ganlab.config.files import GRIDS, groups, options_of, user_dirs

EXIT_CODES = """\
  0  done                                    5  environment: device, package, disk, permission,
  1  a bug in ganlab (see crash.txt)            network, weights
  2  config or command line                  6  diverged
  3  dataset or another input file           7  run folder in use
  4  checkpoint unusable                     8  a sweep ended with failed jobs
  128+N  stopped by signal N, state saved (130: Ctrl-C)"""
ENVIRONMENT = [
    ("GANLAB_CACHE", "folder of prepared datasets, weights and statistics (default ~/.cache/ganlab)"),
    ("GANLAB_CONFIGS", f"more --config-dir folders, separated by '{os.pathsep}'"),
    ("GANLAB_OFFLINE=1", "never download"),
    ("GANLAB_DEBUG=1", "print tracebacks"),
]


def program(summaries: Iterable[tuple[str, str]]) -> str:
    """``ganlab --help``. ``summaries``: commands and what they do."""
    return "\n".join(
        [
            f"ganlab {__version__}: train, score and compare GANs by the papers' recipes",
            "",
            "usage: ganlab COMMAND [arguments]      ganlab COMMAND --help",
            "",
            "commands",
            *table(summaries),
            "",
            "examples",
            "  ganlab train                                        the demo: digits, minutes on a CPU",
            "  ganlab train +experiment=sngan_cifar setting=B      a published row",
            "  ganlab train -m +experiment=sngan_cifar setting=A,B,C seed=0,1",
            "  ganlab sweep grid=sngan_fig1_cifar dry_run=true      a paper's grid and its cost",
            "  ganlab report outputs",
            "",
            "exit codes",
            EXIT_CODES,
            "",
            "environment",
            *table(ENVIRONMENT),
        ]
    )


def grids(parsed: ParsedArgs) -> list[str]:
    """The grids of ``ganlab sweep``."""
    dirs = user_dirs(parsed.all("--config-dir"))
    return ["grids", *table((name, title(f"{GRIDS}/{name}", dirs)) for name in options_of(GRIDS, dirs))]


def datasets(_: ParsedArgs) -> list[str]:
    """The datasets of ``ganlab data``."""
    return ["datasets", *wrap(", ".join(groups([]).get("dataset", [])))]


def scoring(_: ParsedArgs) -> list[str]:
    """The overrides of ``ganlab evaluate``."""
    descriptions, options = arguments("Scoring"), groups([])
    rows = [
        ("metric.protocol=NAME", f"{descriptions['protocol']} One of {', '.join(options['protocol'])}"),
        ("metric.extractor=NAME", f"the feature network. One of {', '.join(options['extractor'])}"),
        ("metric.weights=PATH", descriptions["weights"]),
        ("metric=[NAME,NAME]", f"the scores to compute, of {', '.join(options['metric'])}"),
        ("device, threads, data_memory_gb", "as in 'ganlab train --help all'"),
        ("dataset.path=PATH", "where the images are now"),
    ]
    return ["overrides", *table(rows)]


def analyses(parsed: ParsedArgs) -> list[str]:
    """The analyses of ``ganlab analyze``; with ``analysis=NAME``, that one with its keys."""
    catalogue = analysis.catalogue()
    selected = [o.partition("=")[2] for o in parsed.overrides if o.lstrip("+").startswith("analysis=")]
    if not selected or selected[-1] in ("", analysis.ALL):
        rows = [(name, entry.title) for name, entry in catalogue.items()]
        rows.append((analysis.ALL, "all that apply to the runs; prints why the others do not"))
        return ["analyses (for the keys of one: ganlab analyze analysis=NAME --help)", *table(rows)]
    lines: list[str] = []
    for name in analysis.select(selected[-1]):
        entry = catalogue[name]
        descriptions = argument_descriptions(entry.doc)
        keys = [(f"{k}={default(v)}", descriptions.get(k, "")) for k, v in entry.keys.items()]
        lines += ["", f"analysis={name}: {entry.title}", *wrap(body(entry.doc))]
        lines += ["", f"keys of {name}", *table(keys)] if keys else []
    return lines[1:]
