"""Write docs/techniques.md: which technique, loss and normalization go together, each tried for an update.

python scripts/techniques_page.py            rewrite the page (minutes)
python scripts/techniques_page.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from pathlib import Path
from typing import Any

import torch

from ganlab.config import compose
from ganlab.config.files import find, options_of, read
from ganlab.errors import ConfigError
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import Batch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "techniques.md"
MLP = ["architecture=improved_mlp", "architecture.head=k_plus_1", "class_loss=labelled", "loss=k_plus_1"]
SMALL = ["dataset=digits", "dataset.resolution=16", "architecture.width=0.05", "batch_size=4", "device=cpu"]
HEAD = """# Techniques together

Made by `scripts/techniques_page.py`: each technique with each loss and each of the {n} normalizations took an
update of the small CNN on a CPU (loss=k_plus_1: of the MLP with K + 1 classes), with finite losses, or was
refused before any work, for the reason given.

| technique | loss | normalizations |
|---|---|---|
"""


def content(group: str, name: str) -> Any:
    """The config of an option."""
    path = find(f"{group}/{name}", [])
    assert path is not None
    return read(path)[0]


def outcome(tree: dict[str, Any]) -> str:
    """Empty if an update succeeds, or the refusal."""
    torch.manual_seed(0)
    try:
        gan = build_gan(compose.build(tree), torch.device("cpu"))
        losses = update(gan, lambda: Batch(torch.rand(4, 1, 16, 16) * 2 - 1, torch.arange(4)))
    except ConfigError as error:
        return "; ".join(m.what for m in error.mistakes)
    bad = [name for name, value in losses.items() if not math.isfinite(float(value))]
    return f"not finite: {', '.join(bad)}" if bad else ""


def rows() -> list[str]:
    """The table's rows; normalizations with one outcome share a row."""
    plain = compose.compose([*SMALL, "normalization=none", "loss=standard"]).tree
    classes = compose.compose([*SMALL, *MLP, "normalization=none"]).tree
    norms = [n for n in options_of("normalization") if n != "none"]
    table = []
    for technique in [t for t in options_of("technique") if t != "none"]:
        for loss in options_of("loss"):
            by: dict[str, list[str]] = {}
            for norm in ("none", *norms):
                tree = copy.deepcopy(classes if loss == "k_plus_1" else plain)
                tree["technique"] = content("technique", technique)
                tree["loss"], tree["normalization"] = content("loss", loss), content("normalization", norm)
                by.setdefault(outcome(tree), []).append(norm)
            for why, names in by.items():
                which = "all" if len(by) == 1 else ", ".join(names)
                table.append(f"| {technique} | {loss} | {which}{f': refused: {why}' if why else ''} |")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    n = len(options_of("normalization"))
    text = HEAD.format(n=n) + "\n".join(rows()) + "\n"
    if parser.parse_args().check:
        return int(PAGE.read_text("utf-8") != text)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
