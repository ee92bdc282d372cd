"""Former module names of classes, which saved configs and config hashes contain.

A run folder, checkpoint or sweep record made before a move holds the old names. They are updated when a saved
config is read; hashes use the original names, so that they survive moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODULES = {  # original name -> current name
    "ganlab.constraints": "ganlab.methods.constraints",
    "ganlab.feature_norms": "ganlab.methods.feature_norms",
    "ganlab.flat": "ganlab.methods.flat_weights",
    "ganlab.layers": "ganlab.methods.weights",
    "ganlab.losses": "ganlab.methods.losses",
    "ganlab.nets.activations": "ganlab.models.activations",
    "ganlab.nets.base": "ganlab.models.base",
    "ganlab.nets.bedrooms": "ganlab.models.wgan_gp_lsun",
    "ganlab.nets.blocks": "ganlab.models.blocks",
    "ganlab.nets.bottleneck": "ganlab.models.bottleneck",
    "ganlab.nets.charlm": "ganlab.models.char_lm",
    "ganlab.nets.cnn": "ganlab.models.cnn",
    "ganlab.nets.dcgan": "ganlab.models.dcgan",
    "ganlab.nets.dcgan_family": "ganlab.models.random_dcgan",
    "ganlab.nets.folding": "ganlab.models.fused_resampling",
    "ganlab.nets.mlp": "ganlab.models.mlp",
    "ganlab.nets.resnet": "ganlab.models.resnet",
    "ganlab.nets.wgan": "ganlab.models.wgan_dcgan",
    "ganlab.operator_norm": "ganlab.methods.operator_norm",
    "ganlab.optimizers": "ganlab.training.optimizers",
    "ganlab.penalties": "ganlab.methods.penalties",
    "ganlab.priors": "ganlab.methods.priors",
    "ganlab.spectra": "ganlab.methods.singular_values",
    "ganlab.spectral": "ganlab.methods.spectral_norm",
    "ganlab.weight_norms": "ganlab.methods.weight_norms",
}
_FIRST = {new: old for old, new in MODULES.items()}


def to_current(tree: Any) -> Any:
    """A saved config with current names under every ``_target_``."""
    return _renamed(tree, MODULES)


def to_first(tree: Any) -> Any:
    """A config with original names, for hashing."""
    return _renamed(tree, _FIRST)


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, Mapping):
        return {k: _target(v, names) if k == "_target_" else _renamed(v, names) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_renamed(v, names) for v in tree]
    return tree


def _target(value: Any, names: Mapping[str, str]) -> Any:
    module, _, name = str(value).rpartition(".")
    return f"{names[module]}.{name}" if module in names else value
