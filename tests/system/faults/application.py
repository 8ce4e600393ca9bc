"""
``python -m tests.system.faults.application``: an application under test, in a process of its own.

It keeps services registered, puts a load of writes on the registry if it is told to, and prints all that it asked for
and what came of it (:mod:`tests.system.faults.journal`). The registry's URL and the credentials come from the
environment as with every program of ours. On its standard input it takes commands, a line each:

===============  =====================================================================================
``pause``        finish what is under way and write nothing more; prints ``paused`` then
``resume``       go on writing
``block N FILE`` block the reactor for N seconds, and until there is this file
``occupy N``     keep all threads of the reactor's pool busy for N seconds; prints ``occupied``
``stop``         stop all services as an application does that ends, print ``stopped``, and end
===============  =====================================================================================
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from random import Random, random
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, formatEvent, globalLogBeginner
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from txserviceregistry import Client, HeartBeater, RegisteredService, useMonotonic
from txserviceregistry.errors import APIError, NotFound, ServerError, ServiceRegistryError
from txserviceregistry.util.deferred import returnsDeferred

from .journal import Outcome, note

__all__ = ["Load", "main"]

# How many keys a writer writes in turn, and how many services a creator keeps alive at once.
_KEYS = 5
_KEPT = 3
# How often the removal of a service is tried during a pause.
_TRIES_IN_PAUSE = 10
# Seconds: the timeout of a creator's service for which no heartbeats are sent, the longest there is.
_LONGEST_TIMEOUT = 120


def main(arguments: list[str]) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults.application", description=__doc__)
    parser.add_argument("--prefix", default="app", help="what the ids of its services and values begin with")
    parser.add_argument("--services", type=int, default=0, help="how many RegisteredServices")
    parser.add_argument("--timeout", type=int, default=3, help="their heartbeat timeout, in seconds")
    parser.add_argument("--writers", type=int, default=0, help="how many set and remove configuration values")
    parser.add_argument("--creators", type=int, default=0, help="how many create, heartbeat and remove services")
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between two operations of each of them")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance")
    parser.add_argument("--request-timeout", type=float, default=10.0, help="seconds that a request may take")
    parser.add_argument("--in-order", action="store_true", help="begin with the first of several servers")
    parser.add_argument("--check", action="store_true", help="give them a check, so that each is heartbeated alone")
    parser.add_argument("--connections", type=int, default=2, help="to the registry, at most")
    options = parser.parse_args(arguments)
    useMonotonic()
    globalLogBeginner.beginLoggingTo([_log], redirectStandardIO=False)
    react(lambda reactor: Deferred.fromCoroutine(_run(options, reactor)))


async def _run(options: argparse.Namespace, reactor: Any) -> None:
    stopping: Deferred[None] = Deferred()
    draw = (lambda: 0.0) if options.in_order else random
    client = Client(reactor=reactor, timeout=options.request_timeout, maxConnections=options.connections, random=draw)
    load = Load(client, reactor, options)
    check = (lambda: True) if options.check else None
    services = [
        _service(client, f"{options.prefix}{number}", options.timeout, check) for number in range(options.services)
    ]
    for service in services:
        service.startService()
    load.resume()
    # The journal goes out by itself; Twisted would have our standard output not block.
    StandardIO(_Commands(load, stopping, reactor.getThreadPool().max), stdout=os.open(os.devnull, os.O_WRONLY))
    note("started")
    await stopping
    await load.end()
    await gatherResults([service.stopService() for service in services])
    await client.close()
    note("stopped")


def _service(client: Client, id: str, timeout: int, check: Callable[[], bool] | None) -> RegisteredService:
    service = RegisteredService(client, id, timeout, tags=["faults"], check=check)
    service.onStateChange(lambda state: note("state", id=id, state=state))
    service.onRegistrationFailure(lambda error: note("trouble", id=id, error=type(error).__name__, text=str(error)))
    return service


def _log(event: Any) -> None:
    if event["log_level"] >= LogLevel.warn:
        text = formatEvent(event)
        failure = event.get("log_failure")
        note("log", text=text if failure is None else f"{text}\n{failure.getTraceback()}")


class Load:
    """
    Writers and creators; each does one thing after the other, to values and services of its own.

    :param options: ``writers``, ``creators``, ``prefix``, ``timeout``, ``pace`` and ``seed``; see :func:`main`.
    :param tell: called with all that is done; as :func:`~tests.system.faults.journal.note`.
    """

    def __init__(
        self, client: Client, clock: Any, options: argparse.Namespace, tell: Callable[..., None] = note
    ) -> None:
        self._client = client
        self.tell = tell
        self._clock = clock
        self._options = options
        self._random = Random(options.seed)
        self._numbers = itertools.count()
        self._isPaused = True
        self._working: list[Deferred[None]] = []
        prefix = options.prefix
        writers = [_Writer(self, f"{prefix}-{number}") for number in range(options.writers)]
        self._creators = [_Creator(self, f"{prefix}-{number}") for number in range(options.creators)]
        self._workers: list[Callable[[], Awaitable[None]]] = [each.step for each in (*writers, *self._creators)]

    @property
    def client(self) -> Client:
        return self._client

    @property
    def random(self) -> Random:
        return self._random

    @property
    def timeout(self) -> int:
        timeout: int = self._options.timeout
        return timeout

    @property
    def isPaused(self) -> bool:
        """Whether nothing new is begun."""
        return self._isPaused

    def nextNumber(self) -> int:
        """A number that nothing else has."""
        return next(self._numbers)

    def resume(self) -> None:
        if self._isPaused:
            self._isPaused = False
            self._working = [Deferred.fromCoroutine(self._work(step)) for step in self._workers]

    async def pause(self) -> None:
        self._isPaused = True
        working, self._working = self._working, []
        await gatherResults(working)

    async def end(self) -> None:
        await self.pause()
        await gatherResults([Deferred.fromCoroutine(creator.end()) for creator in self._creators])

    async def _work(self, step: Callable[[], Awaitable[None]]) -> None:
        while not self._isPaused:
            await step()
            await self.rest()

    async def rest(self) -> None:
        await deferLater(self._clock, self._options.pace * (0.5 + self._random.random()), lambda: None)

    async def do(self, what: str, id: str, work: Callable[[], Deferred[Any]], value: str | None = None) -> Any:
        """
        Do one thing, and note it.

        :return: the outcome, and the result if it is acknowledged.
        """
        number = self.nextNumber()
        self.tell("begun", number=number, what=what, id=id, value=value)
        try:
            result = await work()
        except ServiceRegistryError as error:
            isRefused = isinstance(error, APIError) and not isinstance(error, ServerError) and bool(error.type)
            outcome = Outcome.refused if isRefused else Outcome.unknown
            self.tell("ended", number=number, outcome=outcome.value, error=type(error).__name__, text=str(error))
            return outcome, None
        self.tell("ended", number=number, outcome=Outcome.acknowledged.value)
        return Outcome.acknowledged, result


class _Writer:
    """Sets and removes some configuration values; half of the sets have the condition that nothing has changed."""

    def __init__(self, load: Load, name: str) -> None:
        self._load = load
        self._keys = [f"/{name}/key{number}" for number in range(_KEYS)]

    async def step(self) -> None:
        key = self._load.random.choice(self._keys)
        configuration = self._load.client.configuration
        if self._load.random.random() < 0.8:
            value = str(self._load.nextNumber())
            change = configuration.set if self._load.random.random() < 0.5 else self._setIf
            await self._load.do("set", key, lambda: change(key, value), value)
        else:
            await self._load.do("unset", key, lambda: configuration.remove(key))

    @returnsDeferred
    async def _setIf(self, key: str, value: str) -> None:
        configuration = self._load.client.configuration
        try:
            found = await configuration.getWithEtag(key)
        except NotFound:
            await configuration.set(key, value, ifNoneMatch="*")
        else:
            await configuration.set(key, value, ifMatch=found["etag"])


class _Creator:
    """
    Creates services: some are removed soon, others are kept alive for a while by the HeartBeater that came with them.
    """

    def __init__(self, load: Load, name: str) -> None:
        self._load = load
        self._name = name
        self._beating: list[tuple[str, HeartBeater]] = []
        # Not surely removed when there was a pause.
        self._left: list[str] = []

    async def step(self) -> None:
        load = self._load
        await self._removeLeft()
        if load.isPaused:
            return
        isKept = load.random.random() < 0.3
        timeout = load.timeout if isKept else _LONGEST_TIMEOUT
        id = f"{self._name}-{load.nextNumber()}"
        outcome, created = await load.do("create", id, lambda: load.client.services.create(id, timeout))
        if outcome is Outcome.acknowledged and isKept:
            self._keep(id, created[1])
        elif outcome is not Outcome.refused:
            self._left.append(id)
            await self._removeLeft()
        if len(self._beating) > _KEPT:
            await self._end()

    async def end(self) -> None:
        while self._left or self._beating:
            await self._removeLeft()
            if self._beating:
                await self._end()

    async def _removeLeft(self) -> None:
        while self._left and await self._remove(self._left[0]):
            self._left.pop(0)

    async def _end(self) -> None:
        id, heartBeater = self._beating[0]
        # It is heartbeated until it is surely gone, so that its timeout is never to blame for that.
        self._load.tell("resting", id=id)
        # Without a response it stays at rest: it may be gone.
        if await self._remove(id):
            self._beating.pop(0)
            await heartBeater.stop()

    def _keep(self, id: str, heartBeater: HeartBeater) -> None:
        heartBeater.start()
        self._load.tell("keptAlive", id=id)
        heartBeater.whenStopped().addErrback(lambda _: self._load.tell("lost", id=id))
        self._beating.append((id, heartBeater))

    async def _remove(self, id: str) -> bool:
        """
        :return: whether it is surely gone. During a pause it is tried some more times only, since the registry may be
            unable to do it before the pause ends.
        """
        left = _TRIES_IN_PAUSE
        while left:
            outcome, _ = await self._load.do("remove", id, lambda: self._load.client.services.remove(id))
            if outcome is not Outcome.unknown:
                return True
            await self._load.rest()
            left -= self._load.isPaused
        return False


class _Commands(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, load: Load, stopping: Deferred[None], threads: int) -> None:
        self._load = load
        self._stopping = stopping
        self._threads = threads

    def lineReceived(self, line: bytes) -> None:
        command, *arguments = line.decode().split()
        if command == "pause":
            Deferred.fromCoroutine(self._load.pause()).addCallback(lambda _: note("paused"))
        elif command == "resume":
            self._load.resume()
        elif command == "block":
            time.sleep(float(arguments[0]))
            while not os.path.exists(arguments[1]):
                time.sleep(0.01)
            note("blocked")
        elif command == "occupy":
            for _ in range(self._threads):
                deferToThread(time.sleep, float(arguments[0]))
            note("occupied")
        elif command == "stop":
            self._stop()
        else:
            raise ValueError(command)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # The program that gave the commands has ended.
        self._stop()

    def _stop(self) -> None:
        if not self._stopping.called:
            self._stopping.callback(None)


if __name__ == "__main__":
    main(sys.argv[1:])
