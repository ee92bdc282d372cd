"""How large the networks of a config would be: asked before one of them is made, or anything is written."""

from __future__ import annotations

import os

import torch
from torch import nn

from ganlab.errors import ConfigError, EnvError
from ganlab.experiment import Experiment
from ganlab.types import Shape

MAX_PARAMETERS = 4_000_000_000  # of G and D together: four times the largest GANs there are
FIX = "lower architecture.width"


def require_size(e: Experiment, num_classes: int = 0, shape: Shape | None = None) -> None:
    """Raise ConfigError for networks past ``MAX_PARAMETERS``, EnvError for more than this machine's memory.

    ``num_classes`` and ``shape``: of the data; 0 and None where not known yet. Both networks are built on
    torch's "meta" device, which has shapes and no memory: milliseconds.
    """
    conditional = e.architecture.conditional
    classes = max(num_classes, 2) if conditional else 0
    shape = shape or e.shape
    norm = next((f for s in e.normalization.values() if (f := s.feature_norm())), None)
    try:
        with torch.device("meta"):
            nets: list[nn.Module] = [
                e.architecture.generator(shape, classes),
                e.architecture.discriminator(shape, classes, norm),
            ]
        total = sum(t.numel() for net in nets for t in (*net.parameters(), *net.buffers()))
    except NotImplementedError:
        return  # an architecture that can't be built without memory: it is judged when it is built
    except (OverflowError, RuntimeError, TypeError, MemoryError) as error:
        if not any(
            word in str(error).lower() for word in ("overflow", "infinity", "too large", "negative dim")
        ):
            raise
        raise ConfigError("architecture", "its layers are too large to be counted", FIX) from error
    if total > MAX_PARAMETERS:
        what = f"G and D would have {total:.3g} parameters, more than {MAX_PARAMETERS:.0e}"
        raise ConfigError("architecture", what, FIX)
    memory = physical_memory()
    if memory and 4 * total > memory:
        what = f"G and D need {4 * total / 1e9:.1f} GB, this machine has {memory / 1e9:.1f}"
        raise EnvError("memory", what, FIX)


def physical_memory() -> int:
    """Bytes of this machine's memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
