"""``ganlab data``: prepare a dataset, check it, or tell what is prepared. Imports no torch before it must."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ganlab.config.files import groups, user_dirs
from ganlab.data.base import Dataset
from ganlab.data.formats.images import printable_name
from ganlab.errors import ConfigError, DataError, Mistake, suggest
from ganlab.system.files import write_json
from ganlab.system.paths import expanded

if TYPE_CHECKING:
    from ganlab.data.packing.check import Report

TOLD = ("skipped", "too_small", "enlarged", "empty_classes")  # by ``pack.warnings_of``
OWN = {  # each command's own keys, beside the dataset's
    "prepare": (),
    "info": ("verify",),
    "check": ("hash", "manifest", "out"),
}
SHOWN = 20  # groups of equal files that are printed


def names(config_dirs: Sequence[str] = ()) -> list[str]:
    return groups(user_dirs(config_dirs)).get("dataset", [])


def prepare(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Download where needed, pack, and print where the packs lie and what happened to images on the way.

    ``split=all`` for every split. A preparation that was killed goes on where it stopped.
    """
    dataset, splits, _ = _opened(name, overrides, config_dirs, "prepare")
    from ganlab.data.packing import pack

    for manifest in pack.prepare(dataset, splits):
        if manifest.get("folder") is None:
            print(f"{dataset.name}: {dataset.origin}; nothing to prepare")
            _told_loaded(dataset, manifest)
        else:
            print(f"{dataset.name}: {_sentence(manifest)} -> {manifest['folder']}")
            for line in (*_counts(manifest, but=TOLD), *pack.warnings_of(manifest)):
                print(f"  {line}")
            if recipe := dataset.recipe(manifest["split"]):
                for old in pack.outdated(recipe):
                    print(f"  no longer used, of the source as it was before: {old}")


