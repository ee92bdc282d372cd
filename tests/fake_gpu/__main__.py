"""ganlab's command line on the fake device:  python -m fake_gpu train device=cuda ...  (PYTHONPATH=tests).

``FAKE_REPORT`` names a file to which each process, those of a sweep too, appends a line of JSON at its end.
``python -m fake_gpu many`` reads commands as JSON, [{words, gpus, memory_gb, stop}, ...], and plays each in a
fork of a process that has imported all and not touched CUDA; it prints [[exit code, what was said], ...].
``stop``: a file; as soon as it has content, the command gets SIGTERM.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from fake_gpu import device
from ganlab.cli import main
from ganlab.sweeps import process
from ganlab.training import trainer  # noqa: F401 - slow, and once is enough

ME = [sys.executable, "-m", "fake_gpu"]
process.COMMAND = [*ME, "train"]


def play(words: list[str]) -> int:
    """The command's exit code."""
    device.patch()
    try:
        return main.main(words)
    finally:
        if path := os.environ.get("FAKE_REPORT"):
            report = {"command": words[0], "devices": device.touched(), "complaints": device.complaints()}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(report) + "\n")


def forked(words: list[str], gpus: int = 1, memory_gb: float = 0.0, stop: str = "") -> list[Any]:
    """Exit code and output of a command in a child."""
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                os.environ["FAKE_GPUS"] = str(gpus)
                if memory_gb:
                    device.memory(memory_gb)
                if stop:
                    threading.Thread(target=stop_once, args=(Path(stop),), daemon=True).start()
                code = play(words)
                sys.stdout.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return [code, said.read()]


def stop_once(path: Path) -> None:
    """SIGTERM to this process once there is something in a file."""
    while not (path.exists() and path.stat().st_size):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


if sys.argv[1:] == ["many"]:
    print(json.dumps([forked(**command) for command in json.load(sys.stdin)]))
else:
    sys.exit(play(sys.argv[1:]))
