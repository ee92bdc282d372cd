"""Links planted in run folders, words that are code elsewhere, and what a sound run touches."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import yaml

from .base import LINE, Case, Figure, Forked, Numbers, one_line, tiny
from .config_fuzz import said
from .hostile import changed, quick, trained
from .watch import watching

WORDS = tiny("steps=2", "save_every=1", "metric.protocol.is_n_fake=32")
MORE = tiny("steps=4", "save_every=1", "metric.protocol.is_n_fake=32")


def tree(place: Path) -> str:
    """A digest of names and contents below a folder."""
    total = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        total.update(str(path.relative_to(place)).encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


def victim(place: Path) -> Path:
    """Somebody else's files, named as a run's are."""
    made = place / "victim"
    for name in (
        "step-000000001/state.json",
        "step-000000001/MANIFEST.json",
        "notes.txt",
        "step-000000009/x",
    ):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("theirs")
    return made


def linked(what: str, to: str, words: Sequence[str], codes: Sequence[int]) -> Callable[[Path], None]:
    """``what`` in a run folder is a link to ``to`` of a victim; a command must leave the victim alone."""

    def check(place: Path) -> None:
        run, theirs = trained(place), victim(place)
        before, at = tree(theirs), run / what
        if at.is_dir():
            shutil.rmtree(at)
        at.unlink(missing_ok=True)
        at.symlink_to(theirs / to)
        with quick(), watching(run, Path(os.environ["GANLAB_CACHE"]), place / "out") as seen:
            done = said(words)
        assert tree(theirs) == before, "the victim was changed"
        assert not seen.told(), seen.told()
        assert done.code in codes, f"code {done.code}: {done.err[-200:]}"
        assert all(len(line) <= LINE for line in done.err.splitlines())

    return check


def pruned(place: Path) -> None:
    """Pruning passes by links and other runs' checkpoints that bear a step's name."""
    run, theirs = trained(place), victim(place)
    before = tree(theirs)
    shutil.copytree(run / "checkpoints" / "step-000000002", place / "other")
    (run / "checkpoints" / "step-000000003").symlink_to(theirs)
    (run / "checkpoints" / f".tmp-9-{'0' * 32}").symlink_to(theirs)
    (run / "checkpoints" / f".trash-9-{'0' * 32}").symlink_to(theirs)
    (run / f".config.yaml.{'0' * 32}.tmp").symlink_to(theirs / "notes.txt")
    with quick(), watching(run, Path(os.environ["GANLAB_CACHE"])) as seen:
        done = said(tiny("steps=8", "save_every=1", "keep_checkpoints=2", "metric.protocol.is_n_fake=32"))
    assert tree(theirs) == before, "the victim was changed"
    assert not seen.told(), seen.told()
    assert done.code in (0, 4, 5), done.err


def foreign(place: Path) -> None:
    """A folder that another user owns, or may be written by everyone, is not taken over silently."""
    if os.geteuid() != 0:
        return
    run = place / "run"
    run.mkdir()
    os.chown(run, 12345, 12345)
    link = place / "link"
    link.symlink_to(run)
    os.chown(link, 54321, 54321, follow_symlinks=False)
    with quick():
        done = said(tiny("steps=2", f"run_dir={link}"))
    one_line(done, 5, "another user")


# ---- words

EVIL = {
    "markup": "<script>alert(1)</script>",
    "an attribute": '" onload="alert(1)',
    "a formula": '=cmd|"/c calc"!A1',
    "a plus": "+1+1",
    "an at": "@SUM(A1)",
    "a minus": "-2+3",
    "colours": "\x1b[31mred\x1b]0;title\x07",
    "a return": "a\rb\nc\td",
    "right to left": "\u202egnp.exe",
    "half a pair": "x\\ud800",
    "giant": "g" * 5000,
    "a link": "[x](javascript:alert(1))",
    "a table": "| a | b |\n|---|",
}


class Page(HTMLParser):
    """What of a page could run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.bad, self.policy = list[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "iframe", "object", "embed", "form", "base", "link"):
            self.bad.append(tag)
        for name, value in given.items():
            outside = name in ("src", "href", "srcset", "action") and not re.match(
                r"data:|#|figures/", value or ""
            )
            if name.startswith("on") or outside:
                self.bad.append(f"{tag} {name}={value!r:.60}")
        if tag == "meta" and (given.get("http-equiv") or "").lower() == "content-security-policy":
            self.policy = given.get("content") or ""


