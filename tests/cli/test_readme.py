"""README says what is so: its table comes from the records, its links and commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ganlab.config import compose

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_results_table_is_the_records() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "results_table.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


COMMANDS = [
    shlex.split(line.split("  #")[0])[2:]
    for line in README.splitlines()
    if line.startswith("ganlab train") and "-m" not in line and "..." not in line
]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(w) or "plain" for w in COMMANDS])
def test_training_commands_compose_and_build(words: list[str]) -> None:
    compose.build(compose.compose([w for w in words if w not in ("--cfg", "job")]))


def test_every_group_and_exit_code_is_told() -> None:
    for word in ("normalization", "loss", "setting", "architecture", "dataset", "+experiment"):
        assert word in README
    for code in (
        "0 done",
        "2 config",
        "3 dataset",
        "4 checkpoint",
        "5 environment",
        "6 diverged",
        "8 sweep",
        "128+N",
    ):
        assert code in README


def test_grids_experiments_and_analyses_exist() -> None:
    from ganlab import analysis
    from ganlab.config.files import GRIDS, options_of

    assert set(re.findall(r"grid=(\w+)", README)) - {"NAME"} == set(options_of(GRIDS))
    assert set(re.findall(r"\+experiment=(\w+)", README)) <= set(options_of("experiment"))
    told = set(re.findall(r"`(?:analysis=)?(\w+)`", README))
    assert set(analysis.catalogue()) <= told
