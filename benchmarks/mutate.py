"""Which faults the tests would let through: changes one small thing in a module at a time and runs the module's tests.

    python benchmarks/mutate.py                          # a sample of every module, in half an hour
    python benchmarks/mutate.py calibration --sample 0   # every mutant of one module

A mutant is the module with one comparison, operator, number or truth value changed, one condition turned round, or one
statement taken out; see `mutants`. It is killed if a test fails, or none ends in time. Whatever survives is printed:
docs/testing.md judges those that were found. Texts are left as they are, and so are annotations and decorators.

Each mutant is run in a process forked from one that has NumPy, PyTorch and the rest imported already, but nothing of
makel; so it needs Linux or macOS, and the environment of `python3 dev.py setup`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = {
    # module: its tests, and options of pytest
    "calibration.py": ["test_calibration.py"],
    "model/rules.py": ["test_rules.py"],
    "model/regions.py": ["test_regions.py"],
    "model/session.py": ["test_session.py"],
    "model/graph.py": ["test_graph.py"],
    "training/gate.py": ["test_gate.py"],
    # Without those that kill processes of their own: they need seconds for what the others see at once.
    "station/journal.py": ["test_journal.py", "test_arrivals.py", "-k", "not killed"],
    "station/access.py": ["station/test_access.py"],
    "evaluation/metrics.py": ["test_metrics.py"],
}

IMPORTED = ["numpy", "cv2", "onnxruntime", "pydantic", "torch", "sklearn.metrics", "sqlalchemy", "fastapi", "onnx"]
"""What every run would import anew: more seconds than the tests take. Nothing of makel, and no plugin of pytest."""

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
SAME_EITHER_WAY = {"strict", "repr"}
"""Keywords whose value no right program depends on."""

LEAST_S, TIMES = 30.0, 6
"""A run may take so long, or so many times as long as it does unchanged."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change: the line it is in, what stood there, what stands there now, and all of its source."""

    line: int
    before: str
    after: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    for path in sorted(_paths(tree), key=lambda each: (getattr(_at(tree, each), "lineno", 0), str(each))):
        for number in range(_count(_at(tree, path))):
            changed = copy.deepcopy(tree)
            node = _at(changed, path)
            before, line = ast.unparse(node), node.lineno
            new = _change(node, number)
            if new is not node:
                parent, (field, index) = _at(changed, path[:-1]), path[-1]
                if index is None:
                    setattr(parent, field, new)
                else:
                    getattr(parent, field)[index] = new
            yield Mutant(line, before, ast.unparse(new), ast.unparse(ast.fix_missing_locations(changed)))


def _paths(node: ast.AST, path: tuple = ()) -> Iterator[tuple]:
    """Where each node that can be changed stands: field and index of every step from the top."""
    if _count(node):
        yield path
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg in SAME_EITHER_WAY):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                yield from _paths(child, (*path, (field, index if isinstance(value, list) else None)))


def _at(tree: ast.AST, path: tuple) -> ast.AST:
    for field, index in path:
        tree = getattr(tree, field) if index is None else getattr(tree, field)[index]
    return tree


def _count(node: ast.AST) -> int:
    """How many mutants a node makes."""
    match node:
        case ast.Compare(ops=ops):
            return sum(type(op) in SWAPS for op in ops)
        case ast.BoolOp() | ast.IfExp() | ast.UnaryOp(op=ast.Not() | ast.USub()):
            return 1
        case ast.BinOp(op=op) | ast.AugAssign(op=op):
            return int(type(op) in SWAPS)
        case ast.Constant(value=bool()) | ast.Constant(value=int() | float()):
            return 1
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            return 1
        case ast.If() | ast.Raise() | ast.Break() | ast.Continue():
            return 1
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()):
            return 1
        case ast.Return(value=value):
            return int(value is not None)
    return 0


