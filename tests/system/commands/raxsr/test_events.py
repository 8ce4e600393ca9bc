"""``raxsr events``, as installed, beside a real registry."""

from __future__ import annotations

import json
import os
from itertools import count

from tests.system.commands.raxsr.raxsrcase import RaxsrProcessTestCase
from tests.system.ports import freePorts
from tests.system.processes import reactor
from txserviceregistry import Client
from txserviceregistry.settings import readSettings


class EventsTests(RaxsrProcessTestCase):
    """The commands for events."""

    async def test_follow(self) -> None:
        """Events are printed as they come, until Ctrl-C; --since begins with an older one."""
        client = self.client()
        key = f"/{self.prefix}/value"
        await client.configuration.set(key, "before")
        # Another test's service may expire now.
        ours = ("--type", "configuration_value.update")
        [last] = (await self.good("events", "list", *ours, "--limit", "1", "-f", "json", "-q")).json
        since = ("events", "follow", "--since", last["id"])
        asJSON = self.started(*since, *ours, "-f", "json")
        asTable = self.started(*since)
        new = self.started("events", "follow", "-f", "value", "-c", "Payload")
        for child in (asJSON, asTable):
            await child.says("before")
        await client.configuration.remove(key)

        numbers = count()

        async def changedUntilHeard() -> bool:
            # The command that shows new events prints nothing when it begins. The same value again is not a change.
            await client.configuration.set(key, f"after {next(numbers)}")
            return "after" in new.output

        await self.until(changedUntilHeard)
        for child in (asJSON, asTable):
            await child.says("after")
        for child in self.children:
            child.kill("INT")
            await child.ended
            self.assertEqual((child.exitCode, child.errors), (130, ""))
        rows = [json.loads(line) for line in asJSON.output.splitlines()]
        self.assertEqual(rows[0], last)
        self.assertEqual({row["type"] for row in rows}, {"configuration_value.update"})
        self.assertEqual(len({row["id"] for row in rows}), len(rows))
        self.assertIn("configuration_value.remove", asTable.output)
        self.assertEqual(asTable.output.splitlines()[0].split("  ")[0], "Event ID")
        self.assertNotIn('"new_value": "before"', new.output)

    async def test_followsThroughARestart(self) -> None:
        """A registry that goes away and comes back is one line each, and no event is lost or told twice."""
        listen = f"tcp:{freePorts(1)[0]}:interface=127.0.0.1"
        registry = self.twistd("service-registry", "--listen", listen)
        await registry.says("Credentials")
        self.settings = {"RAXSR_RAXRC": os.path.join(self.dataDir, "raxrc")}
        settings = readSettings(environ={"HOME": self.home, **self.settings})
        client = self.client()
        await client.configuration.set("first", "1")
        [event] = (await self.good("events", "list", "-f", "json")).json
        follower = self.started("events", "follow", "--since", event["id"], "-f", "json")
        await follower.says("first")
        registry.kill("KILL")
        await registry.ended
        await follower.says("Event feed unreachable")
        registry = self.twistd("service-registry", "--listen", listen)
        await follower.says("Event feed reachable again")
        again = Client(reactor=reactor, settings=settings)
        self.addCleanup(again.close)
        await again.configuration.set("second", "2")
        await follower.says("second")
        follower.kill("TERM")
        await follower.ended
        self.assertEqual(follower.exitCode, 143)
        keys = [json.loads(line)["payload"]["configuration_value_id"] for line in follower.output.splitlines()]
        self.assertEqual(keys, ["first", "second"])
        self.assertEqual(len(follower.errors.splitlines()), 2, follower.errors)
