"""
``python -m tests.mutation --seed N``: do the unit tests notice when a line of the program is wrong?

Draws statements of the parts that keep the promises (heartbeats, the registry's core, its stores in one process),
breaks each in turn in a copy of the project (deletes it, or inverts its condition), and runs the unit tests that
execute it. A break that no test notices has survived. ``--list`` only shows what the seed draws.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs

from . import ROOT

_AREAS = (
    "heartbeats/*.py",
    "registry/core.py",
    "registry/engine.py",
    "registry/locks.py",
    "registry/feed.py",
    "registry/stores/memory.py",
    "registry/stores/sqlite/*.py",
)
# A break is noticed if its tests take longer than so many seconds, and so many for each of them.
_PATIENCE = 60.0
_PATIENCE_EACH = 0.5


@attrs.frozen
class Break:
    """
    One change of the program.

    :ivar path: the module, relative to the project.
    :ivar line: its line, and *lines* all that it is written on, from those of its statement on.
    :ivar what: what is done to it: ``deleted`` or ``inverted``.
    :ivar was: the statement, or the condition, on one line.
    :ivar source: the module with the change.
    """

    path: Path
    line: int
    lines: range
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
        executed = mapTests(copy)
        survivors = []
        for each in breaks:
            found = {test for line in each.lines for test in executed.get(str(each.path), {}).get(line, ())}
            # Those of the module's own folder are more likely to notice.
            near = {*each.path.parent.parts, f"test_{each.path.stem}"}
            tests = sorted(found, key=lambda test, near=near: (-len(near.intersection(test.split("."))), test))
            hasSurvived = survives(copy, each, tests)
            print("SURVIVED" if hasSurvived else "caught  ", f"{each} ({len(tests)} tests)", flush=True)
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
        lines = range(node.lineno, changed.end_lineno + 1)
        yield Break(path, changed.lineno, lines, what, " ".join(was.split()), broken.decode())


def _actsAlone(node: ast.AST) -> bool:
    """Whether a node is a simple statement that does something: neither a docstring nor a declaration of a type."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.AnnAssign):
        return node.value is not None
    simple = (ast.Assign, ast.AugAssign, ast.Delete, ast.Return, ast.Raise, ast.Break, ast.Continue)
    return isinstance(node, simple)


def survives(copy: Path, change: Break, tests: list[str]) -> bool:
    """Whether none of some tests notices a break."""
    module = copy / change.path
    original = module.read_text(encoding="utf-8")
    module.write_text(change.source, encoding="utf-8")
    try:
        return not tests or passes(copy, tests)
    finally:
        module.write_text(original, encoding="utf-8")


def passes(copy: Path, tests: list[str]) -> bool:
    """Whether some tests pass in the copy."""
    # -B: a module that is changed back within a second must not be taken from its cache. In the copy, Python finds the
    # copy before the project that is installed.
    command = [sys.executable, "-B", "-m", "twisted.trial", "--exitfirst", *tests]
    patience = _PATIENCE + _PATIENCE_EACH * len(tests)
    try:
        return subprocess.run(command, cwd=copy, timeout=patience, capture_output=True, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def mapTests(copy: Path) -> dict[str, dict[int, list[str]]]:
    """The tests that execute each line, by module and line. Ends the program if tests fail without a break."""
    found = copy / "executed.json"
    program = f"from tests.mutation import mapInto; mapInto({str(found)!r})"
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The tests fail without a break:\n{done.stdout}{done.stderr}")
    return {
        path: {int(line): tests for line, tests in lines.items()}
        for path, lines in json.loads(found.read_text()).items()
    }


def mapInto(path: str) -> None:
    """Run all unit tests in this process, and write which test executes which lines."""
    from coverage import Coverage
    from twisted.trial.reporter import MinimalReporter
    from twisted.trial.runner import TestLoader, TrialRunner

    coverage = Coverage(data_file=None, include=[f"txserviceregistry/{area}" for area in _AREAS], config_file=False)

    class Reporter(MinimalReporter):
        def startTest(self, test: object) -> None:
            super().startTest(test)
            coverage.switch_context(test.id())

    coverage.start()
    result = TrialRunner(Reporter).run(TestLoader().loadByName("tests.unit", recurse=True))
    coverage.stop()
    data = coverage.get_data()
    executed = {
        os.path.relpath(file): {
            line: [test for test in tests if test] for line, tests in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    Path(path).write_text(json.dumps(executed))
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
