"""Check that the packages a command needs are installed, when it starts rather than hours later."""

from __future__ import annotations

from importlib.util import find_spec

from ganlab.errors import EnvError, Mistake

PIP_NAMES = {  # module -> its name for pip, where that differs
    "PIL": "pillow",
    "hydra": "hydra-core",
    "ot": "pot",
    "sklearn": "scikit-learn",
    "torch_fidelity": "torch-fidelity",
    "yaml": "pyyaml",
}
RUN_PACKAGES = ("PIL", "safetensors", "scipy", "torchvision")
PLOT_PACKAGES = ("PIL", "jinja2", "matplotlib")


def require(*modules: str) -> None:
    """Raise EnvError with a line for each module that is not installed. Imports none of them."""
    if missing := [missing_package(name) for name in modules if not is_installed(name)]:
        raise EnvError(missing)


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def missing_package(module: str) -> Mistake:
    """The error line for a module that is not installed."""
    top = module.partition(".")[0]
    name = PIP_NAMES.get(top, top)
    return Mistake(name, "is not installed", f"pip install {name}")
