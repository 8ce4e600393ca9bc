"""``raxsr configuration history`` and ``rollback``, and conditional writes, beside a registry."""

from __future__ import annotations

from tests.fakeagent import API_KEY, FakeApi, answer, fault
from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry import Client
from txserviceregistry.commands.raxsr.events import firstMarker
from txserviceregistry.discovery.poller import timeOf
from txserviceregistry.errors import NotFound


class ConditionTests(RaxsrTestCase):
    """--if-match."""

    async def test_setAndRemove(self) -> None:
        """A write with the tag that get -c etag shows succeeds, and one with an earlier tag fails."""
        key = f"/{self.prefix}/port"
        await self.good("configuration", "set", key, "1")
        found = (await self.good("configuration", "get", key, "-c", "id", "-c", "etag", "-f", "json")).json
        self.assertEqual(list(found), ["id", "etag"])
        alone = (await self.good("configuration", "get", key, "-f", "value", "-c", "etag")).out.strip()
        self.assertEqual(alone, found["etag"])
        await self.good("configuration", "set", key, "2", "--if-match", alone)
        for tag in (alone, alone.strip('"'), f"W/{alone}", f'"0", {alone}'):
            for write in (("set", key, "3"), ("remove", key)):
                line = await self.refused("configuration", *write, "--if-match", tag)
                self.assertIn('412 preconditionFailed: precondition failed: Object "ConfigurationValue"', line)
        self.assertIn("ifMatch is", await self.refused("configuration", "set", key, "3", "--if-match", '"'))
        self.assertEqual((await self.good("configuration", "get", key, "-f", "value")).out, "2\n")
        etag = (await self.good("configuration", "get", key, "-c", "id", "-c", "etag", "-f", "json")).json["etag"]
        await self.good("configuration", "remove", key, "--if-match", etag.strip('"'))
        self.assertIn("does not exist", await self.refused("configuration", "set", key, "3", "--if-match", "*"))


class HistoryTests(RaxsrTestCase):
    """history and rollback."""

    async def test_history(self) -> None:
        """The changes of one value, the newest first."""
        key = f"/{self.prefix}/port"
        self.assertEqual((await self.good("configuration", "history", key, "-f", "json")).json, [])
        for value in ("1", "2", "2"):
            await self.good("configuration", "set", key, value)
        await self.good("configuration", "set", f"{key}s", "other")
        await self.good("configuration", "remove", key)
        rows = (await self.good("configuration", "history", key, "-f", "json")).json
        self.assertEqual(list(rows[0]), ["id", "timestamp", "old_value", "new_value"])
        changes = [(row["old_value"], row["new_value"]) for row in rows]
        self.assertEqual(changes, [("2", None), ("1", "2"), (None, "1")])
        table = (await self.good("configuration", "history", key)).out
        self.assertIn(rows[0]["id"], table)
        self.assertIn("Old Value", table)

    async def test_rollback(self) -> None:
        """A value is set to what it was after an event, made again, or removed."""
        key = f"/{self.prefix}/port"
        for value in ("1", "2"):
            await self.good("configuration", "set", key, value)
        await self.good("configuration", "remove", key)
        await self.good("configuration", "set", key, "3")
        third, removal, second, first = (await self.good("configuration", "history", key, "-f", "json")).json
        values = self.client().configuration
        for event, value in ((first, "1"), (second, "2"), (removal, None), (removal, None), (third, "3"), (first, "1")):
            said = await self.good("configuration", "rollback", key, "--to", event["id"].upper())
            if value is None:
                await self.failed(values.get(key))
            else:
                self.assertEqual(said.out, f'Value for key "{key}" set to "{value}"\n')
                self.assertEqual((await values.get(key))["value"], value)
        again = await self.good("configuration", "rollback", key, "--to", first["id"])
        self.assertIn("nothing has been changed", again.out)
        history = (await self.good("configuration", "history", key, "-f", "json")).json
        self.assertEqual([row["new_value"] for row in history], ["1", "3", None, "2", "1", "3", None, "2", "1"])

    async def test_theWholeFeedIsRead(self) -> None:
        """The feed is read from 30 days ago, or from the creation of an account that is younger."""
        now = 1_795_886_800.0
        for age, expected in (
            (30.0, None),
            (3_599.0, None),
            (3_601.5, 3_601.5),
            (86_400.0, 86_400.0),
            (4e6, 2_592_000.0),
        ):
            api = FakeApi(lambda sent, created=now - age: self.page(sent.url, created))
            client = Client("joe", API_KEY, baseUrl="http://registry/v1.0", authUrl="http://registry/v2.0", agent=api)
            marker = await firstMarker(client, now)
            found = None if marker is None else timeOf(marker)
            if expected is None or found is None:
                self.assertEqual(found, expected)
            else:
                self.assertLess(abs(now - found - expected), 0.0011)
            self.assertLess(len(api.calls), 40)

    def page(self, url: str, created: float) -> object:
        """The response of a registry whose account was created then."""
        moment = timeOf(url.partition("marker=")[2].partition("&")[0])
        if moment < created:
            return fault("badRequest", "from parameter must be greater than or equal to the account creation date")
        return answer(200, {"values": [], "metadata": {"next_marker": None}})

    async def failed(self, request: object) -> None:
        try:
            await request  # type: ignore[misc]  # a Deferred
        except NotFound:
            return
        self.fail("there is a value")

    async def test_whatIsNotAChange(self) -> None:
        """An event that is unknown, or of another value, is refused, and nothing is changed."""
        key, other = f"/{self.prefix}/port", f"/{self.prefix}/host"
        for one in (key, other):
            await self.good("configuration", "set", one, "1")
        event = (await self.good("configuration", "history", other, "-f", "json")).json[0]["id"]
        line = await self.refused("configuration", "rollback", key, "--to", event)
        self.assertIn(f'"{event}" is not a change of "{key}". See raxsr configuration history {key}', line)
        self.assertIn("Invalid UUID", await self.refused("configuration", "rollback", key, "--to", "x"))
        unknown = event[:-1] + ("0" if event[-1] != "0" else "1")
        self.assertIn("is not a change of", await self.refused("configuration", "rollback", key, "--to", unknown))
        await self.refused("configuration", "rollback", key, code=2)