def injected(name: str, text: str) -> Callable[[Path], None]:
    """A run whose every name says ``text``, in reports, tables and on the screen."""

    def check(place: Path) -> None:
        run = trained(place)
        told = json.loads((run / "result.json").read_text())

        def spoilt(value: object) -> object:
            if isinstance(value, dict):
                return {k: spoilt(v) for k, v in value.items()}
            return text if isinstance(value, str) and value not in ("finished", "demo") else value

        told = {k: spoilt(v) if k not in ("status",) else v for k, v in told.items()} | {"error": text}
        (run / "result.json").write_text(json.dumps(told))
        tree_ = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(changed(tree_, "metric.protocol.name", text)))
        with open(run / "metrics.jsonl", "a") as file:
            line = {
                "step": 9,
                "kind": "eval",
                "scores": {text[:300]: 1.0, "is_cifar": 2.0},
                "protocol_id": text,
            }
            file.write(json.dumps(line) + "\n")
        with quick(), watching(run, place / "out", Path(os.environ["GANLAB_CACHE"])) as seen:
            for words in (
                ["report", "run", "out=out"],
                ["status", "run"],
                ["explain", "run"],
                ["check", "run"],
            ):
                done = said(words)
                assert done.code in (0, 2, 3, 4), f"{words[0]}: {done.code} {done.err[-200:]}"
                raw = re.sub(r"[\n\t]", "", done.out + done.err)
                bad = re.search(r"[\x00-\x1f\x7f\x9b\u202a-\u202e\u2066-\u2069]", raw)
                assert not bad, f"{words[0]} prints {bad[0]!r}"
                assert len(max((done.out + done.err).splitlines(), key=len, default="")) < 2000, words[0]
        assert not seen.told(), seen.told()
        judged(place / "out")

    return check


def judged(out: Path) -> None:
    """A report is one page without anything active, and tables without formulas."""
    page, html = Page(), (out / "report.html").read_text()
    page.feed(html)
    assert not page.bad, f"report.html: {page.bad[:3]}"
    assert "default-src 'none'" in page.policy, f"policy: {page.policy!r}"
    assert "unsafe" not in page.policy
    for table in out.glob("*.csv"):
        with open(table, newline="") as file:
            for row in csv.reader(file):
                for cell in row:
                    number = re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( .*)?", cell)
                    assert number or not re.match(r"[=+\-@\t\r]", cell) or cell in ("-", "–"), (
                        f"{table.name}: {cell[:60]!r}"
                    )
    text = (out / "report.md").read_text()
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)


def env_kept(place: Path) -> None:
    """A value of the environment reaches no file of the run."""
    os.environ["GANLAB_TOKEN"] = "s3cret-of-the-environment"
    (place / "s3cret-of-the-environment").mkdir()
    os.chdir(place)
    words = [w for w in WORDS if not w.startswith("run_dir=")]
    with quick():
        done = said([*words, "run_dir=${oc.env:GANLAB_TOKEN}/run"])
    assert done.code == 0, done.err
    run = place / "s3cret-of-the-environment" / "run"
    stored = (run / "config.yaml").read_text()
    assert "s3cret" not in stored
    assert "oc.env" in stored


# ---- a sound run


