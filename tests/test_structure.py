"""The structure of the package: imports point down, without circles; no door for hostile input."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ganlab"
# A package, or file at the root, may import those named before it.
LAYERS = [
    "errors",
    "types",
    "schema",
    "rng",
    "text",
    "tables",
    "distributed",
    "system",
    "methods",
    "samples",
    "models",
    "data",
    "metrics",
    "extractors",
    "evaluation",
    "experiment",
    "runs",
    "training",
    "config",
    "papers",
    "sweeps",
    "report",
    "analysis",
    "api",
    "cli",
    "__main__",
]
LIGHT = [
    "errors",
    "schema",
    "__main__",
    "system/paths",
    "system/files",
    "system/failures",
    "config/files",
    "sweeps/launchers",
    "sweeps/runner",
    "cli/main",
    "cli/commands",
    "cli/actions",
    "cli/arguments",
    "cli/command",
    "cli/launched",
    "cli/doctor",
    "cli/data",
    "cli/help/__init__",
    "cli/help/page",
    "cli/help/train",
]  # without torch
ALLOWED = {  # what only these modules may import
    "pickle": {
        "data/formats/unpickle.py",  # CIFAR's batches: a reader of arrays alone
        "extractors/inception.py",  # the name of torch's exception
    },
    "subprocess": {
        "data/packing/worker.py",  # decoders, in a process that may crash
        "runs/provenance.py",  # git's commit
        "sweeps/process.py",  # cells
    },
    "http": {"system/download.py"},
    "hydra._internal": {"config/hydra_compose.py"},
}
CODE_LOADERS = ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
NETWORK = ("http", "socketserver", "xmlrpc", "ftplib", "telnetlib", "requests")
FAMILY = dict.fromkeys(CODE_LOADERS, "pickle") | dict.fromkeys(NETWORK, "http")
FORBIDDEN = [
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "instantiate",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
    "marshal.loads",
    "shelve.open",
]


@cache
def trees() -> dict[str, ast.Module]:
    """Path below the package -> its syntax tree, each file parsed once."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {f.relative_to(PACKAGE).as_posix(): ast.parse(f.read_text("utf-8")) for f in files}


def module_name(path: str) -> str:
    return "ganlab." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Imports of ganlab's own modules, at the top or inside functions."""
    modules = {module_name(p) for p in trees()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, a.name) for a in node.names if a.name.startswith("ganlab."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ganlab"):
            for a in node.names:
                name = f"{node.module}.{a.name}"
                yield node, name if name in modules else str(node.module)


def test_imports_point_down() -> None:
    upward = []
    for path, tree in trees().items():
        mine = path.split("/")[0].removesuffix(".py")
        for _, other in imports(tree):
            theirs = other.split(".")[1] if "." in other else mine
            if mine == "__init__" or LAYERS.index(theirs) > LAYERS.index(mine):
                upward.append(f"{path} imports {other}")
    assert not upward


def test_no_circular_imports() -> None:
    """Of modules, imports inside functions included; those for the type checker alone do no harm."""
    graph: dict[str, set[str]] = {}
    for path, tree in trees().items():
        checks = [
            n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
        ]
        typing_only = {id(n) for c in checks for n in ast.walk(c)}
        graph[module_name(path)] = {m for n, m in imports(tree) if id(n) not in typing_only} - {
            module_name(path)
        }
    while leaves := [m for m, needs in graph.items() if not needs & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph


def test_only_samples_knows_the_kinds() -> None:
    """What depends on the kind of sample lies in ``samples/``; other code asks ``sample_kind``."""
    for path in trees().keys() - {p for p in trees() if p.startswith("samples/")}:
        source = (PACKAGE / path).read_text("utf-8")
        assert not re.search(r"shape\.kind (==|!=|in \()|isinstance\([^)]*(Image|Point|Text)Shape", source), (
            path
        )


def test_light_modules_do_not_import_torch() -> None:
    """``ganlab --help``, ``doctor`` and typing mistakes answer without loading torch."""
    for path, tree in trees().items():
        if path.removesuffix(".py") in LIGHT:
            for node in tree.body:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {n.split(".")[0] for n in names} & {"torch", "torchvision", "torch_fidelity"}, path


def findings(tree: ast.Module, path: str) -> Iterator[str]:
    """What a module does that SECURITY.md promises no module does."""
    for node in ast.walk(tree):
        at = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                top = ".".join(name.split(".")[: 2 if name.startswith("hydra._internal") else 1])
                gate = FAMILY.get(top, top)
                if gate in ALLOWED and path not in ALLOWED[gate]:
                    yield f"{at}: imports {top}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in FORBIDDEN or called.endswith(".extractall"):
                yield f"{at}: calls {called}"
            if called == "torch.load" and keywords.get("weights_only") != "True":
                yield f"{at}: torch.load without weights_only=True"
            if called == "np.load" and keywords.get("allow_pickle", "False") != "False":
                yield f"{at}: np.load with pickles"
            unsafe = keywords.get("Loader", "yaml.").startswith("yaml.") or path != "system/yaml_loader.py"
            if called == "yaml.load" and unsafe:
                yield f"{at}: yaml.load without a safe loader"
            if keywords.get("shell", "False") != "False":
                yield f"{at}: shell={keywords['shell']}"
            if keywords.get("verify") == "False" and "request" in called:
                yield f"{at}: verify=False"
            if called.split(".")[-1] in ("manual_seed", "manual_seed_all") and path != "rng.py":
                yield f"{at}: only rng.py seeds"
        elif isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(n, ast.Pass) for n in node.body):
                yield f"{at}: an exception of any kind is swallowed"


def test_no_door_for_hostile_input() -> None:
    assert not [f for path, tree in trees().items() for f in findings(tree, path)]


DOORS = [  # each is one
    "import pickle",
    "from dill import loads",
    "import subprocess",
    "import http.server",
    "eval('1')",
    "os.system('ls')",
    "tar.extractall('x')",
    "torch.load('x')",
    "torch.load('x', weights_only=False)",
    "np.load('x', allow_pickle=True)",
    "yaml.load('x', Loader=yaml.Loader)",
    "yaml.load('x')",
    "run('ls', shell=True)",
    "torch.manual_seed(0)",
    "try:\n    x()\nexcept Exception:\n    pass",
    "try:\n    x()\nexcept:\n    pass",
]


def test_the_check_notices() -> None:
    assert not [source for source in DOORS if not list(findings(ast.parse(source), "new.py"))]


def test_exceptions_are_needed() -> None:
    """An exception that no module needs any more is an open door."""
    for gate, paths in ALLOWED.items():
        for path in paths:
            assert gate in (PACKAGE / path).read_text("utf-8"), f"{path} needs no {gate} any more"
