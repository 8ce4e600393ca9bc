"""Row 33: a disk on which changes have no room, or hardly any; and what /health says of it."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import attrs
import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.system.processes import Child, reactor
from txserviceregistry.errors import ServerError

from .storecase import StoreFaultCase

_PAGE = 4096
_WRITERS = 1
#: Seconds that /health believes what it found, and as much again for a machine that has other things to do.
_BELIEF = 2.0
#: Seconds that refused changes count at most when no others come, and the same.
_MEMORY = 7.0


@attrs.frozen
class _Seen:
    """A request, its beginning and end, and whether the registry was healthy."""

    began: float
    ended: float
    isWell: bool


class HealthTests(StoreFaultCase):
    """Values of 1 KB are written all the time, and /health is asked four times a second."""

    row = 33
    fault = "SQLite's disk has no room for values of 1 KB; /health is requested meanwhile"

    def setUp(self) -> None:
        super().setUp()
        self.writes: list[_Seen] = []
        self.answers: list[_Seen] = []
        self.isGoing = True
        self.numbers = itertools.count()

    async def start(self) -> tuple[Child, Deferred[Any]]:
        registry = await self.registry()
        self.isGoing = True
        self.writer = self.client(cache=None)
        await self.writer.configuration.set("before", "x")
        written = self.count(True)
        going = [Deferred.fromCoroutine(self.write()) for _ in range(_WRITERS)]

        async def writes() -> bool:
            return self.count(True) > written

        # Before anything is done to the disk, /health has its first answers to agree with.
        await self.until(writes)
        return registry, gatherResults([*going, Deferred.fromCoroutine(self.ask())])

    async def write(self) -> None:
        while self.isGoing:
            began = time.monotonic()
            try:
                await self.writer.configuration.set(f"key{next(self.numbers) % 500}", f"{began}" + "x" * 1000)
            except ServerError as error:
                self.assertEqual(error.status, 503)
                self.writes.append(_Seen(began, time.monotonic(), False))
            else:
                self.writes.append(_Seen(began, time.monotonic(), True))
            await deferLater(reactor, 0.1, lambda: None)

    async def ask(self) -> None:
        while self.isGoing:
            began = time.monotonic()
            response = await treq.get(f"http://127.0.0.1:{self.port}/health", persistent=False)
            await response.content()
            self.answers.append(_Seen(began, time.monotonic(), response.code == 200))
            await deferLater(reactor, 0.25, lambda: None)

    async def until_(self, isWell: bool) -> None:
        """Wait for the next answer of /health that says so."""
        since = time.monotonic()

        async def says() -> bool:
            return any(each.began > since and each.isWell is isWell for each in self.answers[-5:])

        await self.until(says)

    def check(self, what: str) -> None:
        """Each answer of /health has to agree with what writes met at about that time."""
        wrong = []
        for answer in self.answers:
            before = _BELIEF if answer.isWell else _MEMORY
            near = [each.isWell for each in self.writes if answer.began - before < each.ended < answer.ended + _BELIEF]
            if near and answer.isWell not in near:
                wrong.append(answer)
        self.assertEqual(wrong, [])
        self.tell(f"{what}: /health responses", len(self.answers))
        self.tell(f"{what}: writes acknowledged, refused", f"{self.count(True)}, {self.count(False)}")
        self.tell(f"{what}: wrong responses", len(wrong))

    def count(self, isWell: bool) -> int:
        return sum(each.isWell is isWell for each in self.writes)

    async def stays(self) -> None:
        """Wait for some more refused changes: at least ten seconds at full length, else one and a half."""
        wanted = self.count(False) + (100 if self.isFull else 15)

        async def areRefused() -> bool:
            return self.count(False) >= wanted

        await self.until(areRefused)

    async def test_almostFull(self) -> None:
        """If a few pages fit and no value does, /health responds as writes do, and recovers soon after."""
        self.mount()
        longest = 0.0
        for pages in range(1, 9) if self.isFull else (7,):
            registry, going = await self.start()
            await self.until_(True)
            self.fill()
            os.truncate(self.ballast, self.ballast.stat().st_size - pages * _PAGE)
            await self.until_(False)
            await self.stays()
            self.free()
            since = time.monotonic()
            await self.until_(True)
            longest = max(longest, time.monotonic() - since)
            self.isGoing = False
            await going
            registry.kill("TERM")
            await registry.ended
        self.check("room for a few pages")
        self.tell("longest time until /health responded 200, s", round(longest, 1))
        self.assertNoTraceback()

    async def test_full(self) -> None:
        """On a disk that is full to the last byte, /health answers 503 as long as writes do."""
        self.mount()
        _, going = await self.start()
        for _ in range(5 if self.isFull else 1):
            self.fill()
            await self.until_(False)
            await self.stays()
            self.free()
            await self.until_(True)
        self.isGoing = False
        await going
        self.check("full disk")
        self.assertNoTraceback()
