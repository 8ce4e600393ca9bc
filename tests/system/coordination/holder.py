"""
A process that competes for a lock until SIGTERM. While it holds the lock, it writes to a file when it found the lock
valid, and to a table that refuses older fences.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from twisted.application.service import Application
from twisted.internet.task import deferLater, react

from txserviceregistry import Client
from txserviceregistry.clock import useMonotonic
from txserviceregistry.coordination import Election, Leadership

NAME = "/tests/holder"
#: Seconds.
TIMEOUT = 3
# Seconds from one look to the next.
_STEP = 0.01


async def main(reactor: Any, label: str, folder: str) -> None:
    useMonotonic(reactor)
    client = Client.fromSettings(reactor)
    seen = Path(folder, "seen").open("a", buffering=1)  # noqa: SIM115  # it is open until the end of the process
    table = sqlite3.connect(Path(folder, "resource.db"), timeout=30, isolation_level=None)

    async def lead(leadership: Leadership) -> None:
        fence = leadership.fence
        while True:
            # The time comes first, so that the lock was valid at that time or later.
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            if leadership.isValid:
                seen.write(f"{fence} {now:.4f} {label}\n")
                table.execute("BEGIN IMMEDIATE")
                if table.execute("UPDATE resource SET fence = ? WHERE fence <= ?", (fence, fence)).rowcount:
                    table.execute("INSERT INTO writes (fence) VALUES (?)", (fence,))
                table.execute("COMMIT")
            await deferLater(reactor, _STEP)

    election = Election(client, NAME, lead, timeout=TIMEOUT, holder=label)
    election.setServiceParent(Application("holder"))
    election.startService()
    reactor.addSystemEventTrigger("before", "shutdown", election.stopService)
    await deferLater(reactor, 3600)


if __name__ == "__main__":
    react(main, sys.argv[1:])