def _change(node: ast.AST, number: int) -> ast.AST:
    """The node with its change of this number; another node takes its place where it cannot be changed itself."""
    match node:
        case ast.Compare():
            node.ops[number] = SWAPS[type(node.ops[number])]()
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign():
            node.op = SWAPS[type(node.op)]()
        case ast.UnaryOp():
            return node.operand
        case ast.IfExp():
            node.body, node.orelse = node.orelse, node.body
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant():
            node.value += 1
        case ast.Call():
            node.func.id = NAMES[node.func.id]
        case ast.If():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Return():
            return ast.copy_location(ast.Return(ast.Constant(None)), node)
        case _:
            return ast.copy_location(ast.Pass(), node)
    return node


class Trial:
    """A copy of makel's source to change, and runs of tests on it."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "src"
        shutil.copytree(ROOT / "src", self.source, ignore=shutil.ignore_patterns("__pycache__"))
        self.said = folder / "said.txt"
        others = os.environ.get("PYTHONPATH", "")
        os.environ |= {"PYTHONPATH": f"{self.source}{os.pathsep}{others}", "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        for name in IMPORTED:
            importlib.import_module(name)

    def run(self, tests: list[str], timeout_s: float) -> int | None:
        """Exit code of pytest; None where it took too long. What it says is in `said`."""
        child = os.fork()
        if child == 0:
            os.setsid()
            self._test(tests)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _test(self, tests: list[str]) -> None:
        code = 70
        try:
            said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(ROOT)
            sys.dont_write_bytecode = True
            sys.path[:0] = [str(self.source)]
            import pytest

            code = int(
                pytest.main(
                    [
                        "-x",
                        "-q",
                        "-p",
                        "no:cacheprovider",
                        "--assert=plain",
                        *(f"tests/{each}" if each.endswith(".py") else each for each in tests),
                    ]
                )
            )
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def examine(trial: Trial, module: str, sample: int, seed: int) -> tuple[int, int]:
    """Try a module's mutants, print those that survive, and give how many were killed, and how many there were."""
    file = trial.source / "makel" / module
    unchanged = file.read_text(encoding="utf-8")
    began = time.monotonic()
    if trial.run(TESTS[module], 600) != 0:
        print(f"{trial.said.read_text()}\n{module}: its tests fail on the unchanged source: nothing was tried")
        return 0, 0
    timeout_s = max(LEAST_S, TIMES * (time.monotonic() - began))
    every = list(mutants(unchanged))
    chosen = every
    if sample and sample < len(every):
        chosen = sorted(random.Random(seed).sample(every, sample), key=lambda each: each.line)
    killed = 0
    for mutant in chosen:
        file.write_text(mutant.source, encoding="utf-8")
        if trial.run(TESTS[module], timeout_s) == 0:
            before, after = (" ".join(text.split())[:150] for text in (mutant.before, mutant.after))
            print(f"  survived: {module}:{mutant.line}: {before}  ->  {after}", flush=True)
        else:
            killed += 1
    file.write_text(unchanged, encoding="utf-8")
    spent_s = time.monotonic() - began
    share = f"{killed} of {len(chosen)} killed ({100 * killed / len(chosen):.0f} %)"
    print(f"{module}: {share}, of {len(every)} in all; {spent_s:.0f} s", flush=True)
    return killed, len(chosen)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--sample", type=int, default=50, help="mutants of each module at most; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    chosen = [module for module in TESTS if not given.modules or any(part in module for part in given.modules)]
    if not chosen:
        parser.error(f"none of the modules has {' or '.join(given.modules)} in its name: there are {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory(prefix="makel-mutate-") as folder:
        trial = Trial(Path(folder))
        results = [examine(trial, module, given.sample, given.seed) for module in chosen]
    killed, total = (sum(each) for each in zip(*results, strict=True))
    print(f"all: {killed} of {total} killed ({100 * killed / max(1, total):.0f} %)")
    sys.exit(any(tried == 0 for _, tried in results))


if __name__ == "__main__":
    main()
