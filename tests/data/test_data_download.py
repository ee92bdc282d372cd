"""Downloads against a faulty server: the right file under its name, or one line with what to do by hand."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from ganlab.data.packing.download import Remote, fetch
from ganlab.errors import EnvError
from ganlab.system import download

CONTENT = bytes(range(256)) * 2000


class Handler(http.server.BaseHTTPRequestHandler):
    faults: ClassVar[list[str]] = []  # one per request; none left: serve well
    requests: ClassVar[list[str]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        fault = type(self).faults.pop(0) if type(self).faults else ""
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        type(self).requests.append(f"{start}{' ' + fault if fault else ''}")
        if fault == "silent":
            type(self).over.wait(10)
            return
        if fault in ("404", "500"):
            self.send_error(int(fault))
            return
        if fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault[3:])
            self.end_headers()
            return
        body = {"html": b"<html>moved</html>", "other": bytes(len(CONTENT)), "longer": CONTENT + b"x"}.get(
            fault, CONTENT
        )
        ranged = start and fault != "no ranges"
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(body) - (start if ranged else 0)))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        rest = body[start:] if ranged else body
        self.wfile.write(rest[: len(rest) // 2] if fault == "cut" else rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GANLAB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.01)))
    Handler.faults, Handler.requests = [], []
    Handler.over.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/toy.tar.gz"
    sums = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
    yield Remote("toy", "toy.tar.gz", url, len(CONTENT), *sums)
    Handler.over.set()
    server.shutdown()
    server.server_close()


def test_a_good_download(remote: Remote) -> None:
    assert fetch(remote) == remote.path
    assert remote.path.read_bytes() == CONTENT
    fetch(remote)
    assert Handler.requests == ["0"]  # once is enough


def test_a_cut_connection_is_continued(remote: Remote) -> None:
    Handler.faults = ["cut", "cut"]
    assert fetch(remote).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert Handler.requests == ["0 cut", f"{half} cut", str(half + half // 2)]


def test_a_later_process_continues_too(remote: Remote) -> None:
    Handler.faults = ["cut", "404"]
    with pytest.raises(EnvError):
        fetch(remote)
    assert not remote.path.exists()
    Handler.faults = ["no ranges"]
    assert fetch(remote).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (["404"], "404"),
        (["500"] * 9, "500"),
        (["html"], "the server sends 18 bytes, 512,000 expected"),
        (["longer"], "the server sends 512,001 bytes, 512,000 expected"),
        (["other"] * 9, "sha256"),
    ],
)
def test_faults_end_in_one_line(remote: Remote, faults: list[str], says: str) -> None:
    Handler.faults = faults
    with pytest.raises(EnvError) as caught:
        fetch(remote)
    line = str(caught.value)
    assert line.startswith("toy.tar.gz: download failed (")
    assert says in line
    assert f") from {remote.url}; put it in {remote.path.parent} (512,000 bytes, md5 " in line
    assert not remote.path.exists()
    Handler.faults = []
    assert fetch(remote).read_bytes() == CONTENT  # nothing wrong is left behind


def test_a_silent_server_is_given_up(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    Handler.faults = ["silent"] * 3
    with pytest.raises(EnvError, match=r"download failed \(.*timed out"):
        fetch(remote)
    Handler.over.set()
    assert fetch(remote).read_bytes() == CONTENT


def test_another_host_may_send_it_if_the_sum_is_right(remote: Remote) -> None:
    Handler.faults = [f"to {remote.url.replace('127.0.0.1', 'localhost')}?elsewhere"]
    assert fetch(remote).read_bytes() == CONTENT
    remote.path.unlink()
    Handler.faults = [f"to {remote.url}?elsewhere", "other", f"to {remote.url}?elsewhere", "other"]
    with pytest.raises(EnvError, match="the content has sha256"):
        fetch(remote)


@pytest.mark.parametrize(
    ("place", "says"),
    [("ftp://127.0.0.1/x", r"redirects to ftp://127.*, which is not https or http"),
     ("file:///etc/passwd", "the server responded 302"), ("/again", "the server responded 302")],
)  # fmt: skip
def test_nothing_but_http_is_followed(remote: Remote, place: str, says: str) -> None:
    Handler.faults = [f"to {place}"] * 9
    with pytest.raises(EnvError, match=says):
        fetch(remote)
    assert len(Handler.requests) == (5 if place == "/again" else 1)  # not tried again


def test_https_is_not_left() -> None:
    """By urllib's own words: a redirection out of https never becomes a request."""
    request = urllib.request.Request("https://a.example/f")
    follow = download._Redirects().redirect_request
    with pytest.raises(download.NotFetched, match="which is not https"):
        follow(request, None, 302, "Found", {}, "http://a.example/f")
    request_to_b = follow(request, None, 302, "Found", {}, "https://b.example/f")
    assert request_to_b is not None
    assert request_to_b.full_url == "https://b.example/f"


def test_more_than_there_is_starts_anew(remote: Remote) -> None:
    remote.path.parent.mkdir(parents=True)
    remote.path.with_name("toy.tar.gz.part").write_bytes(CONTENT + b"and more")
    assert fetch(remote).read_bytes() == CONTENT
    assert Handler.requests == ["0"]


def test_a_wrong_file_by_hand(remote: Remote) -> None:
    remote.path.parent.mkdir(parents=True)
    remote.path.write_bytes(b"half")
    with pytest.raises(EnvError, match=r"4 bytes, expected 512,000; remove it"):
        fetch(remote)


def test_one_of_many_downloads(remote: Remote) -> None:
    threads = [threading.Thread(target=fetch, args=(remote,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Handler.requests == ["0"]
