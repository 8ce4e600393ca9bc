"""Row 44: nodes that are killed while states are set and event streams are read."""

from __future__ import annotations

from twisted.internet.task import deferLater

from tests.system.faults.states import StateWriter, StreamReader, begin, check
from tests.system.processes import reactor

from .clustercase import ClusterCase


class StreamTests(ClusterCase):
    """Each node in its turn is killed and started again."""

    row = 44
    fault = "Three nodes are killed (SIGKILL) in turn while states are set and event streams are read"

    async def test_streamsGoOn(self) -> None:
        """No acknowledged state is lost, and each stream has each event once and in order, whatever node it is at."""
        kills = 12 if self.isFull else 3
        await self.startCluster()
        client = self.client()
        writer = StateWriter(client)
        # Each begins at another node.
        readers = [StreamReader(self.client(*self.nodes[number:], *self.nodes[:number])) for number in range(3)]
        for reader in readers:
            self.addCleanup(reader.stop)
        writing = writer.run()
        self.addCleanup(writer.end)
        await begin(self, readers)
        for number in range(kills):
            node = self.nodes[number % 3]
            count = len(writer.acknowledged)
            await self.until(lambda count=count: writer.hasWritten(count + 10))
            await node.kill()
            await deferLater(reactor, 0.5)
            await node.start()
        writer.end()
        await writing
        self.tell("kills", kills)
        await check(self, client, writer, readers)
        self.assertNoTraceback([node.running for node in self.nodes])
