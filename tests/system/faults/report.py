"""
``python -m tests.system.faults.report``: runs every row of the fault table at full length and writes the table.

With names of tests (``tests.system.faults.test_kills``) only these are run; the other rows of the table stay as
they are.
``--short`` runs the rows as short as the test suite does, and leaves the table alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.system.faults.faultcase import FIGURES, FULL

_DOCS = ROOT / "docs"
# The kept figures, and the table that is made of it.
_KEPT = _DOCS / "reliability-figures.json"
_TABLE = _DOCS / "reliability-figures.rst"


def main(arguments: list[str] | None = None) -> int:
    """
    :return: the exit code: trial's.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults.report", description=__doc__)
    parser.add_argument(
        "tests", nargs="*", default=["tests.system.faults", "tests.system.cluster"], help="modules or tests to run"
    )
    parser.add_argument("--short", action="store_true", help="as short as in the test suite; writes no table")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    code, rows = _run(options.tests, isFull=not options.short)
    for number in sorted(rows, key=int):
        print(f"\nRow {number}: {rows[number]['fault']}")
        for what, figure in rows[number]["figures"].items():
            print(f"    {what}: {figure}")
    print(f"\n{len(rows)} rows in {time.monotonic() - began:.0f} s")
    if code == 0 and not options.short:
        kept = json.loads(_KEPT.read_text("utf-8")) if _KEPT.exists() else {}
        kept.update(rows)
        # The figures of a row stay in the order in which they were told.
        ordered = {number: kept[number] for number in sorted(kept, key=int)}
        _KEPT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _TABLE.write_text(_table(kept), "utf-8")
        print(f"Written to {_TABLE}")
    return code


def _run(tests: Iterable[str], *, isFull: bool) -> tuple[int, dict[str, Any]]:
    """Trial's exit code, and by row what it is and its figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures")
        figures.touch()
        environment = {**os.environ, FIGURES: str(figures), **({FULL: "1"} if isFull else {})}
        trial = Path(sys.executable).with_name("trial")
        code = subprocess.run([str(trial), *tests], env=environment, check=False).returncode
        rows: dict[str, Any] = {}
        for line in map(json.loads, figures.read_text("utf-8").splitlines()):
            row = rows.setdefault(str(line["row"]), {"figures": {}})
            row["fault"] = line["fault"]
            row["figures"][line["what"]] = line["figure"]
        return code, rows


def _table(rows: Mapping[str, Any]) -> str:
    lines = [
        "Made by ``python -m tests.system.faults.report`` "
        f"(Python {platform.python_version()}, {os.cpu_count()} cores).",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 5 40 55",
        "",
        "   * - Row",
        "     - Fault",
        "     - Figures",
    ]
    for number in sorted(rows, key=int):
        lines += [f"   * - {number}", f"     - {rows[number]['fault']}"]
        # Figures with the same prefix share a line.
        grouped: dict[str, list[str]] = {}
        for what, figure in rows[number]["figures"].items():
            prefix, separator, name = what.rpartition(": ")
            grouped.setdefault(prefix + separator or what, []).append(f"{name}: {figure}")
        figures = [f"| {prefix if prefix.endswith(': ') else ''}{'; '.join(of)}" for prefix, of in grouped.items()]
        lines += [f"     {'-' if nth == 0 else ' '} {figure}" for nth, figure in enumerate(figures)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
