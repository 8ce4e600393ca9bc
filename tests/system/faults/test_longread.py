"""Row 34: another program reads the sqlite store for long in one transaction."""

from __future__ import annotations

import itertools
import sqlite3
import time
from pathlib import Path

import treq
from twisted.internet.defer import Deferred, gatherResults

from tests.system.processes import reactor
from txserviceregistry.registry.stores.sqlite.file import LOG_BYTES

from .faultcase import FaultCase

_WRITERS = 20
# Four bytes each, and twelve in an event's JSON: few writes make a large log.
_TEXT = "\N{GRINNING FACE}" * 1000


class LongReadTests(FaultCase):
    """Meanwhile SQLite can't reuse its write-ahead log, which grows with every write."""

    row = 34
    fault = "Another program keeps a read transaction of SQLite open under load"

    def setUp(self) -> None:
        super().setUp()
        self.log = Path(self.dataDir, "registry.sqlite-wal")
        self.longest = 0.0
        self.writing = True
        self.numbers = itertools.count()

    async def test_logIsCut(self) -> None:
        """Without such a reader the log stays small; after it, it is small again within seconds, and writes go on."""
        await self.registry()
        client = self.client(cache=None)
        size = (130 if self.isFull else 20) * 1_000_000

        async def write() -> None:
            while self.writing:
                key = f"key{next(self.numbers) % 500}"
                began = reactor.seconds()
                await client.configuration.set(key, f"{began}" + _TEXT)
                self.longest = max(self.longest, reactor.seconds() - began)

        writing = gatherResults([Deferred.fromCoroutine(write()) for _ in range(_WRITERS)])
        self.assertLessEqual(await self.writes(500), LOG_BYTES)
        reader = sqlite3.connect(self.log.with_suffix(".sqlite"), isolation_level=None)
        self.addCleanup(reader.close)
        began = next(self.numbers)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchone()

        async def isLarge() -> bool:
            return self.log.stat().st_size > size

        await self.until(isLarge, 0.01)

        async def isTold() -> bool:
            return await self.metric() > LOG_BYTES

        await self.until(isTold)
        self.tell("longest write before and during it, s", round(self.longest, 3))
        largest, self.longest = self.log.stat().st_size, 0.0
        reader.execute("COMMIT")
        ended = time.monotonic()

        async def isSmall() -> bool:
            return self.log.stat().st_size <= LOG_BYTES

        await self.until(isSmall, 0.01)
        self.tell("largest log, MB", round(largest / 1e6, 1))
        self.tell("time until it is cut to 16 MB, s", round(time.monotonic() - ended, 1))
        self.tell("longest write meanwhile, s", round(self.longest, 3))
        await self.until(self.isToldSmall)
        # The control: as many writes without the reader.
        count = next(self.numbers) - began
        grown = await self.writes(count)
        self.assertLessEqual(grown, LOG_BYTES)
        self.tell(f"largest log in {count} writes without a reader, MB", round(grown / 1e6, 1))
        self.writing = False
        await writing
        self.assertNoTraceback()

    async def writes(self, count: int) -> int:
        """Wait for so many writes; how large the log was at most."""
        end = next(self.numbers) + count
        largest = 0

        async def isThere() -> bool:
            nonlocal largest
            largest = max(largest, self.log.stat().st_size)
            return next(self.numbers) >= end

        await self.until(isThere, 0.01)
        return largest

    async def isToldSmall(self) -> bool:
        return await self.metric() <= LOG_BYTES

    async def metric(self) -> float:
        """The size of the log as the metrics have it."""
        response = await treq.get(f"http://127.0.0.1:{self.port}/metrics", persistent=False)
        text = await response.text()
        (line,) = (line for line in text.splitlines() if line.startswith("service_registry_store_wal_bytes "))
        return float(line.split()[1])
