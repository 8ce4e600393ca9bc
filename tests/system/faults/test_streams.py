"""Row 43: a registry that is killed while states are set and event streams are read."""

from __future__ import annotations

from random import Random

from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .faultcase import FaultCase
from .states import StateWriter, StreamReader, begin, check


class StreamTests(FaultCase):
    """The registry's process ends by SIGKILL at any moment, and is started again over its data."""

    row = 43
    fault = "The registry is killed (SIGKILL) while states are set and event streams are read"

    async def test_streamsGoOn(self) -> None:
        """No acknowledged state is lost, and each stream has each event once and in order."""
        kills, random = 30 if self.isFull else 3, Random(self.row)
        registry = await self.registry()
        client = self.client(cache=None)
        writer = StateWriter(client)
        readers = [StreamReader(self.client(cache=None)) for _ in range(3)]
        for reader in readers:
            self.addCleanup(reader.stop)
        writing = writer.run()
        self.addCleanup(writer.end)
        await begin(self, readers)
        for _ in range(kills):
            await deferLater(reactor, random.uniform(0.05, 0.5))
            registry.kill("KILL")
            await registry.ended
            count = len(writer.acknowledged)
            registry = await self.registry()
            await self.until(lambda count=count: writer.hasWritten(count))
        writer.end()
        await writing
        self.tell("kills", kills)
        await check(self, client, writer, readers)
