"""``raxsr services`` and ``raxsr account``, as installed, beside a real registry."""

from __future__ import annotations

import csv
import io
import re

from twisted.internet.defer import gatherResults

from tests.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry.errors import NotFound

COLUMNS = ["Service ID", "Heartbeat Timeout", "Last Seen", "Tags", "Metadata"]
TOKEN = "2d7ff6e8-c8e9-11f0-8de9-0242ac120002"
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class ServicesTests(RaxsrTestCase):
    """A service's life, by hand."""

    async def test_life(self) -> None:
        """create, get, heartbeat, update and remove do what they say, and say what they did."""
        id = self.prefix
        created = (
            await self.good(
                *("services", "create", id, "--heartbeat-timeout", "60", "--tags", "www,api", "--tags", r"a\,b"),
                *("--metadata", r"port=8000,url=http://h/?a=b\,c", "-f", "json"),
            )
        ).json
        self.assertEqual((created["Service ID"], created["Heartbeat Timeout"]), (id, 60))

        beaten = (await self.good("services", "heartbeat", "--id", id, "--token", created["Token"], "-f", "json")).json
        self.assertEqual(list(beaten), ["Service ID", "Token"])

        got = (await self.good("services", "get", "--id", id, "-f", "json")).json
        self.assertEqual(list(got), COLUMNS)
        self.assertEqual(got["Tags"], ["www", "api", "a,b"])
        self.assertEqual(got["Metadata"], {"port": "8000", "url": "http://h/?a=b,c"})
        self.assertRegex(got["Last Seen"], ISO)

        updated = await self.good("services", "update", id, "--tags", "x", "--heartbeat-timeout", "61")
        self.assertEqual(updated.out, f'Service "{id}" has been updated\n')
        got = (await self.good("services", "get", id, "-f", "json")).json
        self.assertEqual((got["Tags"], got["Heartbeat Timeout"], got["Metadata"]["port"]), (["x"], 61, "8000"))

        removed = await self.good("services", "remove", id)
        self.assertEqual(removed.out, f'Service "{id}" has been removed\n')
        self.assertIn(f'there is no service "{id}"', await self.refused("services", "get", id))

    async def test_formats(self) -> None:
        """Every format has every column; times are local in tables and UTC elsewhere; structures stay structures."""
        client = self.client()
        id = self.prefix
        body, _ = await client.services.create(id, 120, {"tags": ["one", "t,wo"], "metadata": {"key": "v=1,2"}})
        await client.services.heartbeat(id, body["token"])
        seen = (await client.services.get(id))["last_seen"]
        assert seen is not None

        table = (await self.good("services", "get", id)).out
        local = re.search(r"Last Seen +\| (\S+ \S+)", table)
        assert local is not None
        machine = (await self.good("services", "get", id, "-f", "json")).json["Last Seen"]
        self.assertRegex(machine, ISO)
        # Kolkata is five and a half hours ahead, all the year.
        self.assertEqual((_minutes(local[1][11:16]) - _minutes(machine[11:16])) % 1440, 330)

        [row] = csv.DictReader(io.StringIO((await self.good("services", "get", id, "-f", "csv")).out))
        self.assertEqual(list(row), COLUMNS)
        self.assertEqual((row["Tags"], row["Metadata"], row["Last Seen"]), (r"one,t\,wo", r"key=v=1\,2", machine))
        values = (await self.good("services", "get", id, "-f", "value", "-c", "Tags", "-c", "Service ID")).out
        self.assertEqual(sorted(values.splitlines()), sorted([r"one,t\,wo", id]))
        text = (await self.good("services", "get", id, "-f", "yaml")).out
        self.assertIn("Tags:\n- one\n- t,wo\n", text)
        self.assertIn("Metadata:\n  key: v=1,2\n", text)
        # What one command shows, another one takes.
        await self.good("services", "update", id, "--tags", row["Tags"], "--metadata", row["Metadata"])
        service = await client.services.get(id)
        self.assertEqual((service["tags"], service["metadata"]), (["one", "t,wo"], {"key": "v=1,2"}))

    async def test_lists(self) -> None:
        """A list can be of a tag, a page or everything, and sorted; what is not found is an empty table."""
        ids = [f"{self.prefix}-{number}" for number in range(5)]
        client = self.client()
        for index, id in enumerate(ids):
            await client.services.create(id, 100 - index, {"tags": [self.prefix]})
        tag = ("services", "list", "--tag", self.prefix)
        rows = (await self.good(*tag, "-f", "json")).json
        self.assertEqual([list(rows[0]), [row["Service ID"] for row in rows]], [COLUMNS, ids])
        page = await self.good(*tag, "--limit", "2", "--marker", ids[1], "-f", "value", "-c", "Service ID")
        self.assertEqual(page.out.split(), ids[1:3])
        inOrder = await self.good(*tag, "--sort-column", "heartbeat_timeout", "-f", "value", "-c", "Service ID")
        self.assertEqual(inOrder.out.split(), ids[::-1])
        everything = await self.good("services", "list", "--all", "-f", "value", "-c", "Service ID")
        self.assertLessEqual(set(ids), set(everything.out.split()))
        none = await self.good("services", "list", "--tag", "nobody-has-it")
        self.assertEqual(
            [line[0] for line in none.out.splitlines()], ["+", "|", "+", "+"][: len(none.out.splitlines())]
        )
        self.assertIn("Service ID", none.out)
        self.assertEqual((await self.good("services", "list", "--tag", "nobody-has-it", "-f", "json")).json, [])

    async def test_moreThanAPage(self) -> None:
        """Where there is more than was asked for, a note says how to get it."""
        client = self.client(maxConnections=8)
        key = f"/{self.prefix}/value-"
        await gatherResults([client.configuration.set(f"{key}{number:03}", "x") for number in range(101)])
        listing = ("configuration", "list", "--namespace", f"/{self.prefix}", "-f", "json")
        self.assertEqual(len((await self.good(*listing, "--all")).json), 101)
        some = await self.raxsr(*listing)
        self.assertEqual((len(some.json), some.code, len(some.err.splitlines())), (100, 0, 1))
        self.assertIn("--all", some.err)

    async def test_whatIsLongStaysWhole(self) -> None:
        """In a pipe nothing is cut, broken or coloured, and no value can move a terminal's cursor."""
        id = self.prefix
        value = "long " * 40 + "\x1b[31mred\x1b[0m"
        await self.client().services.create(id, 120, {"metadata": {"k": value}})
        table = (await self.good("services", "get", id)).out
        self.assertIn("long " * 40 + r"\x1b[31mred", table)
        self.assertNotIn("\x1b", table)
        self.assertEqual((await self.good("services", "get", id, "-f", "json")).json["Metadata"], {"k": value})

    async def test_wrongUse(self) -> None:
        """What is wrong on the command line is one line that suggests what is right, and exit code 2."""
        cases = [
            (["services", "lst"], "Did you mean services list"),
            (["servces", "list"], "Did you mean services list"),
            (["services"], "There is: create, get, heartbeat, list, remove, update"),
            (["services", "list", "--tga", "x"], "Did you mean --tag"),
            (["services", "list", "--limit", "0"], "from 1 to 1000"),
            (["services", "list", "--limit", "5", "--all"], "not allowed"),
            (["services", "list", "-c", "Tgas"], "Did you mean Tags"),
            (["services", "list", "extra"], "extra"),
            (["services", "get"], "required"),
            (["services", "update", "web1"], "nothing to change"),
            (["services", "create", "web1", "--metadata", "novalue"], "novalue"),
            (["services", "list", "-f", "xml"], "xml"),
            (["--nonsense"], "--nonsense"),
            (["services", "list", "--api-url", "nonsense"], "--api-url"),
            (["help", "services", "lst"], "Did you mean services list"),
        ]
        await self.allRefused(cases, code=2)

    async def test_failures(self) -> None:
        """What the registry refuses is told in one line that names the thing, with exit code 1."""
        id = self.prefix
        await self.clientWithServices(id)
        cases = [
            (["services", "get", "nobody"], 'there is no service "nobody"'),
            (["services", "remove", "nobody"], 'there is no service "nobody"'),
            (["services", "update", "nobody", "--tags", "x"], 'there is no service "nobody"'),
            (["services", "heartbeat", "nobody", "--token", TOKEN], 'there is no service "nobody"'),
            (["services", "heartbeat", id, "--token", TOKEN], f'none of the service "{id}"'),
            (["services", "create", id], "is there already"),
            (["services", "create", "a/b"], "id"),
            (["services", "create", "abc", "--heartbeat-timeout", "2"], "3"),
        ]
        await self.allRefused(cases)
        with self.assertRaises(NotFound):
            await self.client().services.get("abc")

    async def test_account(self) -> None:
        """The limits are tables with the columns that people know."""
        rates = (await self.good("account", "rate-limits", "-f", "json")).json
        self.assertEqual(list(rates[0]), ["Rate", "Window", "Used", "Limit"])
        resources = (await self.good("account", "resource-limits", "-f", "json")).json
        self.assertEqual([list(row) for row in resources], [["Resource", "Limit"]] * len(resources))
        self.assertEqual(len(resources), 2)


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
