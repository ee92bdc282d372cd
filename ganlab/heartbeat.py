"""The sign of life that a sweep watches its cells by: a file touched wherever a run asks for signals.

Every loop of a run asks (``signals.StopFlag.poll``): updates, evaluations, downloads, waits. So a slow cell
is told from one that hangs. Without ``GANLAB_HEARTBEAT``, which names the file, nothing happens. No torch.
"""

from __future__ import annotations

import contextlib
import os
import time

VARIABLE = "GANLAB_HEARTBEAT"
EVERY = 1.0  # seconds between touches, at least
_last = 0.0


def beat() -> None:
    """Touch the file, if there is one and the last touch is long enough ago. Raises nothing."""
    global _last
    path = os.environ.get(VARIABLE)
    if not path or (now := time.monotonic()) - _last < EVERY:
        return
    _last = now
    with contextlib.suppress(OSError):  # a sweep's folder may be gone: the run goes on
        os.utime(path)
