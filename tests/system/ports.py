"""
Ports for programs that have to be told one. No other test takes them meanwhile, also none in another process, and no
connection is given one by the system: a program finds its port free, also when it is started again.
"""

from __future__ import annotations

import random
import socket
from functools import cache
from pathlib import Path

_random = random.SystemRandom()
_held: dict[int, socket.socket] = {}


@cache
def _belowConnections() -> range:
    """The ports below those that the system gives connections; if it gives nearly all, some of them."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        lowest = 32_768
    return range(max(lowest - 17_000, 1_024), lowest) if lowest > 10_000 else range(15_000, 32_000)


def freePorts(count: int, among: range | None = None) -> list[int]:
    """Ports on which no program listens, reserved for this process until it ends."""
    found: list[int] = []
    while len(found) < count:
        port = _random.choice(among or _belowConnections())
        if reserve(port):
            found.append(port)
    return found


def reserve(port: int) -> bool:
    """Reserve a port; false if another test has it, or a program listens there."""
    # A name of Linux, which goes away with the process.
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0txserviceregistry-tests-{port}")
    except OSError:
        holder.close()
        return False
    if not isFree(port):
        holder.close()
        return False
    _held[port] = holder
    return True


def isFree(port: int) -> bool:
    """Whether no program listens there, at whatever address."""
    with socket.socket() as probe:
        # Connections that have ended a moment ago do not listen.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
