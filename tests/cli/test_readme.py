"""README and docs/ are true: tables come from records and configs; links, names and commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ganlab.config import compose
from ganlab.config.files import GRIDS, options_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
COMMANDS = sorted(
    {
        tuple(shlex.split(line.split("  #")[0])[2:])
        for line in TEXT.splitlines()
        if line.startswith("ganlab train") and "-m" not in line and "..." not in line
    }
)


@pytest.mark.parametrize("script", ["results_table.py", "papers_page.py"])
def test_tables_are_up_to_date(script: str) -> None:
    check = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    links = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    assert not [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]


def test_training_commands_compose_and_build() -> None:
    for words in COMMANDS:
        compose.build(compose.compose([w for w in words if w not in ("--cfg", "job")]))


def test_every_exit_code_is_documented() -> None:
    documented = set(re.findall(r"^\| (\d\S*) \|", (ROOT / "docs" / "runs.md").read_text(), flags=re.M))
    assert documented == {*"012345678", "128+N"}


def test_grids_and_experiments_exist() -> None:
    assert set(re.findall(r"grid=(\w+)", TEXT)) - {"NAME"} <= set(options_of(GRIDS))
    assert set(re.findall(r"\+experiment=(\w+)", TEXT)) <= set(options_of("experiment"))
