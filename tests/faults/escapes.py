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

from .base import LINE, Case, Figure, Forked, Numbers, one_line, run_here, tiny
from .hostile import changed, quick, trained
from .watch import watching

BRIEF = "metric.protocol.is_n_fake=32"
WORDS, MORE = (tiny(f"steps={n}", "save_every=1", BRIEF) for n in (2, 4))


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
        with quick(), watching(run, Path(os.environ["GANLAB_CACHE"]), place / "out") as watch:
            done = run_here(*words)
        assert tree(theirs) == before, "the victim was changed"
        assert not watch.summary(), watch.summary()
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
    with quick(), watching(run, Path(os.environ["GANLAB_CACHE"])) as watch:
        done = run_here(*tiny("steps=8", "save_every=1", "keep_checkpoints=2", BRIEF))
    assert tree(theirs) == before, "the victim was changed"
    assert not watch.summary(), watch.summary()
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
        done = run_here(*tiny("steps=2", f"run_dir={link}"))
    one_line(done, 5, "another user")


# ---- words

EVIL = {
    "markup": '<script>alert(1)</script>" onload="alert(1)',
    "a formula": '=cmd|"/c calc"!A1',
    "an at": "@SUM(A1)",
    "colors": "\x1b[31mred\x1b]0;title\x07",
    "a return": "a\rb\nc\td",
    "right to left": "\u202egnp.exe",
    "half a pair": "x\\ud800",
    "giant": "g" * 5000,
    "a link in a table": "[x](javascript:alert(1)) | a |\n|---|",
}


class Page(HTMLParser):
    """What of a page could run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.bad, self.policy = list[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "form", "base", "link"):
            self.bad.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href", "srcset", "action") and not re.match(
                r"data:|#|figures/", value or ""
            )
            if name.startswith("on") or outside:
                self.bad.append(f"{tag} {name}={value!r:.60}")
        if tag == "meta" and (dict(attrs).get("http-equiv") or "").lower() == "content-security-policy":
            self.policy = dict(attrs).get("content") or ""


def injected(name: str, text: str) -> Callable[[Path], None]:
    """A run whose every name says ``text``, in reports, tables and on the screen."""

    def check(place: Path) -> None:
        run = trained(place)
        result = json.loads((run / "result.json").read_text())

        def spoilt(value: object) -> object:
            if isinstance(value, dict):
                return {k: spoilt(v) for k, v in value.items()}
            return text if isinstance(value, str) and value not in ("finished", "demo") else value

        result = {k: spoilt(v) if k != "status" else v for k, v in result.items()} | {"error": text}
        (run / "result.json").write_text(json.dumps(result))
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(changed(config, "metric.protocol.name", text)))
        with open(run / "metrics.jsonl", "a") as file:
            scores = {text[:300]: 1.0, "is_cifar": 2.0}
            file.write(json.dumps({"step": 9, "kind": "eval", "scores": scores, "protocol_id": text}) + "\n")
        with quick(), watching(run, place / "out", Path(os.environ["GANLAB_CACHE"])) as watch:
            for words in (
                ["report", "run", "out=out"],
                ["status", "run"],
                ["explain", "run"],
                ["check", "run"],
            ):
                done = run_here(*words)
                assert done.code in (0, 2, 3, 4), f"{words[0]}: {done.code} {done.err[-200:]}"
                raw = re.sub(r"[\n\t]", "", done.out + done.err)
                bad = re.search(r"[\x00-\x1f\x7f\x9b\u202a-\u202e\u2066-\u2069]", raw)
                assert not bad, f"{words[0]} prints {bad[0]!r}"
                assert len(max((done.out + done.err).splitlines(), key=len, default="")) < 2000, words[0]
        assert not watch.summary(), watch.summary()
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
        done = run_here(*words, "run_dir=${oc.env:GANLAB_TOKEN}/run")
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
    with quick(), watching(*allowed) as watch:
        for words in (
            WORDS,
            MORE,
            ["evaluate", "run", BRIEF],
            ["sample", "run", "n=4"],
            ["report", "run", "out=out"],
            ["explain", "run"],
            ["status", "run"],
            ["check", "run"],
            ["analyze", "run", "analysis=learning_curves", "out=out"],
            ["sweep", "--config-dir", "mine", "grid=two", "dry_run=true"],
        ):
            done = run_here(*words)
            assert done.code == 0, f"{words[0]}: {done.err[-300:]}"
    assert not watch.sockets, watch.sockets
    assert not watch.programs, watch.programs
    assert not watch.writes, watch.writes[:5]
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
    links = (
        ("checkpoints", "../../../../../../", MORE, (4, 5)),
        ("checkpoints", "", MORE, (4, 5)),
        ("checkpoints/step-000000002", "step-000000001", MORE, (0, 4, 5)),
        ("samples", "", MORE, (5,)),
        ("samples", "", ["sample", "run", "n=2"], (5,)),
        ("evaluations", "", ["evaluate", "run", BRIEF], (5,)),
        *((name, "notes.txt", MORE, (0, 3, 4, 5)) for name in ("metrics.jsonl", "log.txt", "result.json")),
        ("config.yaml", "notes.txt", MORE, (0, 2, 3, 4, 5)),
        (".lock", "notes.txt", MORE, (5,)),
        ("samples", "", ["report", "run", "out=out"], (0,)),
    )
    return [
        Case("a sound run touches nothing else", quiet, 10),
        *(Case(f"umask {mask:03o}", umask(mask)) for mask in (0o077, 0o022)),
        Case("pruning among links", pruned),
        Case("another user's link", foreign),
        Case("a token of the environment", env_kept),
        *(Case(f"{w} -> {to or 'victim'}, {words[0]}", linked(w, to, words, c)) for w, to, words, c in links),
        *(Case(f"words: {name}", injected(name, text)) for name, text in EVIL.items()),
    ]


FIGURES = [Figure("escapes", "Planted links and words: no write outside, no socket, no active page", cases)]
