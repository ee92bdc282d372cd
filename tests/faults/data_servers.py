"""A server on this machine that answers as badly as a case wants."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CONTENT = bytes(range(256)) * 2000


class Server(http.server.ThreadingHTTPServer):
    """``faults``: one for each request, then it serves well. ``asked``: the first byte that each wanted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.asked: list[int] = []
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that is killed is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else ""
            self.server.asked.append(start)
        word, _, rest = fault.partition(" ")
        if word.isdecimal():
            return self.send_error(int(word))
        if word == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            return self.end_headers()
        body = {"html": b"<html>sign in</html>", "other": bytes(len(CONTENT)), "longer": CONTENT + b"x"}.get(
            word, CONTENT
        )
        ranged = start and word not in ("whole", "html")
        self.send_response(206 if ranged else 200)
        if word != "endless":
            self.send_header("Content-Length", str(len(body) - (start if ranged else 0)))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        body = body[start:] if ranged else body
        if word == "slow":  # a second in all
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                self.server.over.wait(0.1)
            return None
        while word == "endless" and not self.server.over.is_set():
            self.wfile.write(body)
        self.wfile.write(body[: len(body) // 2] if word == "cut" else body)
        return None

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(*faults: str) -> Iterator[Server]:
    server = Server()
    server.faults += faults
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
