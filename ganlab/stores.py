"""What ``ganlab doctor`` finds of data sets, prepared files and weights. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ganlab.paths import PACKAGE, cache_dir

State = Literal["ok", "absent", "broken"]  # absent: works without, or can be had


class Finding(NamedTuple):
    """One line: what was looked at, in which section, how it is, and what to do about it."""

    section: str
    name: str
    state: State
    text: str
    fix: str = ""


def datasets() -> Iterator[Finding]:
    from ganlab.config_files import find, groups, read
    from ganlab.data.download import BY_HAND, KNOWN, by_hand_place
    from ganlab.targets import resolve

    options, known = groups([]).get("dataset", []), {r.dataset for r in KNOWN}
    for option in options:
        if option in BY_HAND:
            place, (why, what) = by_hand_place(option), BY_HAND[option]
            if place.is_dir():
                yield Finding("datasets", option, "ok", str(place))
            else:
                yield Finding(
                    "datasets", option, "absent", why, f"put {what} in {place}, or set dataset.path"
                )
        elif option not in known and (file := find(f"dataset/{option}", [])):
            kind: Any = resolve(read(file)[0]["_target_"])
            yield Finding("datasets", option, "ok", kind.comes)
    for dataset in dict.fromkeys(r.dataset for r in KNOWN):
        remotes = [r for r in KNOWN if r.dataset == dataset]
        there = [r for r in remotes if r.place.is_file()]
        whole = [r for r in there if r.place.stat().st_size == r.size]
        if remotes[0].part and 0 < len(whole) < len(remotes):
            names = ", ".join(r.file for r in remotes if r not in whole)
            fix = f"'ganlab data prepare {dataset} split=all'"
            yield Finding("datasets", dataset, "absent", f"not downloaded: {names}", fix)
        elif whole:
            yield Finding("datasets", dataset, "ok", f"downloaded, {whole[0].place}")
        elif there:
            size = there[0].place.stat().st_size
            text = f"{there[0].place} has {size:,} bytes, not {there[0].size:,}"
            yield Finding("datasets", dataset, "absent", text, "remove it; it is downloaded again")
        else:
            r = remotes[0]
            if r.part:
                r = replace(r, file=f"{r.file} and the like", size=sum(other.size for other in remotes))
            text = f"not downloaded: {r.file}, {r.size / 1e6:,.0f} MB, sha256 {r.sha256}"
            fix = f"'ganlab data prepare {dataset}', or get {r.url} elsewhere and put it at {r.place}"
            yield Finding("datasets", dataset, "absent", text, fix)


def prepared() -> Iterator[Finding]:
    folder, number = cache_dir() / "datasets", 0
    for manifest in sorted(folder.glob("**/manifest.json")) if folder.is_dir() else []:
        if any(part.startswith(".") for part in manifest.relative_to(folder).parts):
            continue
        number += 1
        where = str(manifest.parent.relative_to(folder))
        try:
            told = json.loads(manifest.read_text("utf-8"))
            shape = [int(n) for n in told["shape"]]
            size = (manifest.parent / "images.u8").stat().st_size
            if size != _product(shape):
                raise ValueError(f"images.u8 has {size:,} bytes")
            pixels = "x".join(map(str, shape[1:]))
            pixels += ", contrast stretched" if (told.get("transform") or {}).get("stretch") else ""
            text = (
                f"{told['name']} {told['split']}: {shape[0]:,} images {pixels}, sha256 {told['fingerprint']}"
            )
            yield Finding("prepared", where, "ok", text)
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = f"remove {manifest.parent}; it is packed again"
            yield Finding("prepared", where, "absent", f"damaged: {error}", fix)
    for partial in sorted(folder.glob(".tmp-*-part")) if folder.is_dir() else []:
        size = sum(file.stat().st_size for file in partial.glob("images.u8"))
        name = partial.name.removeprefix(".tmp-").removesuffix("-part")
        fix = f"'ganlab data prepare' goes on with it; if it is not wanted, remove {partial}"
        yield Finding("prepared", name, "absent", f"begun, {size / 1e6:,.0f} MB", fix)
        number += 1
    if not number:
        yield Finding(
            "prepared", "none", "absent", f"nothing yet in {folder}", "training prepares what it needs"
        )


def _product(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def weights() -> Iterator[Finding]:
    from ganlab.download import sha256
    from ganlab.extractors import cifar, inception

    if cifar.WEIGHTS.is_file():
        yield Finding("weights", "cifar", "ok", f"built in, {cifar.WEIGHTS.stat().st_size / 1e6:.1f} MB")
    else:
        fix = "reinstall ganlab, or run scripts/train_feature_net.py"
        yield Finding("weights", "cifar", "broken", f"{cifar.WEIGHTS.relative_to(PACKAGE)} is missing", fix)
    for place in inception.places():
        if place.is_file():
            sum_ = sha256(place)
            right = sum_ == inception.SHA256
            text = f"{place}, sha256 {sum_[:16]}" + ("" if right else f", not {inception.SHA256[:16]}...")
            fix = "" if right else "remove it; it is downloaded again"
            yield Finding("weights", "inception", "ok" if right else "absent", text, fix)
            return
    text = f"missing: {inception.FILE}, {inception.SIZE_MB} MB, sha256 {inception.SHA256[:8]}..."
    folder = inception.places()[-1].parent
    fix = f"downloaded at first use; or put the file into {folder}, or metric.weights=PATH"
    yield Finding("weights", "inception", "absent", text, f"{fix}; offline: metric.extractor=cifar")