def quiet(place: Path) -> Numbers:
    """All that a run is used for: no socket, no write outside run, cache and output."""
    os.chdir(place)
    axes = "axes: {seed: {'0': [seed=0], '1': [seed=1]}}"
    grid = f"title: two\nblocks:\n  - overrides: [+experiment=digits]\n    {axes}\n"
    tempfile.gettempdir()  # Python tries the folder, once
    (place / "mine" / "grid").mkdir(parents=True)
    (place / "mine" / "grid" / "two.yaml").write_text(grid)
    allowed = [place / "run", Path(os.environ["GANLAB_CACHE"]), place / "out"]
    with quick(), watching(*allowed) as seen:
        for words in (
            WORDS,
            MORE,
            ["evaluate", "run", "metric.protocol.is_n_fake=32"],
            ["sample", "run", "n=4"],
            ["report", "run", "out=out"],
            ["explain", "run"],
            ["status", "run"],
            ["check", "run"],
            ["analyze", "run", "analysis=learning_curves", "out=out"],
            ["sweep", "--config-dir", "mine", "grid=two", "dry_run=true"],
        ):
            done = said(words)
            assert done.code == 0, f"{words[0]}: {done.err[-300:]}"
    assert not seen.sockets, seen.sockets
    assert not seen.programs, seen.programs
    assert not seen.writes, seen.writes[:5]
    judged(place / "out")
    return {"commands": 10}


def umask(mask: int) -> Callable[[Path], None]:
    """Everything that a run writes has the modes that the user's umask gives."""

    def check(place: Path) -> None:
        done = Forked(*WORDS, cwd=place, before=lambda: os.umask(mask)).wait(120)
        assert done.code == 0, done.err
        for path in (place / "run", *(place / "run").rglob("*")):
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert not mode & mask, f"{path.relative_to(place)} has mode {mode:o} under umask {mask:03o}"
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert mode == wanted, f"{path.relative_to(place)} has mode {mode:o}, not {wanted:o}"

    return check


def cases() -> list[Case]:
    sample, report = ["sample", "run", "n=2"], ["report", "run", "out=out"]
    evaluate = ["evaluate", "run", "metric.protocol.is_n_fake=32"]
    found = [
        Case("a sound run touches nothing else", quiet, 10),
        Case("umask 077", umask(0o077)),
        Case("checkpoints -> /", linked("checkpoints", "../../../../../../", MORE, (4, 5))),
        Case("pruning among links", pruned),
        Case("words: markup", injected("markup", EVIL["markup"])),
        Case("words: colours", injected("colours", EVIL["colours"])),
        Case("a token of the environment", env_kept),
    ]
    for what, to, words, codes in (
        ("checkpoints", "", MORE, (4, 5)),
        ("checkpoints/step-000000002", "step-000000001", MORE, (0, 4, 5)),
        ("checkpoints/step-000000009", "step-000000009", MORE, (0, 4, 5)),
        ("samples", "", MORE, (5,)),
        ("samples", "", sample, (5,)),
        ("evaluations", "", evaluate, (5,)),
        ("metrics.jsonl", "notes.txt", MORE, (0, 3, 4, 5)),
        ("log.txt", "notes.txt", MORE, (0, 3, 4, 5)),
        ("result.json", "notes.txt", MORE, (0, 3, 4, 5)),
        ("run.json", "notes.txt", MORE, (0, 3, 4, 5)),
        ("config.yaml", "notes.txt", MORE, (0, 2, 3, 4, 5)),
        (".lock", "notes.txt", MORE, (5,)),
        ("crash.txt", "notes.txt", MORE, (0,)),
        ("samples", "", report, (0,)),
    ):
        found.append(Case(f"{what} -> {to or 'victim'}, {words[0]}", linked(what, to, words, codes)))
    found.append(Case("another user's link", foreign))
    found.append(Case("umask 022", umask(0o022)))
    found += [Case(f"words: {n}", injected(n, t)) for n, t in EVIL.items() if n not in ("markup", "colours")]
    return found


FIGURES = [
    Figure(
        "escapes",
        "Planted links, words that are code elsewhere, sound runs -> writes outside, sockets, active pages",
        (59, 60),
        40,
        cases,
    )
]
