"""
The console script, which can report that the extra is not installed.
"""

from __future__ import annotations

import sys

from ..._version import installCommand
from ..console import runConsole


def main() -> int:
    """Run ``raxsr`` with the arguments of this process, and return the exit code."""
    return runConsole("raxsr", _run)


def _run() -> int:
    try:
        from .app import Raxsr
    except ImportError as error:
        if (error.name or "").startswith("txserviceregistry"):
            raise
        print(
            f"raxsr needs the extra 'cli', and {error.name or 'a part of it'} is not installed: "
            + installCommand("cli"),
            file=sys.stderr,
        )
        return 1
    return Raxsr().run(sys.argv[1:])
