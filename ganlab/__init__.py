"""ganlab: the lab bench for GAN-stabilisation research. Start reading at ``experiment.py``.

From Python: ``ganlab.train``, ``ganlab.load`` and ``ganlab.score`` (``api.py``).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("TrainedRun", "load", "score", "train"):
        raise AttributeError(f"module 'ganlab' has no attribute {name!r}")
    return getattr(import_module("ganlab.api"), name)  # which imports torch
