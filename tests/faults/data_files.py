"""Files that come and go while they are read, and what lies in a folder and is no file."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ganlab.data.packing import decoding, stream

from .base import Figure, Forked, one_line, tiny
from .data_common import cases, command, names, photo, photos, tree
from .data_sets import VAL, WNID, imagenet_val

Check = Callable[[Path], None]


def beside(plant: Callable[[Path], object], told: str = "") -> Check:
    """Something that is no image's file lies among the images: they are packed, it is named by the check."""

    def check(place: Path) -> None:
        root = tree(place / "set", photos(2))
        kept = plant(root)
        done = command(place, "data", "prepare", "folder", f"path={root}", "resolution=8")
        assert (done.code, "4 images" in done.out) == (0, True), done.out + done.err
        if told:
            done = command(place, "data", "check", "folder", f"path={root}", "resolution=8")
            assert f"ignored: {told}" in done.out, done.out
        del kept

    return check


def astray(plant: Callable[[Path], object], where: str) -> Check:
    """A link that leads nowhere among the images: one line names it."""

    def check(place: Path) -> None:
        root = tree(place / "set", photos(2))
        plant(root)
        done = command(place, "data", "prepare", "folder", f"path={root}", "resolution=8")
        one_line(done, 3, f"set/{where}: .*broken link")

    return check


def unix(root: Path) -> object:
    found = socket.socket(socket.AF_UNIX)
    found.bind(os.path.relpath(root / "cat" / "s.jpg"))
    return found


def piped(name: str, files: dict[str, bytes], pipe: str, where: str, *words: str) -> Check:
    """A pipe in the place of a file that is read: one line at once. In its own process: it could hang."""

    def check(place: Path) -> None:
        root = tree(place / "set", files)
        (root / pipe).parent.mkdir(parents=True, exist_ok=True)
        (root / pipe).unlink(missing_ok=True)
        os.mkfifo(root / pipe)
        given = [word.replace("{}", str(root)) for word in words] or [f"path={root}"]
        if not any(word.startswith("path=") for word in given):
            given.append(f"path={root}")
        env = {"GANLAB_CACHE": str(place / "cache")}
        done = Forked("data", "prepare", name, *given, cwd=place, env=env).wait(30)
        one_line(done, 3, where)

    return check


def swapped(change: Callable[[Path], object], where: str, code: int = 3) -> Check:
    """A file changes after its folder was read and before it is."""

    def check(place: Path) -> None:
        root = tree(place / "set", photos(2))
        inner = decoding.chunks

        def late(*args: Any) -> Any:
            for part in inner(*args):
                change(root / "dog" / "1.jpg")
                yield part

        decoding.chunks = late
        try:
            done = command(place, "data", "prepare", "folder", f"path={root}", "resolution=8")
        finally:
            decoding.chunks = inner
        one_line(done, code, where)

    return check


def becomes_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unreadable(what: str) -> Check:
    """A file or folder that this user may not read; root may, so a process of another user tries."""

    def check(place: Path) -> None:
        root = tree(place / "set", photos(2))
        (place / "cache").mkdir(mode=0o777)
        (place / "cache").chmod(0o777)
        for folder in (place, *list(place.parents)[:-1]):
            if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 1:
                folder.chmod(folder.stat().st_mode | 0o011)
        (root / what).chmod(0)

        def nobody() -> None:
            stream.decode_all = partial(decoding.decode_all, workers=0)
            other = tree(
                place / "other", photos(2)
            )  # all imports: Python itself may lie where root alone reads
            done = command(place / "warm", "data", "prepare", "folder", f"path={other}")
            assert done.code == 0, done.err
            if os.getuid() == 0:
                os.setresuid(65534, 65534, 65534)

        env = {"GANLAB_CACHE": str(place / "cache")}
        words = ("data", "prepare", "folder", f"path={root}", "resolution=8")
        done = Forked(*words, cwd=place, env=env, before=nobody).wait(60)
        (root / what).chmod(0o755)
        one_line(done, 3, names(what))

    return check


def pack_gone(place: Path) -> None:
    """The pack is deleted while a run trains from its map: the run goes on to its end."""
    root = tree(place / "set", photos(8))

    def before() -> None:
        from ganlab.training import trainer

        inner = trainer.Run.turns

        def turns(self: Any) -> Any:
            for number, turn in enumerate(inner(self)):
                if number == 2:
                    shutil.rmtree(place / "cache" / "datasets")
                yield turn

        trainer.Run.turns = turns  # type: ignore[method-assign]

    words = tiny("dataset=folder", f"dataset.path={root}", "dataset.resolution=16",
                 "data_memory_gb=0")  # fmt: skip
    done = Forked(*words, cwd=place, env={"GANLAB_CACHE": str(place / "cache")}, before=before).wait(120)
    assert done.code == 0, done.err
    assert not (place / "cache" / "datasets").exists()


IMAGENET = {f"train/{WNID}/{i}.JPEG": photo(i) for i in range(3)}
FILES: dict[str, Check] = {
    "a pipe among images": beside(lambda root: os.mkfifo(root / "cat" / "p.jpg"), "1 special file"),
    "a socket among images": beside(unix, "1 special file"),
    "a link to its own folder": beside(lambda root: (root / "cat" / "loop").symlink_to(root), "1 link"),
    "two links in a circle": astray(
        lambda root: [(root / "a").symlink_to("b"), (root / "b").symlink_to("a")], "[ab]"
    ),
    "a link to a device": astray(
        lambda root: (root / "cat" / "z.jpg").symlink_to("/dev/zero"), r"cat/z\.jpg"
    ),
    "a link to a class that is gone": astray(lambda root: (root / "dog2").symlink_to("gone"), "dog2"),
    "a hidden folder": beside(lambda root: tree(root / ".thumbs", {"x.jpg": b"x"}), "1 hidden"),
    "a pipe as the set": piped("folder", {}, "pipe", "neither a file nor a folder", "path={}/pipe"),
    "a pipe as LSUN's database": piped("lsun", {}, "bedroom_train_lmdb/data.mdb", "data.mdb"),
    "a pipe as ImageNet's list of classes": piped(
        "imagenet", IMAGENET, "some.txt", "some.txt cannot be read", "classes={}/some.txt"
    ),
    "a pipe as ImageNet's development kit": piped(
        "imagenet", imagenet_val(None), "ILSVRC2012_devkit_t12.tar.gz", "not a regular file|devkit", *VAL
    ),
    "a file becomes a pipe": swapped(becomes_pipe, r"1\.jpg: cannot be read .*not a regular file"),
    "a file vanishes": swapped(lambda path: path.unlink(missing_ok=True), r"1\.jpg: cannot be read"),
    "a file is cut": swapped(lambda path: os.truncate(path, 50), r"1\.jpg: 50 bytes, expected \d+"),
    "a folder vanishes": swapped(
        lambda path: shutil.rmtree(path.parent, ignore_errors=True), r"\.jpg: cannot be read"
    ),
    "a file that may not be read": unreadable("cat/1.jpg"),
    "a folder that may not be read": unreadable("cat"),
    "the pack, while a run reads it": pack_gone,
}  # fmt: skip


FIGURES = [
    Figure(
        "come-and-go", "Files that vanish, pipes, sockets, loops, no permission -> named, no hang", (47,), 16,
        cases(FILES),
    ),
]  # fmt: skip