def info(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Print what a dataset is and which splits are prepared; downloads nothing.

    Raises DataError if a pack is damaged (``verify=true`` reads all of it).
    """
    dataset, _, own = _opened(name, overrides, config_dirs, "info")
    if (text := own.get("verify", "false")) not in ("true", "false"):
        raise ConfigError("verify", f"{text!r} is not true or false", "write verify=true")
    verify = text == "true"
    from ganlab.data.packing import pack

    told = pack.info(dataset, verify=verify)
    print(f"{dataset.name}: {_shape(dataset)}")
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


def check(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Look at every file of a dataset's source, and print what is wrong or odd; packs and downloads nothing.

    ``hash=write`` writes a manifest of sha256 sums, ``hash=verify`` compares with it; ``manifest=FILE`` is
    another place for it than beside the source. ``out=FILE`` keeps what was found as JSON. Raises DataError
    if a file is broken, has changed or is missing.
    """
    dataset, splits, own = _opened(name, overrides, config_dirs, "check")
    if (how := own.get("hash", "none")) not in ("write", "verify", "none"):
        raise ConfigError("hash", f"{how!r} is not write or verify", "write hash=write, later hash=verify")
    if how == "none" and "manifest" in own:
        raise ConfigError("manifest", "goes with hash", "write hash=write or hash=verify")
    if splits and "manifest" in own:
        raise ConfigError("manifest", "is one file, for every split", "name the split")
    found: dict[str, Any] = {}
    for split in splits or (dataset.split,):
        found[split] = _check(dataset, split, how, own.get("manifest"))
    if "out" in own:
        write_json(expanded(own["out"]), {s: r.as_json() for s, r in found.items() if r})
        print(f"-> {own['out']}")
    if wrong := [(r.root, r.num_bad, r.files) for r in found.values() if r and r.num_bad]:
        fix = "repair or remove them; dataset.on_bad=skip leaves broken images out"
        raise DataError([Mistake(root, f"{n:,} of {of:,} files are not sound", fix) for root, n, of in wrong])


def _check(dataset: Dataset, split: str, how: str, manifest: str | None) -> Report | None:
    """One split: print what is found, and return it; None for a set that comes with its package."""
    from ganlab.data.packing import pack

    originals = dataset.originals(split)
    if originals is None:
        if how != "none":
            what = f"{dataset.name} {dataset.origin}: no sums are kept of it"
            raise ConfigError("hash", what, "leave it out")
        loaded = dataset.load(split=split)
        print(f"{dataset.name} {split}: {dataset.origin}, and loads")
        _told_loaded(dataset, loaded.manifest)
        return None
    place = None
    if how != "none":
        beside = originals.root.with_name(f"{originals.root.name}-{split}.sha256")
        place = expanded(manifest) if manifest else beside
    from ganlab.data.packing.check import check as check_originals

    report = check_originals(originals, place, write=how == "write")
    for line in _told(report, f"{dataset.name} {split}"):
        print(line)
    if place is not None:
        print(f"  {'written' if how == 'write' else 'compared with'}: {place}")
    if recipe := dataset.recipe(split):
        if recipe.folder.exists():
            pack.verify_pack(recipe.folder)
            print(f"  prepared: {recipe.folder}, verified")
        for old in pack.outdated(recipe):
            print(f"  outdated, of these files as they were before: {old}")
    return report


def _told(report: Report, title: str) -> Iterator[str]:
    """What a check found, line by line: the counts, then each file that is not sound."""
    from ganlab.data.formats.images import NOTES

    kinds = ", ".join(f"{n:,} {kind}" for kind, n in report.kinds.most_common()) or "their sums compared"
    yield f"{title}: {report.files:,} files in {report.root} ({kinds})"
    if report.classes:
        yield f"  classes: {', '.join(f'{c} {n:,}' for c, n in list(report.classes.items())[:SHOWN])}" + (
            f", ... ({len(report.classes):,} in all)" if len(report.classes) > SHOWN else ""
        )
    yield from (f"  empty class: {name}" for name in report.empty)
    yield from (f"  {n:,} {NOTES.get(note, note)}" for note, n in sorted(report.notes.items()))
    for why, (n, such) in sorted(report.passed.items()):
        yield f"  passed over: {n:,} {why}" + (f", such as {such}" if such else "")
    yield from (f"  same content: {' = '.join(map(printable_name, names))}" for names in report.same[:SHOWN])
    if more := len(report.same) - SHOWN > 0 and len(report.same) - SHOWN:
        yield f"  same content: {more:,} more groups"
    yield from (f"  broken: {printable_name(name)}: {reason}" for name, reason in report.bad)
    for what in ("changed", "missing", "new"):
        yield from (f"  {what}: {printable_name(name)}" for name in getattr(report, what))
    if report.damage:
        yield f"  damaged: {report.damage}"


def _shape(dataset: Dataset) -> str:
    """Of a sample, in words."""
    kind, sizes = dataset.shape.kind, list(dataset.shape)
    if kind == "text":
        return f"lines of {sizes[1]} symbols, at most {sizes[0]} different ones"
    if kind == "points":
        return f"points of {sizes[0]} numbers"
    return f"{dataset.resolution}x{dataset.resolution}, {dataset.channels} channels"


def _told_loaded(dataset: Dataset, manifest: Mapping[str, Any]) -> None:
    """What a set that is not packed turned out to be, where it is none of images."""
    if (kind := dataset.shape.kind) == "images":
        return
    print(f"  {_sentence(manifest).replace('images', {'text': 'lines'}.get(kind, kind), 1)}")
    for line in _counts(manifest):
        print(f"  {line}")
    if found := manifest.get("vocabulary"):
        print(f"  {len(found)} symbols, the unknown one first: {''.join(found[: SHOWN * 5])!r}")


def _absent(dataset: Dataset, split: str) -> str:
    if dataset.pack_folder(split) is None:
        return dataset.origin
    return f"not prepared; 'ganlab data prepare {dataset.name} split={split}'"


def _counts(manifest: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """What happened to images on the way, in a line, if anything did, without the counts ``but``."""
    from ganlab.data.formats.images import NOTES

    found = {what: number for what, number in (manifest.get("counts") or {}).items() if what not in but}
    told = [f"{number:,} {NOTES.get(what, what.replace('_', ' '))}" for what, number in found.items()]
    return ["; ".join(told)] if told else []


def _sentence(manifest: Mapping[str, Any]) -> str:
    parts = [f"{manifest['count']:,} images" if "count" in manifest else ""]
    if "shape" in manifest:
        parts.append("x".join(map(str, manifest["shape"])))
    if (manifest.get("transform") or {}).get("stretch"):
        parts.append("contrast stretched")
    for key in ("fingerprint", "sha256"):
        if key in manifest:
            parts.append(f"sha256 {str(manifest[key])[:12]}")
            break
    return ", ".join(p for p in parts if p)


def _opened(
    name: str, overrides: Sequence[str], config_dirs: Sequence[str], command: str
) -> tuple[Dataset, Sequence[str] | None, dict[str, str]]:
    """The dataset, the splits asked for (None: the training one), and the command's own keys.

    ``verify`` is a key of ``info``; elsewhere it is the dataset's own, as ``dataset.verify`` always is.
    """
    options = names(config_dirs)
    if name not in options:
        raise ConfigError("dataset", f"there is no {name!r}", suggest(name, options))
    words, splits, own = [f"dataset={name}"], None, dict[str, str]()
    for word in overrides:
        full, equals, value = word.lstrip("+").partition("=")
        key = full.removeprefix("dataset.")
        if full in OWN[command]:
            own[full] = value
        elif (key, value) == ("split", "all"):
            splits = ["all"]
        else:
            words.append(f"dataset.{key}{equals}{value}")
    from ganlab.config import compose

    composed = compose.compose(words, config_dirs)
    dataset: Dataset = compose.build(composed.tree["dataset"], where="dataset")
    return dataset, dataset.splits() if splits else None, own
