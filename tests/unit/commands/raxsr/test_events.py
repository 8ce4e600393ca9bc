"""``raxsr events``, beside a registry."""

from __future__ import annotations

import json

from twisted.internet.defer import gatherResults

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase

COLUMNS = ["id", "timestamp", "type", "payload"]


class EventsTests(RaxsrTestCase):
    """The commands for events."""

    async def test_list(self) -> None:
        """The newest events come first; a type, a limit, a marker and all of them can be asked for."""
        client = self.client()
        keys = [f"/{self.prefix}/value-{number}" for number in range(3)]
        for key in keys:
            await client.configuration.set(key, "1")
        await client.configuration.remove(keys[0])
        newest = await self.raxsr("events", "list", "--limit", "4", "-f", "json")
        rows = newest.json
        # Of older ones, if other tests have made some.
        self.assertRegex(newest.err, r"\A(raxsr: there are \d+ older events in the last hour: --all shows all\n)?\Z")
        self.assertEqual(list(rows[0]), COLUMNS)
        self.assertEqual(
            [row["type"] for row in rows], ["configuration_value.remove", *["configuration_value.update"] * 3]
        )
        self.assertIn(keys[0], json.dumps(rows[0]["payload"]))
        updates = await self.raxsr(
            "events", "list", "--type", "configuration_value.update", "--limit", "2", "-f", "json"
        )
        self.assertRegex(updates.err, r"there are \d+ older events")
        self.assertEqual([row["id"] for row in updates.json], [row["id"] for row in rows[1:3]])
        oldest = rows[-1]["id"]
        since = await self.good("events", "list", "--marker", oldest, "-f", "json")
        self.assertEqual([row["id"] for row in since.json[-4:]], [row["id"] for row in rows])
        page = await self.raxsr("events", "list", "--marker", oldest, "--limit", "2", "-f", "json")
        self.assertRegex(page.err, r"\Araxsr: there are more events: .*--marker \S+ shows the next page\n\Z")
        everything = await self.good("events", "list", "--all", "-f", "json")
        self.assertEqual(everything.json[:4], rows)
        self.assertIn("configuration_value.remove", (await self.good("events", "list", "--limit", "1", "-q")).out)
        self.assertIn("service.join", await self.refused("events", "list", "--type", "service.jion", code=2))
        await self.refused("events", "list", "--marker", "nonsense")

    async def test_allTurnsPages(self) -> None:
        """--all goes on to the last of more events than a page can hold."""
        client = self.client(maxConnections=8)
        key = f"/{self.prefix}/value"
        await client.configuration.set(key, "first")
        [first] = (await self.good("events", "list", "--limit", "1", "-f", "json", "-q")).json
        # A request's time counts from its call: on a busy machine the last of 1,000 at once would come too late.
        for begin in range(0, 1000, 50):
            await gatherResults([client.configuration.set(key, str(number)) for number in range(begin, begin + 50)])
        page = await self.good("events", "list", "--marker", first["id"], "--limit", "1000", "-f", "json", "-q")
        self.assertEqual(len(page.json), 1000)
        everything = await self.good("events", "list", "--marker", first["id"], "--all", "-f", "json")
        self.assertEqual((len(everything.json), everything.json[-1]), (1001, first))
