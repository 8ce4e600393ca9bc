"""
``python -m tests.mutation --seed N``: do the unit tests notice when a line of the program is wrong?

Draws statements of the parts that keep the promises (heartbeats, the registry's core, its stores in one process),
breaks each in turn in a copy of the project (deletes it, or inverts its condition), and runs the unit tests. A break
that no test notices has survived. ``--list`` only shows what the seed draws.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from . import ROOT

_AREAS = (
    "heartbeats/*.py",
    "registry/core.py",
    "registry/feed.py",
    "registry/stores/memory.py",
    "registry/stores/sqlite/*.py",
)
# A break that makes the tests take so many times as long as they do without one is noticed.
_PATIENCE = 5


@attrs.frozen
class Break:
    """
    One change of the program.

    :ivar path: the module, relative to the project.
    :ivar line: its line.
    :ivar what: what is done to it: ``deleted`` or ``inverted``.
    :ivar was: the statement, or the condition, on one line.
    :ivar source: the module with the change.
    """

    path: Path
    line: int
    what: str
    was: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}: {self.was}"


def main(arguments: list[str]) -> int:
    """:return: the exit code: 1 if the tests fail without a break, or more have survived than are allowed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the draw; it is printed")
    parser.add_argument("--count", type=int, default=30, help="how many breaks (default: 30)")
    parser.add_argument("--allow", type=int, default=3, help="how many may survive (default: 3)")
    parser.add_argument("--list", action="store_true", help="only print what is drawn")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    breaks = draw(seed, options.count)
    print(f"seed {seed}: {len(breaks)} breaks", flush=True)
    if options.list:
        print(*breaks, sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        copyTo(copy)
        began = time.monotonic()
        if isNoticed(copy, ["tests.unit"], None):
            print("The tests fail without a break")
            return 1
        longest = _PATIENCE * (time.monotonic() - began)
        survivors = []
        for each in breaks:
            hasSurvived = survives(copy, each, longest)
            print("SURVIVED" if hasSurvived else "caught  ", each, flush=True)
            survivors += [each] if hasSurvived else []
    print(f"seed {seed}: {len(breaks) - len(survivors)} of {len(breaks)} caught", flush=True)
    return int(len(survivors) > options.allow)


def copyTo(folder: Path) -> None:
    """Copy the project without what git ignores."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


def draw(seed: int, count: int) -> list[Break]:
    """So many breaks, each of another statement."""
    package = ROOT / "txserviceregistry"
    paths = [path for area in _AREAS for path in sorted(package.glob(area))]
    breaks = [each for path in paths for each in breaksOf(path.relative_to(ROOT), path.read_text(encoding="utf-8"))]
    return random.Random(seed).sample(breaks, count)


def breaksOf(path: Path, source: str) -> Iterator[Break]:
    """One break for each statement and each condition in the functions of a module."""
    code = source.encode()
    starts = [0, *itertools.accumulate(len(line) for line in code.splitlines(keepends=True))]
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    seen: set[tuple[int, int]] = set()
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, (ast.If, ast.While)):
            changed, what = node.test, "inverted"
        elif _actsAlone(node):
            changed, what = node, "deleted"
        else:
            continue
        place = changed.lineno, changed.col_offset
        if place in seen:
            # A function in a function is met twice.
            continue
        seen.add(place)
        assert changed.end_lineno is not None and changed.end_col_offset is not None
        # Columns are counted in bytes.
        begin = starts[changed.lineno - 1] + changed.col_offset
        end = starts[changed.end_lineno - 1] + changed.end_col_offset
        was = code[begin:end].decode()
        text = f"(not ({was}))" if what == "inverted" else "pass"
        broken = code[:begin] + text.encode() + code[end:]
        yield Break(path, changed.lineno, what, " ".join(was.split()), broken.decode())


def _actsAlone(node: ast.AST) -> bool:
    """Whether a node is a simple statement that does something: neither a docstring nor a declaration of a type."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.AnnAssign):
        return node.value is not None
    simple = (ast.Assign, ast.AugAssign, ast.Delete, ast.Return, ast.Raise, ast.Break, ast.Continue)
    return isinstance(node, simple)


def survives(copy: Path, change: Break, longest: float) -> bool:
    """Whether no unit test notices a break."""
    module = copy / change.path
    original = module.read_text(encoding="utf-8")
    module.write_text(change.source, encoding="utf-8")
    try:
        return not any(isNoticed(copy, [tests], longest) for tests in testsOf(change.path))
    finally:
        module.write_text(original, encoding="utf-8")


def testsOf(path: Path) -> list[str]:
    """The tests that may notice a break of a module, those that are likely to first, and then all unit tests."""
    folder = Path("tests", "unit", *path.parent.parts[1:])
    module = folder / f"test_{path.name}"
    names = [".".join(module.with_suffix("").parts)] if (ROOT / module).exists() else []
    while folder.name != "unit":
        names.append(".".join(folder.parts))
        folder = folder.parent
    return [*names, "tests.unit"]


def isNoticed(copy: Path, tests: list[str], longest: float | None) -> bool:
    """Whether some tests fail, or don't end."""
    # -B: a module that is changed back within a second must not be taken from its cache.
    command = [sys.executable, "-B", "-m", "twisted.trial", "--exitfirst", *tests]
    # In the copy, Python finds the copy before the project that is installed.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.run(command, cwd=copy, timeout=longest, check=False, **quiet).returncode != 0
    except subprocess.TimeoutExpired:
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
