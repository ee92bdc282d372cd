"""ganlab's command line on the fake device:  python -m fake_gpu train device=cuda ...  (PYTHONPATH=tests).

``FAKE_REPORT`` names a file to which each process, those of a sweep too, appends a line of JSON at its end.
"""

import json
import os
import sys

from fake_gpu import device
from ganlab.cli import main
from ganlab.sweeps import process

ME = [sys.executable, "-m", "fake_gpu"]
device.patch()
process.COMMAND = [*ME, "train"]
words = sys.argv[1:]
try:
    sys.exit(main.main(words))
finally:
    if path := os.environ.get("FAKE_REPORT"):
        report = {"command": words[0], "devices": device.touched(), "complaints": device.complaints()}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
