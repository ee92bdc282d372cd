"""Published scores, with where they come from, and whether one of ours may stand beside them.

The values live in ``ganlab/assets/published.csv``; ``published.yaml`` beside it says what its words mean.
A score of ours is like for like only if it comes from the same kind of network, images, counts and splits;
otherwise the reasons are listed instead.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab import text
from ganlab.papers import labels
from ganlab.system.paths import ASSETS

# Images per split: "all" (0) in a protocol record and a number in a paper can mean the same.
SPLITS = {
    ("cifar10", "train"): 50_000,
    ("cifar10", "test"): 10_000,
    ("stl10", "train"): 5_000,
    ("stl10", "test"): 8_000,
    ("stl10", "unlabeled"): 100_000,
}
_KEYS = {
    "is_n_fake": "generated images",
    "is_splits": "splits",
    "fid_n_fake": "generated images",
    "fid_n_real": "real images",
    "real_split": "split of the real images",
    "quantize": "rounding to 8 bits",
    "bn": "batch norm statistics of G",
    "generator": "weights of G",
}


@dataclass(frozen=True)
class Published:
    """One published score; the fields are the columns that published.yaml explains."""

    id: str
    paper: str
    table: str
    dataset: str
    method: str
    architecture: str
    score: str
    value: float
    protocol: str
    provenance: str
    source: str
    subset: str = ""
    resolution: int | None = None
    conditional: bool = False
    head: str = ""
    loss: str = ""
    std: float | None = None
    std_over: str = ""
    checkpoint: str = ""
    updates: int | None = None
    hparams: str = ""
    details: str = ""
    quoted_from: str = ""
    confidence: str = ""
    approximate: bool = False
    flag: str = ""
    note: str = ""

    @property
    def quoted(self) -> bool:
        return bool(self.quoted_from)

    @property
    def recalled(self) -> bool:
        """From memory, in part or whole: every report says so."""
        return "recalled" in self.provenance

    @property
    def by_its_authors(self) -> bool:
        return str(_paper(self.paper).get("kind")) == "paper"

    @property
    def wide(self) -> bool:
        """A row on a D 1.5 times as wide."""
        return "d_width 1.5" in self.details

    @property
    def where(self) -> str:
        """``SNGAN Table 2``; a quoted value and one from memory say so."""
        name = f"{_paper(self.paper).get('name', self.paper)} {self.table}"
        if self.quoted:
            name += f", quoting {self.quoted_from}"
        if self.provenance == "recalled":
            return f"{name}, recalled from memory: not verified"
        return f"{name}, its ± recalled from memory" if self.recalled else name

    @property
    def conditions(self) -> str:
        """``best of settings A-F, 100,000 updates``."""
        best = "best of settings A-F" if self.hparams == "best of A-F" else self.hparams
        updates = f"{self.updates:,} updates" if self.updates else ""
        return ", ".join(part for part in (best, updates) if part)

    @property
    def counts(self) -> dict[str, int]:
        """Counts of images that the row itself tells, in the words of ganlab's protocol records."""
        told = dict(part.split(" ", 1) for part in self.details.split("; ") if " " in part)
        keys = {"n_real": "fid_n_real", "n_fake": "fid_n_fake"}
        return {ours: int(told[theirs]) for theirs, ours in keys.items() if theirs in told}


def _paper(key: str) -> dict[str, str]:
    found: dict[str, str] = table()["papers"].get(key, {})
    return found


