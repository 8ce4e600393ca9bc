"""
``python -m tests.system.faults.manyservices``: an application with thousands of services, which counts the
registered ones.

Whenever it reads a line from its standard input, it prints one with its figures, in JSON (:class:`Count`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from random import Random
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.protocols.basic import LineOnlyReceiver

from txserviceregistry import Client, RegisteredService, useMonotonic

__all__ = ["Count", "main"]


@attrs.define
class Count:
    """
    :ivar seconds: the time by this process's clock.
    :ivar registered: how many services are registered just now.
    :ivar losses: how often a service was anything but registered after it had been registered once.
    """

    seconds: float = 0.0
    registered: int = 0
    losses: int = 0


class _Questions(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, clock: Any, count: Count) -> None:
        self._clock = clock
        self._count = count

    def lineReceived(self, line: bytes) -> None:
        self._count.seconds = self._clock.seconds()
        print(json.dumps(attrs.asdict(self._count)), flush=True)


def main(arguments: list[str]) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults.manyservices", description=__doc__)
    parser.add_argument("--services", type=int, required=True, help="how many")
    parser.add_argument("--timeout", type=int, required=True, help="their heartbeat timeout, in seconds")
    options = parser.parse_args(arguments)
    useMonotonic()
    react(lambda reactor: _run(options, reactor))


def _run(options: argparse.Namespace, reactor: Any) -> Deferred[None]:
    count = Count()
    client = Client(reactor=reactor)
    draw = Random(8).random
    for number in range(options.services):
        service = RegisteredService(client, f"service{number:05}", options.timeout, random=draw)
        service.onStateChange(_Watch(count))
        service.startService()
    # Twisted would have our standard output not block.
    StandardIO(_Questions(reactor, count), stdout=os.open(os.devnull, os.O_WRONLY))
    # It is ended by a signal.
    return Deferred()


class _Watch:
    """Listens to the state of one service."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._isRegistered = False

    def __call__(self, state: str) -> None:
        if self._isRegistered:
            self._count.losses += 1
            self._count.registered -= 1
        self._isRegistered = state == "registered"
        self._count.registered += self._isRegistered


if __name__ == "__main__":
    main(sys.argv[1:])
