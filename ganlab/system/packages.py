"""Packages that a command will need: looked for at its start, not hours later."""

from __future__ import annotations

from importlib.util import find_spec

from ganlab.errors import EnvError, Mistake

NAMED = {  # module -> what pip calls it, where that differs
    "PIL": "pillow",
    "hydra": "hydra-core",
    "ot": "pot",
    "sklearn": "scikit-learn",
    "torch_fidelity": "torch-fidelity",
    "yaml": "pyyaml",
}
RUNS = ("PIL", "safetensors", "scipy", "torchvision")  # what every run, score or sample comes to need
DRAWING = ("PIL", "jinja2", "matplotlib")


def require(*modules: str) -> None:
    """Raise EnvError, a line for each, unless these can be found. Imports none of them."""
    wrong = [missing_package(name) for name in modules if not is_installed(name)]
    if wrong:
        raise EnvError(wrong)


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def missing_package(module: str) -> Mistake:
    """The line about a module that can't be imported."""
    top = module.partition(".")[0]
    return Mistake(NAMED.get(top, top), "is not installed", f"pip install {NAMED.get(top, top)}")
