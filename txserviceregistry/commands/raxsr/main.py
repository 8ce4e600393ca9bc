"""The console script, which can report that the extra is not installed."""

from __future__ import annotations

import sys

from ..._version import installCommand
from ..console import runConsole
from ..outcome import CommandFailed


def main() -> int:
    """Run ``raxsr`` with the arguments of this process, and return the exit code."""
    return runConsole("raxsr", _run)


def _run() -> int:
    try:
        from .app import Raxsr
    except ImportError as error:
        if (error.name or "").startswith("txserviceregistry"):
            raise
        missing = f"the extra 'cli' is required, and {error.name or 'a part of it'} is not installed"
        raise CommandFailed(f"{missing}: {installCommand('cli')}") from None
    return Raxsr().run(sys.argv[1:])
