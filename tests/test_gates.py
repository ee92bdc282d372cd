"""Static gates: what opens a door to hostile input is nowhere but in the modules that may."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ganlab"
FILES = sorted(PACKAGE.rglob("*.py"))
BLESSED = {  # gate -> the modules that may, and why
    "pickle": {
        "data/unpickle.py",  # CIFAR's batches: a reader that knows arrays alone
        "extractors/inception.py",  # the name of torch's exception
    },
    "subprocess": {
        "bench/turns.py",
        "data/child.py",  # decoders, in a process that may crash
        "facts.py",  # git's commit
        "jobs.py",  # ganlab's own cells
        "watch.py",
    },
    "http": {"download.py"},
}
CODE = ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
NETWORK = ("http", "socketserver", "xmlrpc", "ftplib", "telnetlib", "requests")
CALLS = {
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
}


def findings(source: str, name: str) -> Iterator[str]:
    """What a module does that the gates forbid."""
    for node in ast.walk(ast.parse(source)):
        at = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in names:
                top = module.partition(".")[0]
                if (
                    top in ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
                    and name not in BLESSED["pickle"]
                ):
                    yield f"{at}: imports {top}"
                if top == "subprocess" and name not in BLESSED["subprocess"]:
                    yield f"{at}: imports subprocess"
                if name not in BLESSED["http"] and top in (
                    "http",
                    "socketserver",
                    "xmlrpc",
                    "ftplib",
                    "telnetlib",
                    "requests",
                ):
                    yield f"{at}: imports {top}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in CALLS or called.endswith(".extractall"):
                yield f"{at}: calls {called}"
            if called == "torch.load" and given.get("weights_only") != "True":
                yield f"{at}: torch.load without weights_only=True"
            if called == "np.load" and given.get("allow_pickle", "False") != "False":
                yield f"{at}: np.load with pickles"
            if called == "yaml.load" and ("yaml." in given.get("Loader", "yaml.") or name != "safe_yaml.py"):
                yield f"{at}: yaml.load without a safe loader"
            if given.get("shell", "False") != "False":
                yield f"{at}: shell={given['shell']}"
            if given.get("verify") == "False" and "request" in called:
                yield f"{at}: verify=False"
        elif isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(n, ast.Pass) for n in node.body):
                yield f"{at}: an exception of any kind is swallowed"


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_no_door(file: Path) -> None:
    found = list(findings(file.read_text("utf-8"), str(file.relative_to(PACKAGE))))
    assert not found, "; ".join(found)


@pytest.mark.parametrize(
    "source",
    [
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
        "try:\n    x()\nexcept Exception:\n    pass",
        "try:\n    x()\nexcept:\n    pass",
    ],
)
def test_the_gates_close(source: str) -> None:
    assert list(findings(source, "new.py"))


def test_blessed_modules_are_there() -> None:
    """An exception that nobody needs any more is an open door."""
    for gate in BLESSED:
        for name in BLESSED[gate]:
            file = PACKAGE / name
            assert file.is_file(), name
            assert gate in file.read_text("utf-8"), f"{name} needs no {gate} any more"


def test_a_user_of_security_md_finds_what_it_names() -> None:
    text = (PACKAGE.parent / "SECURITY.md").read_text("utf-8")
    for name in ("tests/faults/", "tests/test_gates.py", "RELIABILITY.md"):
        assert name in text
        assert name == "RELIABILITY.md" or (PACKAGE.parent / name).exists()
