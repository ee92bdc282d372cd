"""Mutation testing: change modules of ganlab one operator at a time and list changes that no test detects.

    python scripts/mutate.py losses penalties n=60 seed=0 budget=20

Tests at most ``n`` mutants per module, sampled with ``seed``. A mutant replaces the bytecode of a function in
a forked child of a process that has already imported and collected everything, so it starts instantly. It
runs the tests that cover its line, fastest first, for at most ``budget`` CPU seconds; tests that only run
ganlab in a subprocess do not see it. Code outside functions is not mutated. A surviving mutant indicates a
missing test, or is equivalent to the original.
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
TESTS = {  # module -> its package, and its tests
    "losses": ("methods", ["methods/test_losses"]),
    "penalties": ("methods", ["methods/test_penalties"]),
    "weight_norms": ("methods", ["methods/test_weight_norms", "methods/test_spectra"]),
    "spectral_norm": (
        "methods",
        ["methods/test_weight_norms", "methods/test_spectra", "methods/test_penalties"],
    ),
    "feature_norms": ("methods", ["methods/test_feature_norms"]),
    "constraints": ("methods", ["methods/test_penalties"]),
    "step": ("training", ["training/test_step"]),
    "gan": ("training", ["training/test_step"]),
    "evaluator": ("evaluation", ["evaluation/test_evaluate"]),
    "scores": ("evaluation", ["evaluation/test_evaluate"]),
    "checkpoint": ("runs", ["runs/test_checkpoint"]),
    "optimizers": ("training", ["training/test_loop"]),
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
    """Yield functions that each apply one mutation to a node in place."""
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
    """Nodes that may be mutated: inside functions, except annotations, defaults and error messages."""
    result: list[ast.AST] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            return
        if inside:
            result.append(node)
        if isinstance(node, ast.FunctionDef):
            inside = True
        for name, child in _children(node):
            if name not in SKIPPED and not isinstance(child, ast.arguments):
                visit(child, inside)

    visit(tree, False)
    return result


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield name, item


def mutants(path: Path) -> Iterator[tuple[int, str, ast.AST]]:
    """Yield line number, description (before -> after) and the mutated module tree."""
    tree = ast.parse(path.read_text())
    for index, node in enumerate(nodes(tree)):
        for edit in edits(node):
            other = copy.deepcopy(tree)
            changed = nodes(other)[index]
            edit(changed)
            before, after = ast.unparse(node).splitlines()[0], ast.unparse(changed).splitlines()[0]
            yield getattr(node, "lineno", 0), f"{before}  ->  {after}", ast.fix_missing_locations(other)


def swap(path: Path, tree: Any) -> bool:
    """Replace the bytecode of functions defined in ``path`` by that of ``tree``.

    Returns False if a function cannot take it, for example because the mutation removes its ``super()``.
    """
    codes: dict[tuple[str, int], CodeType] = {}

    def collect(code: CodeType) -> None:
        codes[code.co_qualname, code.co_firstlineno] = code
        for constant in filter(lambda c: isinstance(c, CodeType), code.co_consts):
            collect(constant)

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
    """Run one collected test; return whether it passed."""
    following = items[number + 1] if number + 1 < len(items) else None
    reports = runtestprotocol(items[number], log=False, nextitem=following)
    return not any(r.failed for r in reports)


def run_forked(function: Callable[[], Any], cpu_s: float) -> Any:
    """Return the result of ``function`` run in a forked child; None if it times out or crashes."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 1))
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2):
            os.dup2(null, fd)
        try:
            with open(write, "wb") as file:
                pickle.dump(function(), file)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data) if data else None


def measure_coverage(items: list[Any], path: Path) -> list[tuple[float, set[int]] | None]:
    """CPU seconds, and covered lines of ``path``, of each test; None for tests that already fail."""
    result: list[tuple[float, set[int]] | None] = []
    for number in range(len(items)):
        lines: set[int] = set()

        def trace(frame: Any, event: str, _: Any, lines: set[int] = lines) -> Any:
            if frame.f_code.co_filename != str(path):
                return None
            lines.add(frame.f_lineno)
            return trace

        began = time.process_time()
        sys.settrace(trace)
        passed = passes(items, number)
        sys.settrace(None)
        result.append((time.process_time() - began, lines) if passed else None)
    return result


class MutationPlugin:
    """Pytest plugin that runs the collected tests against mutants."""

    def __init__(self, module: str, n: int, seed: int, budget: float) -> None:
        self.module, self.n, self.seed, self.budget = module, n, seed, budget

    def pytest_runtestloop(self, session: Any) -> bool:
        path, items = ROOT / "ganlab" / TESTS[self.module][0] / f"{self.module}.py", list(session.items)
        runs = run_forked(lambda: measure_coverage(items, path), 3600) or []
        candidates = list(mutants(path))
        sample = random.Random(self.seed).sample(candidates, min(self.n, len(candidates)))
        counts = {"killed": 0, "survived": 0, "no test": 0, "not tried": 0}
        for line, text, tree in sorted(sample, key=lambda m: m[0]):
            order = sorted((run[0], i) for i, run in enumerate(runs) if run and line in run[1])
            selected, total = list[Any](), 0.0
            for seconds, i in order:
                if not selected or total + seconds < self.budget:
                    selected, total = [*selected, items[i]], total + seconds

            def run_tests(tree: ast.AST = tree, selected: list[Any] = selected) -> str:
                if not swap(path, tree):
                    return "not tried"
                return "survived" if all(passes(selected, i) for i in range(len(selected))) else "killed"

            state = "no test" if not selected else run_forked(run_tests, 20 + 5 * total) or "killed"
            counts[state] += 1
            if state != "killed":
                print(
                    f"{self.module}.py:{line}  {state} ({len(selected)} of {len(order)})  {text}", flush=True
                )
        summary = ", ".join(f"{count} {state}" for state, count in counts.items())
        print(f"{self.module}: {len(sample)} of {len(candidates)} mutants: {summary}", flush=True)
        return True


def main(arguments: list[str]) -> int:
    options = dict(w.split("=", 1) for w in arguments if "=" in w)
    for module in [w for w in arguments if "=" not in w] or list(TESTS):
        files = [str(ROOT / "tests" / f"{name}.py") for name in TESTS[module][1]]
        limits = int(options.get("n", 60)), int(options.get("seed", 0)), float(options.get("budget", 20))
        quiet = ["-q", "-p", "no:cacheprovider", "-s", "--timeout=0", "-m", "not slow"]
        pid = os.fork()  # torch is already imported; collect each module's tests in its own process
        if pid == 0:
            os._exit(pytest.main([*quiet, *files], plugins=[MutationPlugin(module, *limits)]))
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    import torch  # noqa: F401  # once, for all modules

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.exit(main(sys.argv[1:]))