@functools.cache
def table() -> dict[str, Any]:
    """The whole of ``published.yaml``: protocols, sources, papers, scales."""
    loaded: dict[str, Any] = yaml.safe_load((ASSETS / "published.yaml").read_text(encoding="utf-8"))
    return loaded


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
    """``published.csv`` as it stands, one row per score; a ``status`` has a word for a value."""
    with (ASSETS / "published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def values() -> tuple[Published, ...]:
    """The published scores that are numbers, in the file's order."""
    read: dict[str, Callable[[str], Any]] = {"value": float, "std": float, "resolution": int, "updates": int}
    read |= {"conditional": lambda word: word == "yes", "approximate": lambda word: word == "yes"}
    known = Published.__dataclass_fields__
    return tuple(
        Published(**{k: read.get(k, str)(v) for k, v in row.items() if v and k in known})
        for row in rows()
        if row["score"] != "status"
    )


def of_method(dataset: str, architecture: str, method: str, resolution: int | None = None) -> list[Published]:
    """All rows on a method, dataset and kind of net, whoever printed them, in the file's order.

    A resolution counts only where both sides tell one.
    """
    return [
        p
        for p in values()
        if (p.dataset, p.architecture, p.method) == (dataset, architecture, method)
        and (resolution is None or p.resolution in (None, resolution))
    ]


def known_method(method: str, loss: str, config: Mapping[str, Any]) -> str:
    """The method as published.csv has it: WGAN-GP with a learned gamma is SNGAN's ``wgan-gp+sn-reparam``."""
    parts, penalty = set(method.split("+")), {"gp", "wgan-gp"}  # earlier runs are called sn+gp
    norms = parts - penalty
    norm = next(iter(norms), "")
    if not parts & penalty or len(norms) != 1 or loss_name(loss) != "wasserstein":
        return method
    learned = config.get(f"normalization.{norm}.gamma") == "learned"
    return f"wgan-gp+{norm}-reparam" if learned else method


def lookup(
    dataset: str,
    architecture: str,
    method: str,
    loss: str,
    score: str,
    updates: float | None = None,
    *,
    resolution: int | None = None,
    head: str = "",
    wide: bool = False,
) -> list[Published]:
    """The papers' values for a method's score (``is``, ``fid``), the most fitting first.

    First the papers' own rows, then what was read, then those with as many updates, then the file's order.
    ``head``: how a conditional D is told the class; "" for an unconditional one. ``wide``: D is 1.5 times as
    wide as the paper's (SNGAN's Tables 7 and 8).
    """
    same = [
        p
        for p in of_method(dataset, architecture, method, resolution)
        if p.score == score
        and p.by_its_authors
        and (p.head == head if head else not p.conditional)
        and (not p.loss or not loss or p.loss == loss)
        and p.wide == wide
    ]
    return sorted(
        same,
        key=lambda p: (
            *(p.quoted, p.provenance == "recalled", bool(p.flag), p.checkpoint != ""),
            *(p.updates != updates, "stat" in p.details),
        ),
    )


def known_dataset(dataset: str, path: str = "") -> tuple[str, str]:
    """The dataset that published tables call so, and what to say if ours only resembles it.

    A ``folder`` of CIFAR-10 pictures is looked up as CIFAR-10, but never counts as the same images.
    """
    word = "".join(c for c in (path if dataset == "folder" else dataset).lower() if c.isalnum())
    for name in ("cifar100", "cifar10", "stl10", "celeba"):
        if word == name and dataset != "folder":
            return name, ""
        if word.startswith(name):
            here, original = text.clean(path or dataset, 40), labels.DATASETS.get(name, name)
            return name, f"the images come from {here}, not from the original {original}"
    return dataset, ""


def loss_name(run_loss: str) -> str:
    """ganlab's group name of a loss, from its class or group name; "" if it is not known."""
    word = run_loss.rsplit(".", 1)[-1].lower().replace("-", "").replace("_", "")
    return "standard" if word == "nonsaturating" else word


def extractor(record: Mapping[str, Any], score: str) -> str:
    """The feature network of a protocol record; a score's suffix tells it where the record does not."""
    found = record.get("extractor", record.get("name"))
    if isinstance(found, Mapping):
        in_bf16 = found.get("precision") == "bf16"
        found = f"{found.get('name')} (bf16)" if in_bf16 else found.get("name")
    return text.clean(found or labels.split_score(score)[1].strip("_") or "inception", 40)


def differences(row: Published, score: str, record: Mapping[str, Any], checkpoint: str = "last") -> list[str]:
    """Why our ``score``, measured as ``record`` says, may not stand beside ``row``; empty if it may."""
    wanted = table()["protocols"].get(row.protocol, {})
    kind, suffix = labels.split_score(score)
    network = extractor(record, score)
    if unlike := wanted.get("unlike"):
        return [f"published: {unlike}"]
    if suffix or not network.startswith(wanted.get("extractor", "no network")):
        return [f"scored on the {network} network here, on the 2015 Inception network there"]
    told = record.get("extractor")
    if isinstance(told, Mapping) and told.get("weights_official") is False:
        return ["the Inception weights are not the official ones"]
    if kind not in wanted:
        return [f"no published protocol for {score}"]
    reasons = []
    for key, want in {**wanted[kind], **(row.counts if kind == "fid" else {})}.items():
        have = record.get(key)
        if key == "fid_n_real" and have == 0:
            have = SPLITS.get((row.dataset, str(record.get("real_split"))), "all")
        if have != want:
            reasons.append(f"{_KEYS.get(key, key)}: {_told(have)} here, {_told(want)} published")
    there = row.checkpoint or wanted.get("checkpoint")
    if there and there != checkpoint:
        reasons.append(f"checkpoint: {text.clean(checkpoint, 20)} here, {there} published")
    return reasons


def unstated(row: Published) -> str:
    """What the source leaves open about this score, though it can move it."""
    return str(table()["protocols"].get(row.protocol, {}).get("unstated", {}).get(row.score, ""))


def _told(value: object) -> str:
    if value is None:
        return "not recorded"
    return f"{value:,}" if isinstance(value, int) else text.clean(value, 20)


def reduced(dataset: str, architecture: str, steps: list[float], widths: list[float]) -> str:
    """What is smaller than in the paper: ``1,000 of the paper's 100,000 updates, 0.25 of its width``."""
    fits = [s for s in table()["scales"] if (s["dataset"], s["architecture"]) == (dataset, architecture)]
    if not fits:
        return ""
    parts = []
    if steps and steps[0] < fits[0]["updates"]:
        shown = labels.span(labels.count(steps[0]), labels.count(steps[-1]))
        parts.append(f"{shown} of the paper's {fits[0]['updates']:,} updates")
    if widths and widths[0] < fits[0]["width"]:
        low, high = (f"{w / fits[0]['width']:g}" for w in (widths[0], widths[-1]))
        parts.append(f"{labels.span(low, high)} of its width")
    return ", ".join(parts)
