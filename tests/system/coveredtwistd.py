"""
twistd, for a run whose coverage is measured: a process that a signal ends, as twistd does, would take what was
measured with it.
"""

from __future__ import annotations

import sys
from typing import Any

import coverage
from twisted.scripts.twistd import run


def save() -> None:
    """Write what has been measured so far."""
    current = coverage.Coverage.current()
    if current is not None:
        current.save()


def main() -> None:
    """Run twistd, and save when its reactor has stopped."""
    # Programs look at their name.
    sys.argv[0] = "twistd"
    from twisted.internet import reactor

    anyReactor: Any = reactor
    anyReactor.addSystemEventTrigger("after", "shutdown", save)
    run()


if __name__ == "__main__":
    sys.exit(main())
