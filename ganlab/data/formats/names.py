"""Resolve the names in an archive as unpacking would: follow links, keep the last of equal names."""

from __future__ import annotations

import posixpath
from array import array
from collections import defaultdict
from typing import Any

import numpy as np

HOPS = 40  # links on the way to a file, as in Linux


def clean(name: str) -> str | None:
    """Normalize a name; None if it contains ".." or is absolute. "" is the archive's root."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or name.startswith("/") or "\0" in name else "/".join(parts)


def target_of(link: str, text: str) -> str | None:
    """Resolve a symbolic link's target to a name; None if outside the archive."""
    if text.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(link), text.replace("\\", "/")))
    return None if path == ".." or path.startswith("../") else "" if path == "." else path


class Names:
    """Names of an archive: add every cleaned name in order, then ``close``. Keeps eight bytes per file.

    repeated: hash of a name -> count, for names that occur more than once. broken_links, link_loops: links
    to nothing, and to a parent folder. folders: with links resolved.
    """

    def __init__(self) -> None:
        self.links: dict[str, str | None] = {}
        self.repeated: dict[int, int] = {}
        self.broken_links: list[str] = []
        self.link_loops: list[str] = []
        self.folders: set[str] = {""}
        self._hashes = array("q")
        self._places: dict[str, list[str]] = {}
        self._aliases: dict[str, list[str]] = {}

    def folder(self, name: str) -> None:
        while name not in self.folders:
            self.links.pop(name, None)
            self.folders.add(name)
            name = posixpath.dirname(name)

    def file(self, name: str, link: str | None = None, is_link: bool = False) -> None:
        """Add a file or link. link: target name, relative to the archive's root; None if outside."""
        self.links.pop(name, None)
        if is_link and name not in self.folders:
            self.links[name] = link
        self._hashes.append(hash(name))
        self.folder(posixpath.dirname(name))

    def close(self, most: int) -> bool:
        """Resolve all links. Returns False if they expand to more than ``most`` folders."""
        hashes, counts = np.unique(np.frombuffer(self._hashes, np.int64), return_counts=True)
        self.repeated = dict(zip(hashes[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True))
        self._hashes = array("q")
        whole = not self.links or self._spread(hashes, most)
        self.folders.discard("")
        return whole

    def visible_names(self, name: str) -> list[str]:
        """All paths of a file: its own, those through links to its folder, those of links to it."""
        if not self.links:
            return [name]
        folder, base = posixpath.split(name)
        names = [posixpath.join(place, base) for place in self._places.get(folder, [])]
        return names + self._aliases.get(name, [])

    def _spread(self, hashes: Any, most: int) -> bool:
        inside: dict[str, list[str]] = defaultdict(list)
        for folder in sorted(self.folders - {""}):
            inside[posixpath.dirname(folder)].append(folder)
        for link in sorted(self.links):
            inside[posixpath.dirname(link)].append(link)
        ends: dict[str, str | None] = {}
        places: dict[str, list[str]] = defaultdict(list)
        aliases: dict[str, list[str]] = defaultdict(list)
        work: list[tuple[str, str, Any]] = [("", "", None)]
        while work and (most := most - 1) > 0:
            place, folder, above = work.pop()
            above = (folder, above)
            places[folder].append(place)
            for path in inside[folder]:
                name, end = posixpath.join(place, posixpath.basename(path)), self._end(path, ends)
                if end is None or (end not in self.folders and not _holds(hashes, end)):
                    self.broken_links.append(name)
                elif end not in self.folders:
                    aliases[end].append(name)
                elif path in self.links and is_above(end, above):
                    self.link_loops.append(name)
                else:
                    work.append((name, end, above))
        self.folders = {place for same in places.values() for place in same}
        self._places, self._aliases = places, aliases
        return not work

    def _end(self, path: str, ends: dict[str, str | None], hops: int = 0) -> str | None:
        """Resolve every link in a path; None for a loop or a target outside the archive."""
        if path not in self.links:
            return path
        if path not in ends:
            ends[path] = None  # what comes back here goes round
            target, end = self.links[path], ""
            for part in target.split("/") if target else ():
                after = self._end(posixpath.join(end, part), ends, hops + 1) if hops < HOPS else None
                if after is None:
                    return None
                end = after
            ends[path] = None if target is None else end
        return ends[path]


def _holds(hashes: Any, name: str) -> bool:
    at = int(np.searchsorted(hashes, hash(name)))
    return at < len(hashes) and int(hashes[at]) == hash(name)


def is_above(folder: Any, above: Any) -> bool:
    """Whether ``folder`` is in the linked list (folder, its parents) ``above``."""
    while above is not None:
        here, above = above
        if here == folder:
            return True
    return False
