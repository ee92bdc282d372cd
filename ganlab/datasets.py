"""``ganlab data``: prepare a dataset, or tell what is prepared. Imports no torch before it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ganlab.config_files import groups, user_dirs
from ganlab.data.base import Dataset
from ganlab.errors import ConfigError, DataError
from ganlab.spelling import suggest

TOLD = ("skipped", "too_small", "enlarged", "empty_classes")  # by ``pack.warnings_of``
OWN = {"verify": ("true", "false")}


def names(config_dirs: Sequence[str] = ()) -> list[str]:
    return groups(user_dirs(config_dirs)).get("dataset", [])


def prepare(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Download where needed, pack, and print where the packs lie and what happened to images on the way.

    ``split=all`` for every split. A preparation that was killed goes on where it stopped.
    """
    dataset, splits, _ = _opened(name, overrides, config_dirs, packs=False)
    from ganlab.data import pack

    for manifest in pack.prepare(dataset, splits):
        if manifest.get("folder") is None:
            print(f"{dataset.name}: comes with its package; nothing to prepare")
        else:
            print(f"{dataset.name}: {_sentence(manifest)} -> {manifest['folder']}")
            for line in (*_counts(manifest, but=TOLD), *pack.warnings_of(manifest)):
                print(f"  {line}")


def info(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Print what a dataset is and which splits are prepared; downloads nothing.

    Raises DataError if a pack is damaged (``verify=true`` reads all of it).
    """
    dataset, _, verify = _opened(name, overrides, config_dirs, packs=True)
    from ganlab.data import pack

    told = pack.info(dataset, verify=verify)
    print(f"{told['name']}: {told['resolution']}x{told['resolution']}, {told['channels']} channels")
    print(f"splits: {', '.join(told['splits'])} (training: {told['split']})")
    damaged = []
    for split, manifest in told["packs"].items():
        if manifest is None:
            print(f"  {split}: {_absent(dataset, split)}")
        elif "absent" in manifest:
            print(f"  {split}: no source here ({manifest['absent']})")
        elif "begun" in manifest:
            done = f"{manifest['begun'] / 1e6:,.0f} MB"
            print(f"  {split}: begun, {done} done; 'ganlab data prepare {dataset.name}' goes on")
        elif "error" in manifest:
            damaged.append(manifest)
            print(f"  {split}: damaged, {manifest['folder']}")
        else:
            print(f"  {split}: {_sentence(manifest)}{', verified' if verify else ''}")
            for line in (manifest["folder"], *_counts(manifest)):
                print(f"    {line}")
            if classes := manifest.get("classes"):
                counts = manifest.get("class_counts") or [""] * len(classes)
                shown = [f"{c} {n}".strip() for c, n in zip(classes, counts, strict=False)]
                print(f"    classes: {', '.join(shown[:20])}{', ...' if len(shown) > 20 else ''}")
    if damaged:
        where, _, rest = damaged[0]["error"].partition(": ")
        raise DataError(where, *rest.split("; ", 1))


def _absent(dataset: Dataset, split: str) -> str:
    if dataset.pack_folder(split) is None:
        return "comes with its package"
    return f"not prepared; 'ganlab data prepare {dataset.name} split={split}'"


def _counts(manifest: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """What happened to images on the way, in a line, if anything did, without the counts ``but``."""
    from ganlab.data.images import NOTES

    found = {what: number for what, number in (manifest.get("counts") or {}).items() if what not in but}
    told = [f"{number:,} {NOTES.get(what, what.replace('_', ' '))}" for what, number in found.items()]
    return ["; ".join(told)] if told else []


def _sentence(manifest: Mapping[str, Any]) -> str:
    parts = [f"{manifest['count']:,} images" if "count" in manifest else ""]
    if "shape" in manifest:
        parts.append("x".join(map(str, manifest["shape"])))
    for key in ("fingerprint", "sha256"):
        if key in manifest:
            parts.append(f"sha256 {str(manifest[key])[:12]}")
            break
    return ", ".join(p for p in parts if p)


def _opened(
    name: str, overrides: Sequence[str], config_dirs: Sequence[str], *, packs: bool
) -> tuple[Dataset, Sequence[str] | None, bool]:
    """The dataset, the splits asked for (None: the training one), and whether to verify.

    ``packs``: ``verify`` asks for that; else it is the dataset's own key, as ``dataset.verify`` always is.
    """
    options = names(config_dirs)
    if name not in options:
        raise ConfigError("dataset", f"there is no {name!r}", suggest(name, options))
    words, splits, verify = [f"dataset={name}"], None, False
    for word in overrides:
        full, equals, value = word.lstrip("+").partition("=")
        key = full.removeprefix("dataset.")
        if full == "verify" and packs:
            if value not in ("true", "false"):
                raise ConfigError("verify", f"{value!r} is not true or false", "write verify=true")
            verify = value == "true"
        elif (key, value) == ("split", "all"):
            splits = ["all"]
        else:
            words.append(f"dataset.{key}{equals}{value}")
    from ganlab import config

    composed = config.compose(words, config_dirs)
    dataset: Dataset = config.build(composed.tree["dataset"], where="dataset")
    return dataset, dataset.splits() if splits else None, verify
