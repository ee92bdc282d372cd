"""Downloads from faulty servers and into faulty places: the right file, or one line and no file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import resource
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

from ganlab.data.packing.download import Remote, fetch
from ganlab.errors import GanlabError
from ganlab.system import download
from ganlab.system.failures import print_errors

from .base import LINE, Figure
from .data_common import cases, names
from .data_servers import CONTENT, served

MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


def remote(url: str) -> Remote:
    return Remote("toy", "toy.tar.gz", url, len(CONTENT), MD5, SHA256)


@contextlib.contextmanager
def online(place: Path, quick: float = 0.3) -> Iterator[None]:
    """The cache in ``place``, and a patience of ``quick`` seconds in the place of 30."""
    own = {"GANLAB_CACHE": str(place / "cache"), "GANLAB_OFFLINE": "0", "no_proxy": "*"}
    wait = time.sleep
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, own))
        stack.enter_context(patch.object(download, "TIMEOUT_S", max(quick, 0.3)))
        stack.enter_context(patch.object(download.time, "sleep", lambda s: wait(min(s, 0.01))))
        yield


def error_of(what: Callable[[], object]) -> GanlabError | download.NotFetched:
    """What it raises."""
    try:
        what()
    except (GanlabError, download.NotFetched) as error:
        return error
    raise AssertionError("it went through")


def fails(file: Remote, says: str, fix: str = r"put it in .*downloads .*md5 \w+|GANLAB_CACHE") -> None:
    """It ends in one line, code 5, and there is no file under its name."""
    error, said = error_of(lambda: fetch(file)), io.StringIO()
    assert isinstance(error, GanlabError)
    with contextlib.redirect_stderr(said):
        assert print_errors(error) == 5
    line, text = said.getvalue(), str(error)
    assert line.count("\n") == 1, line
    assert len(line) <= LINE + 1, line
    assert re.search(says, text), f"{says!r} is not in {text!r}"
    assert re.search(fix, text), f"{fix!r} is not in {text!r}"
    assert not file.path.is_file() or file.path.read_bytes() != CONTENT


def ok(file: Remote) -> None:
    assert fetch(file).read_bytes() == CONTENT
    left = sorted(p.name for p in file.path.parent.iterdir() if not p.name.endswith(".lock"))
    assert left == ["toy.tar.gz"], left


def broken(*faults: str, says: str, then: int | None = 0) -> Callable[[Path], None]:
    """One line; then, of a server that is well again, the file from byte ``then`` on (None: whichever)."""

    def check(place: Path) -> None:
        with online(place), served(*faults) as server:
            file = remote(f"{server.url}/f")
            fails(file, says)
            server.faults.clear()
            server.asked.clear()
            ok(file)
            assert then is None or server.asked[0] == then, f"asked for {server.asked}"

    return check


def endured(*faults: str, asked: list[int] | None = None, part: bytes = b"") -> Callable[[Path], None]:
    """The file is had all the same, by these requests."""

    def check(place: Path) -> None:
        with online(place), served(*faults) as server:
            file = remote(f"{server.url}/f")
            other = f"http://localhost:{server.server_port}"
            server.faults = [fault.replace("<other>", other) for fault in server.faults]
            if part:
                file.path.parent.mkdir(parents=True)
                file.path.with_name("toy.tar.gz.part").write_bytes(part)
            ok(file)
            assert asked is None or server.asked == asked, f"asked for {server.asked}"

    return check


def redirected(place: Path) -> None:
    """The bytes of another host are judged by their sum."""
    with online(place), served() as server:
        to = f"to http://localhost:{server.server_port}/g"
        server.faults = [to, "other", to, "other"]
        fails(remote(f"{server.url}/f"), "the content has sha256 [0-9a-f]{16}..., expected")


def out_of_https(place: Path) -> None:
    request = urllib.request.Request("https://a.example/f")
    follow = download._Redirects().redirect_request
    error = error_of(lambda: follow(request, None, 302, "Found", {}, "http://a.example/f"))
    assert "which is not https" in str(error)


def nowhere(url: str, says: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        with online(place, 5):
            fails(remote(url), says)

    return check


def offline(place: Path) -> None:
    with online(place), served() as server, patch.dict(os.environ, {"GANLAB_OFFLINE": "1"}):
        fails(
            remote(f"{server.url}/f"),
            "not found, and GANLAB_OFFLINE forbids http",
            names(str(place / "cache")),
        )
        assert server.asked == []
        file = remote(f"{server.url}/f")
        file.path.parent.mkdir(parents=True)
        file.path.write_bytes(CONTENT)
        ok(file)


def eight(killed: bool) -> Callable[[Path], None]:
    """Eight processes at once: one asks, seven wait. ``killed``: the first of them dies on the way."""

    def check(place: Path) -> None:
        with online(place, 5), served("slow", "slow" if killed else "") as server:
            file = remote(f"{server.url}/f")
            pids = []
            for _ in range(8):
                if (pid := os.fork()) == 0:
                    code = 1
                    try:
                        code = int(fetch(file).read_bytes() != CONTENT)
                    finally:
                        os._exit(code)
                pids.append(pid)
            if killed:
                lock = file.path.with_name("toy.tar.gz.lock")
                deadline = time.monotonic() + 30
                while not server.asked or not lock.read_text().partition("@")[0].strip():
                    assert time.monotonic() < deadline
                owner = int(lock.read_text().partition("@")[0])
                os.kill(owner, signal.SIGKILL)
            codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
            assert codes == ([-9] if killed else [0]) + [0] * 7, codes
            assert len(server.asked) == 1 + killed, f"asked {len(server.asked)} times"
            ok(file)

    return check


def in_the_way(place: Path) -> None:
    (place / "cache").write_text("a file")
    with online(place), served() as server:
        fails(remote(f"{server.url}/f"), "can't be written|cannot be written|Not a directory", "")
        assert server.asked == []


def no_room(place: Path) -> None:
    with (
        online(place),
        served() as server,
        patch("ganlab.data.formats.files.free_bytes", lambda folder: 1000),
    ):
        fails(remote(f"{server.url}/f"), "0.5 MB needed")
        assert server.asked == []


def full_midway(place: Path) -> None:
    """The disk is full after 100 kB; with room again the rest alone is fetched."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with online(place), served() as server:
        file = remote(f"{server.url}/f")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            fails(file, names(os.strerror(errno.EFBIG)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, old)
        server.asked.clear()
        ok(file)
        assert len(server.asked) == 1
        assert server.asked[0] <= 100_000


def planted(place: Path) -> None:
    """A link that someone left where the bytes go is not written through."""
    (place / "victim").write_text("precious")
    with online(place), served() as server:
        file = remote(f"{server.url}/f")
        file.path.parent.mkdir(parents=True)
        file.path.with_name("toy.tar.gz.part").symlink_to(place / "victim")
        fails(file, "can't be written")
    assert (place / "victim").read_text() == "precious"


def by_hand(place: Path) -> None:
    with online(place), served() as server:
        file = remote(f"{server.url}/f")
        file.path.parent.mkdir(parents=True)
        file.path.write_bytes(b"half")
        fails(file, "4 bytes, expected 512,000", "remove it")


def weights(where: str) -> Callable[[Path], None]:
    """Inception's weights with another sum: refused with both, and torch never sees them."""

    def check(place: Path) -> None:
        import torch

        from ganlab.extractors import inception

        seen: list[object] = []
        with (
            online(place), served("other", "other") as server,
            patch.object(inception, "url", lambda: f"{server.url}/w"),
            patch.object(inception, "SIZE", len(CONTENT)),
            patch.object(torch.hub, "get_dir", lambda: str(place / "hub")),
            patch.object(torch, "load", lambda *a, **k: seen.append(a)),
        ):  # fmt: skip
            hub, ours = inception.places()
            path = {"hub": hub, "cache": ours, "own": place / "w.pth"}.get(where)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(CONTENT)
            own = str(path) if where == "own" else None
            error = error_of(lambda: inception.Inception(weights=own).check())
            assert getattr(error, "code", 0) == 5
            both = f"sha256 {SHA256[:16]}..., expected {inception.SHA256[:16]}..."
            assert not path or both in str(error), str(error)
        assert not seen, "torch opened it"

    return check


HALF = len(CONTENT) // 2
CASES: dict[str, Callable[[Path], None]] = {
    "404": broken("404", says="the server responded 404"),
    "500, again and again": broken("500", "500", "500", says="the server responded 500"),
    "503 twice, then the file": endured("503", "503", asked=[0, 0, 0]),
    "an HTML page in its place": broken("html", says="20 bytes, 512,000 expected"),
    "an HTML page after half of it": broken("cut", "html", says="20 bytes, ", then=HALF),
    "cut at 50 %": endured("cut", asked=[0, HALF]),
    "cut thrice, continued by the next try": broken(
        "cut", "cut", "cut", says="connection broke", then=448_000
    ),
    "wrong content": broken("other", "other", says="the content has sha256"),
    "longer": broken("longer", says="512,001 bytes, "),
    "endless": broken("endless", says="bytes, 512,000 expected", then=None),
    "no ranges after a cut": endured("cut", "whole", asked=[0, HALF]),
    "the rest of another file": endured(part=b"x" * 1000, asked=[1000, 0]),
    "more than the file": endured(part=CONTENT + b"x", asked=[0]),
    "all of it came before": endured(part=CONTENT),
    "another host sends it": endured("to <other>/g", asked=[0, 0]),
    "another host sends something else": redirected,
    "out of https": out_of_https,
    "to ftp": broken("to ftp://127.0.0.1/x", says="which is not https or http"),
    "to a file": broken("to file:///etc/passwd", says="the server responded 302"),
    "round in a circle": broken(*["to /f"] * 20, says="the server responded 302"),
    "no server": nowhere("http://127.0.0.1:9/f", "refused"),
    "no such host": nowhere("http://ganlab.invalid/f", "download failed"),
    "an offline node": offline,
    "eight at once": eight(False),
    "eight at once, the first is killed": eight(True),
    "a cache that cannot be made": in_the_way,
    "no room from the start": no_room,
    "a disk that fills": full_midway,
    "a planted link": planted,
    "half a file put there by hand": by_hand,
    "Inception: torch hub's file is another": weights("hub"),
    "Inception: the cache's file is another": weights("cache"),
    "Inception: one's own file is another": weights("own"),
    "Inception: the server's file is another": weights("server"),
}


FIGURES = [
    Figure("downloads", "Download faults -> the right file, or one line", (48, 54), 24, cases(CASES)),
]  # fmt: skip
