"""Mutates modules of ganlab, one small change at a time, and lists the changes that no test notices.

    python scripts/mutate.py losses penalties n=60 seed=0 budget=20

Of each module at most ``n`` mutants, drawn by ``seed``. A mutant is a function whose bytecode is swapped in a
forked child of a process that has imported and collected everything, so it costs no start. It meets the tests
that run its line, the quickest first, for ``budget`` CPU seconds in all; tests that only watch a subprocess
never see it. Values outside functions are not mutated. A survivor is a missing test, or an equivalent mutant.
"""

from __future__ import annotations

import ast
import copy
import gc
import os
import pickle
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # children are forked

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "losses": ("losses",),
    "penalties": ("penalties",),
    "weight_norms": ("weight_norms", "spectra"),
    "spectral": ("weight_norms", "spectra", "penalties"),
    "feature_norms": ("feature_norms",),
    "constraints": ("penalties",),
    "step": ("step",),
    "game": ("step",),
    "evaluate": ("evaluate",),
    "scores": ("evaluate",),
    "checkpoint": ("checkpoint",),
    "optimizers": ("loop",),
}
PAIRS: list[tuple[type, type]] = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div)),
]
SWAPS: dict[type, type] = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
SWAPS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd}
CALLS = {"mean": "sum", "sum": "mean", "max": "min", "min": "max", "any": "all", "all": "any"}
SKIPPED = ("annotation", "decorator_list", "returns")
Edit = Callable[[Any], None]


def edits(node: ast.AST) -> Iterator[Edit]:
    """The changes of one node, each made in place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda n: n.ops.__setitem__(0, SWAPS[type(n.ops[0])]())
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        yield lambda n: setattr(n, "op", SWAPS[type(n.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield lambda n: setattr(n, "op", ast.UAdd())
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = node.value
        new = value + 1 if isinstance(value, int) else value * 2 or 1.0
        yield lambda n: setattr(n, "value", not value if isinstance(value, bool) else new)
    elif isinstance(node, ast.Expr | ast.Return) and isinstance(node.value, ast.Call | ast.BinOp | ast.Name):
        yield lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Attribute) and node.attr in CALLS:
        yield lambda n: setattr(n, "attr", CALLS[n.attr])


def nodes(tree: ast.AST) -> list[ast.AST]:
    """What may be mutated: inside functions, but for annotations, defaults and the words of errors."""
    found: list[ast.AST] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            return
        if inside:
            found.append(node)
        if isinstance(node, ast.FunctionDef):
            inside = True
        for name, child in _children(node):
            if name not in SKIPPED and not isinstance(child, ast.arguments):
                visit(child, inside)

    visit(tree, False)
    return found


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ast.AST):
                yield name, one


def mutants(path: Path) -> Iterator[tuple[int, str, ast.AST]]:
    """Line, what it was and became, and the module's tree, for every change."""
    tree = ast.parse(path.read_text())
    for index, node in enumerate(nodes(tree)):
        for edit in edits(node):
            other = copy.deepcopy(tree)
            changed = nodes(other)[index]
            edit(changed)
            before, after = ast.unparse(node).splitlines()[0], ast.unparse(changed).splitlines()[0]
            yield getattr(node, "lineno", 0), f"{before}  ->  {after}", ast.fix_missing_locations(other)


def swap(path: Path, tree: Any) -> bool:
    """Give the functions that were made from ``path`` the bytecode of ``tree``.

    False where one can't take it, as one that loses its ``super()`` can't.
    """
    codes: dict[tuple[str, int], CodeType] = {}

    def collect(code: CodeType) -> None:
        codes[code.co_qualname, code.co_firstlineno] = code
        for one in filter(lambda c: isinstance(c, CodeType), code.co_consts):
            collect(one)

    collect(compile(tree, str(path), "exec"))
    fits = True
    for f in gc.get_objects():
        if isinstance(f, FunctionType) and f.__code__.co_filename == str(path):
            code = codes.get((f.__code__.co_qualname, f.__code__.co_firstlineno))
            if code is not None and code.co_freevars == f.__code__.co_freevars:
                f.__code__ = code
            elif code is not None:
                fits = False
    return fits


def passes(items: list[Any], number: int) -> bool:
    following = items[number + 1] if number + 1 < len(items) else None
    reports = runtestprotocol(items[number], log=False, nextitem=following)
    return not any(r.failed for r in reports)


def forked(work: Callable[[], Any], cpu_s: float) -> Any:
    """What ``work`` returns in a child; None if it takes too long, or takes the child down."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 1))
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2):
            os.dup2(null, fd)
        try:
            with open(write, "wb") as file:
                pickle.dump(work(), file)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else None


def covered(items: list[Any], path: Path) -> list[tuple[float, set[int]] | None]:
    """CPU seconds and the lines of ``path`` that each test runs; None of one that fails as it is."""
    found: list[tuple[float, set[int]] | None] = []
    for number in range(len(items)):
        lines: set[int] = set()

        def trace(frame: Any, event: str, _: Any, lines: set[int] = lines) -> Any:
            if frame.f_code.co_filename != str(path):
                return None
            lines.add(frame.f_lineno)
            return trace

        began = time.process_time()
        sys.settrace(trace)
        fine = passes(items, number)
        sys.settrace(None)
        found.append((time.process_time() - began, lines) if fine else None)
    return found


class Mutating:
    """A plugin: in place of running the collected tests, runs them against mutants."""

    def __init__(self, module: str, n: int, seed: int, budget: float) -> None:
        self.module, self.n, self.seed, self.budget = module, n, seed, budget

    def pytest_runtestloop(self, session: Any) -> bool:
        path, items = ROOT / "ganlab" / f"{self.module}.py", list(session.items)
        runs = forked(lambda: covered(items, path), 3600) or []
        every = list(mutants(path))
        drawn = random.Random(self.seed).sample(every, min(self.n, len(every)))
        counts = {"killed": 0, "survived": 0, "no test": 0, "not tried": 0}
        for line, text, tree in sorted(drawn, key=lambda m: m[0]):
            order = sorted((run[0], i) for i, run in enumerate(runs) if run and line in run[1])
            chosen, spent = list[Any](), 0.0
            for seconds, i in order:
                if not chosen or spent + seconds < self.budget:
                    chosen, spent = [*chosen, items[i]], spent + seconds

            def met(tree: ast.AST = tree, chosen: list[Any] = chosen) -> str:
                if not swap(path, tree):
                    return "not tried"
                return "survived" if all(passes(chosen, i) for i in range(len(chosen))) else "killed"

            state = "no test" if not chosen else forked(met, 20 + 5 * spent) or "killed"
            counts[state] += 1
            if state != "killed":
                print(f"{self.module}.py:{line}  {state} ({len(chosen)} of {len(order)})  {text}", flush=True)
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        print(f"{self.module}: {len(drawn)} of {len(every)} mutants: {told}", flush=True)
        return True


def main(words: list[str]) -> int:
    given = dict(w.split("=", 1) for w in words if "=" in w)
    for module in [w for w in words if "=" not in w] or list(TESTS):
        files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS[module]]
        limits = int(given.get("n", 60)), int(given.get("seed", 0)), float(given.get("budget", 20))
        quiet = ["-q", "-p", "no:cacheprovider", "-s", "--timeout=0", "-m", "not slow"]
        pid = os.fork()  # torch is imported; each module's tests are collected in a process of their own
        if pid == 0:
            os._exit(pytest.main([*quiet, *files], plugins=[Mutating(module, *limits)]))
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    import torch  # noqa: F401  # once, for all modules

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.exit(main(sys.argv[1:]))
