"""Published scores, with where they come from, and whether one of ours may stand beside them.

The values live in ``ganlab/assets/published.yaml``. A score of ours is like for like only if it comes from
the same kind of network, images, counts and splits; otherwise the reasons are listed instead.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab.paths import ASSETS
from ganlab.report import text

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
    "quantize": "rounding to 8 bits",
    "bn": "batch norm statistics of G",
    "generator": "weights of G",
}


@dataclass(frozen=True)
class Published:
    """One published score. ``std_over``: what the spread is over, splits or seeds; "" if not known."""

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
    recalled: bool = False
    quoted: bool = False
    conditional: bool = False
    loss: str = ""
    std: float | None = None
    std_over: str = ""
    updates: int | None = None
    hparams: str = ""
    note: str = ""

    @property
    def where(self) -> str:
        """``SNGAN Table 2``; a value from memory says so."""
        paper = table()["papers"].get(self.paper, {}).get("name", self.paper)
        return f"{paper} {self.table}" + (", recalled from memory: not verified" if self.recalled else "")

    @property
    def conditions(self) -> str:
        """``best of settings A-F, 100,000 updates``."""
        best = "best of settings A-F" if self.hparams == "best_of_A-F" else self.hparams
        updates = f"{self.updates:,} updates" if self.updates else ""
        return ", ".join(part for part in (best, updates) if part)


@functools.cache
def table() -> dict[str, Any]:
    """The whole of ``published.yaml``: protocols, sources, papers, scales, results."""
    loaded: dict[str, Any] = yaml.safe_load((ASSETS / "published.yaml").read_text(encoding="utf-8"))
    return loaded


@functools.cache
def values() -> tuple[Published, ...]:
    """The published scores that are numbers, in the file's order."""
    known = Published.__dataclass_fields__
    rows = [r for r in table()["results"] if isinstance(r["value"], (int, float))]
    return tuple(Published(**{k: v for k, v in row.items() if k in known}) for row in rows)


def lookup(
    dataset: str, architecture: str, method: str, loss: str, score: str, updates: float | None = None
) -> list[Published]:
    """The published values for a method's score (``is``, ``fid``), the most fitting first.

    First the papers' own rows, then those with as many updates, then the file's order.
    """
    same = [
        p
        for p in values()
        if (p.dataset, p.architecture, p.method, p.score) == (dataset, architecture, method, score)
        and not p.conditional
        and (not p.loss or not loss or p.loss == loss)
    ]
    return sorted(same, key=lambda p: (p.quoted, p.updates != updates))


def known_dataset(dataset: str, path: str = "") -> tuple[str, str]:
    """The dataset that published tables call so, and what to say if ours only resembles it.

    A ``folder`` of CIFAR-10 pictures is looked up as CIFAR-10, but never counts as the same images.
    """
    word = "".join(c for c in (path if dataset == "folder" else dataset).lower() if c.isalnum())
    for name in ("cifar100", "cifar10", "stl10"):
        if word == name and dataset != "folder":
            return name, ""
        if word.startswith(name):
            here, original = text.clean(path or dataset, 40), text.DATASETS.get(name, name)
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
        found = found.get("name")
    return text.clean(found or text.split_score(score)[1].strip("_") or "inception", 40)


def differences(row: Published, score: str, record: Mapping[str, Any]) -> list[str]:
    """Why our ``score``, measured as ``record`` says, may not stand beside ``row``; empty if it may."""
    wanted = table()["protocols"].get(row.protocol, {})
    kind, suffix = text.split_score(score)
    network = extractor(record, score)
    if suffix or not network.startswith(wanted.get("extractor", "no network")):
        theirs = f"published {text.score_label(kind)} on the 2015 Inception network"
        return [f"{score} is computed on the {network} network, {theirs}"]
    told = record.get("extractor")
    if isinstance(told, Mapping) and told.get("weights_official") is False:
        return ["the Inception weights are not the official ones"]
    if kind not in wanted:
        return [f"no published protocol for {score}"]
    reasons = []
    for key, want in wanted[kind].items():
        have = record.get(key)
        if key == "fid_n_real" and have == 0:
            have = SPLITS.get((row.dataset, str(record.get("real_split"))), "all")
        if have != want:
            reasons.append(f"{_KEYS.get(key, key)}: {_told(have)} here, {_told(want)} published")
    return reasons


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
        shown = text.span(text.count(steps[0]), text.count(steps[-1]))
        parts.append(f"{shown} of the paper's {fits[0]['updates']:,} updates")
    if widths and widths[0] < fits[0]["width"]:
        low, high = (f"{w / fits[0]['width']:g}" for w in (widths[0], widths[-1]))
        parts.append(f"{text.span(low, high)} of its width")
    return ", ".join(parts)
