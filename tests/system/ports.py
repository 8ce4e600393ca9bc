"""
Ports for programs that have to be told one. No other test takes them meanwhile, also none in another process, and no
connection is given one by the system: a program finds its port free, also when it is started again.
"""

from __future__ import annotations

import random
import socket

# Below those that connections are given.
_PORTS = range(15_000, 32_000)

_random = random.SystemRandom()
_held: dict[int, socket.socket] = {}


def freePorts(count: int, among: range = _PORTS) -> list[int]:
    """Ports on which no program listens, reserved for this process until it ends."""
    found: list[int] = []
    while len(found) < count:
        port = _random.choice(among)
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
