"""Imports point one way: a file may import floors below its own, and on floor 4 and 5 those before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ganlab"
FLOORS = [
    floor.split()
    for floor in (
        # words, rules, players, plan, engine (in this order), doors (in this order)
        "__init__ errors relayed ranks paths types rng spelling schema safe_yaml packages disk aside "
        "heartbeat lock download",
        "layers sync_batch_norm spectra spectral flat operator_norm losses penalties constraints "
        "weight_norms feature_norms priors metrics",
        "nets data extractors",
        "experiment",
        "optimizers game step state_tree manifest checkpoint run_folder metrics_file signals log "
        "vocabulary reference fakes "
        "feature_pass by_class by_sample scores evaluate samples looks facts identity record sizes setup "
        "resume feed engine "
        "first_rank run_record validation observer shared run loop lanes rank_session",
        "targets tree building config_files overrides composition config sampling tools datasets "
        "trial report analysis recipes explain stores doctor words failing watch jobs scaling random_set "
        "grid planned ledger launch sweep work runner cost status check bench help launched commands cli "
        "pack __main__",
    )
]
ORDERED = (0, 4, 5)  # floors whose files may use the ones before them in the list
SHARED = {"base", "layers", "spectral"}  # what siblings of floors 1 and 2 may share


def place(module: str) -> tuple[int, int]:
    part = module.split(".")[1] if "." in module else "__init__"
    for floor, names in enumerate(FLOORS):
        if part in names:
            return floor, names.index(part)
    raise AssertionError(f"ganlab.{part} stands on no floor: add it to FLOORS in {Path(__file__).name}")


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(file: Path) -> set[str]:
    """Modules of ganlab that a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("ganlab")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ganlab"):
            subs = {f"{node.module}.{a.name}" for a in node.names}
            files = {s for s in subs if (PACKAGE.parent / s.replace(".", "/")).with_suffix(".py").is_file()}
            found |= files or {node.module}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_point_down(file: Path) -> None:
    mine = name_of(file)
    floor, order = place(mine)
    for other in imports(file):
        if other == "ganlab":
            continue
        theirs, their_order = place(other)
        assert theirs <= floor, f"{mine} (floor {floor}) imports {other} (floor {theirs})"
        if theirs == floor and other.split(".")[1] != mine.split(".")[1]:
            if floor in ORDERED:
                assert their_order < order, f"{mine} imports {other}, which comes after it"
            else:
                assert other.split(".")[-1] in SHARED, f"{mine} imports its sibling {other}"


def test_light_files_do_not_import_torch() -> None:
    """``ganlab --help``, ``doctor`` and typing mistakes must answer without loading torch."""
    light = "errors paths disk schema spelling words failing commands cli config_files sweep __main__"
    for name in light.split():
        file = PACKAGE / f"{name}.py"
        tops = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        heavy = {a.name for n in tops if isinstance(n, ast.Import) for a in n.names} | {
            n.module or "" for n in tops if isinstance(n, ast.ImportFrom)
        }
        assert not {h for h in heavy if h.split(".")[0] in ("torch", "torchvision", "torch_fidelity")}, name


FORBIDDEN = {
    "pickle.load", "pickle.loads", "os.system", "tempfile.mktemp", "eval", "exec", "instantiate",
    "extractall", "yaml.unsafe_load",
}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_no_door_for_hostile_input(file: Path) -> None:
    """Reliability contract, section 5: no code from files, no shell, seeds only in ``rng``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in FORBIDDEN, f"{file.name}:{node.lineno}: {called}"
        assert called.split(".")[-1] != "extractall", f"{file.name}:{node.lineno}: {called}"
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"{file.name}:{node.lineno}: torch.load"
        if called == "yaml.load":
            loader = keywords.get("Loader", "")
            safe = bool(loader) and not loader.startswith("yaml.")
            assert safe, f"{file.name}:{node.lineno}: not a safe loader"
        if called == "np.load":
            assert keywords.get("allow_pickle", "False") == "False", f"{file.name}:{node.lineno}"
        assert keywords.get("shell", "False") == "False", f"{file.name}:{node.lineno}: shell=True"
        if called.split(".")[-1] in ("manual_seed", "manual_seed_all"):
            assert file.name == "rng.py", f"{file.name}:{node.lineno}: only rng.py seeds"
