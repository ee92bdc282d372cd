"""Write the table of all grids and experiments in docs/papers.md from the headers of their config files.

    python scripts/papers_page.py            rewrite the table
    python scripts/papers_page.py --check    exit 1 if it is out of date

A header's first comment line is the title; ``# Field:`` begins a field, an indented line continues it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "papers.md"
BEGIN = "<!-- configs: made by scripts/papers_page.py from the config files' headers; do not edit -->"
END = "<!-- end of configs -->"
FIELDS = ("Paper", "Ours", "Protocol", "Command", "Sources")  # of every header; Published where there is one


def header(file: Path) -> dict[str, list[str]]:
    """The lines of each field, and of ``title``. Raises ValueError if a field is missing."""
    fields: dict[str, list[str]] = {}
    name = "title"
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        begin = re.match(r"# ([A-Z][a-z]+): +(.+)", line)
        name, text = begin.groups() if begin else (name, line.removeprefix("#").strip())
        fields.setdefault(name, []).append(text)
    if missing := [field for field in ("title", *FIELDS) if field not in fields]:
        what = f"{file.relative_to(ROOT)}: the header lacks {', '.join(missing)}"
        raise ValueError(f"{what}; write it as in configs/experiment/sngan_cifar.yaml")
    return fields


def row(file: Path) -> str:
    """A config file as a line of a Markdown table."""
    fields = header(file)
    published = " ".join(fields.get("Published", ["-"])).replace("+-", "±")
    link = f"[{file.stem}](../configs/{file.parent.name}/{file.name})"
    cells = [link, " ".join(fields["title"]), published, f"`{fields['Command'][0]}`"]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def tables() -> str:
    """The section between the marks: grids, then experiments, by name."""
    parts = ["## All grids and experiments"]
    for folder in ("grid", "experiment"):
        files = sorted((ROOT / "configs" / folder).glob("*.yaml"))
        head = f"| {folder} | what it is | published | command |"
        parts.append("\n".join([head, "|---|---|---|---|", *map(row, files)]))
    return "\n\n".join(parts)


def main() -> int:
    """Rewrite or check; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is out of date")
    args = parser.parse_args()
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    try:
        if not mark:
            raise ValueError(f"{PAGE.name}: the marks {BEGIN!r} and {END!r} are missing")
        made = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if made == text:
        return 0
    if args.check:
        print(f"{PAGE.name} is out of date; run scripts/papers_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
