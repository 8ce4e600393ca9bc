"""``raxsr services`` and ``raxsr account``, beside a registry."""

from __future__ import annotations

import csv
import io
import re
import sys
from unittest import mock

from twisted.internet.defer import gatherResults

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry.errors import NotFound

COLUMNS = ["id", "heartbeat_timeout", "last_seen", "tags", "metadata"]
TOKEN = "2d7ff6e8-c8e9-11f0-8de9-0242ac120002"
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class ServicesTests(RaxsrTestCase):
    """Services, one by one and in lists."""

    async def test_oneByOne(self) -> None:
        """create, get, heartbeat, update and remove do what they say, and say what they did."""
        id = self.prefix
        created = (
            await self.good(
                *("services", "create", id, "--heartbeat-timeout", "60", "--tags", "www,api", "--tags", r"a\,b"),
                *("--metadata", r"port=8000,url=http://h/?a=b\,c", "-f", "json"),
            )
        ).json
        self.assertEqual((created["id"], created["heartbeat_timeout"]), (id, 60))

        sent = (await self.good("services", "heartbeat", "--id", id, "--token", created["token"], "-f", "json")).json
        self.assertEqual(list(sent), ["id", "token"])

        got = (await self.good("services", "get", "--id", id, "-f", "json")).json
        self.assertEqual(list(got), COLUMNS)
        self.assertEqual(got["tags"], ["www", "api", "a,b"])
        self.assertEqual(got["metadata"], {"port": "8000", "url": "http://h/?a=b,c"})
        self.assertRegex(got["last_seen"], ISO)

        updated = await self.good("services", "update", id, "--tags", "x", "--heartbeat-timeout", "61")
        self.assertEqual(updated.out, f'Service "{id}" has been updated\n')
        got = (await self.good("services", "get", id, "-f", "json")).json
        self.assertEqual((got["tags"], got["heartbeat_timeout"], got["metadata"]["port"]), (["x"], 61, "8000"))

        removed = await self.good("services", "remove", id)
        self.assertEqual(removed.out, f'Service "{id}" has been removed\n')
        self.assertIn(f'there is no service "{id}"', await self.refused("services", "get", id))

    async def test_aFormatThatIsNotInstalled(self) -> None:
        """Nothing is changed if the result could not be shown."""
        for format, module in (("table", "prettytable"), ("yaml", "yaml")):
            with mock.patch.dict(sys.modules, {module: None}):
                said = await self.refused("services", "create", self.prefix, "-f", format)
            self.assertIn(f"the extra 'cli' is required, and {module} is not installed", said)
        self.assertEqual((await self.client().services.list())["values"], [])

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
        machine = (await self.good("services", "get", id, "-f", "json")).json["last_seen"]
        self.assertRegex(machine, ISO)
        # Kolkata is five and a half hours ahead, all the year.
        self.assertEqual((_minutes(local[1][11:16]) - _minutes(machine[11:16])) % 1440, 330)

        [row] = csv.DictReader(io.StringIO((await self.good("services", "get", id, "-f", "csv")).out))
        self.assertEqual(list(row), COLUMNS)
        self.assertEqual((row["tags"], row["metadata"], row["last_seen"]), (r"one,t\,wo", r"key=v=1\,2", machine))
        values = (await self.good("services", "get", id, "-f", "value", "-c", "Tags", "-c", "Service ID")).out
        self.assertEqual(sorted(values.splitlines()), sorted([r"one,t\,wo", id]))
        text = (await self.good("services", "get", id, "-f", "yaml")).out
        self.assertIn("tags:\n- one\n- t,wo\n", text)
        self.assertIn("metadata:\n  key: v=1,2\n", text)
        # Another command takes the output of one.
        await self.good("services", "update", id, "--tags", row["tags"], "--metadata", row["metadata"])
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
        self.assertEqual([list(rows[0]), [row["id"] for row in rows]], [COLUMNS, ids])
        page = await self.raxsr(*tag, "--limit", "2", "--marker", ids[1], "-f", "value", "-c", "Service ID")
        self.assertEqual((page.out.split(), len(page.err.splitlines())), (ids[1:3], 1))
        self.assertIn(f"--marker {ids[3]} shows the next page", page.err)
        last = await self.good(*tag, "--limit", "2", "--marker", ids[3], "-f", "value", "-c", "id")
        self.assertEqual(last.out.split(), ids[3:])
        await self.good(*tag, "--limit", "2", "-q")
        inOrder = await self.good(*tag, "--sort-column", "heartbeat_timeout", "-f", "value", "-c", "Service ID")
        self.assertEqual(inOrder.out.split(), ids[::-1])
        everything = await self.good("services", "list", "--all", "-f", "value", "-c", "Service ID")
        self.assertLessEqual(set(ids), set(everything.out.split()))
        none = await self.good("services", "list", "--tag", "unused")
        self.assertEqual(
            [line[0] for line in none.out.splitlines()], ["+", "|", "+", "+"][: len(none.out.splitlines())]
        )
        self.assertIn("Service ID", none.out)
        self.assertEqual((await self.good("services", "list", "--tag", "unused", "-f", "json")).json, [])

    async def test_neverSeen(self) -> None:
        """A service that has sent no heartbeat was never seen: a word for people, null for programs."""
        await self.clientWithServices(self.prefix)
        get = ("services", "get", self.prefix, "-c", "last_seen", "-f")
        self.assertRegex((await self.good(*get, "table")).out, r"Last Seen +\| never")
        self.assertEqual((await self.good(*get, "value")).out, "never\n")
        self.assertEqual((await self.good(*get, "json")).json, {"last_seen": None})
        self.assertEqual((await self.good(*get, "yaml")).out, "last_seen: null\n")
        self.assertEqual((await self.good(*get, "csv")).out, '"last_seen"\n""\n')

    async def test_addsAndRemoves(self) -> None:
        """Single pairs of metadata can be added, changed and removed, and all others stay."""
        client, id = self.client(), self.prefix
        await client.services.create(id, 60, {"tags": ["a", "b,c"], "metadata": {"keep": "1", "old": "2", "x": "3"}})
        update = ("services", "update", id)
        await self.good(*update, "--add-metadata", r"new=a=b\,c,x=4", "--remove-metadata", "old,none", "-q")
        await self.good(*update, "--add-metadata", "x=5", "--heartbeat-timeout", "61", "-q")
        service = await client.services.get(id)
        self.assertEqual(service["metadata"], {"keep": "1", "x": "5", "new": "a=b,c"})
        self.assertEqual((service["tags"], service["heartbeat_timeout"]), (["a", "b,c"], 61))
        await self.allRefused(
            [
                ((*update, "--metadata", "a=b", "--add-metadata", "c=d"), "--metadata replaces all"),
                ((*update, "--add-metadata", "a=b", "--remove-metadata", "a"), "both name 'a'"),
                ((*update, "--add-metadata", "novalue"), "--add-metadata: 'novalue'"),
            ],
            code=2,
        )
        missing = await self.refused("services", "update", f"{id}-none", "--add-metadata", "a=b")
        self.assertIn("there is no service", missing)

    async def test_html(self) -> None:
        """A table for a browser has what a table for a terminal has, and no value is taken for markup."""
        await self.client().services.create(self.prefix, 60, {"tags": ["here", "<b>&"], "metadata": {"k": "é"}})
        shown = _squeezed((await self.good("services", "list", "--tag", "here", "-f", "html")).out)
        self.assertIn("<tr><th>Service ID</th><th>Heartbeat Timeout</th><th>Last Seen</th>", shown)
        cells = f"<tr><td>{self.prefix}</td><td>60</td><td>never</td><td>here, &lt;b&gt;&amp;</td>"
        self.assertIn(f"{cells}<td>k=é</td></tr>", shown)
        one = _squeezed((await self.good("services", "get", self.prefix, "-f", "html", "-c", "tags")).out)
        self.assertIn("<tr><th>Field</th><th>Value</th></tr>", one)
        self.assertIn("<tr><td>Tags</td><td>here, &lt;b&gt;&amp;</td></tr>", one)
        self.assertIn("html", await self.refused("events", "follow", "-f", "html", code=2))

    async def test_moreThanAPage(self) -> None:
        """If there are more services than were requested, a note says how to list them."""
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
        self.assertEqual((await self.good("services", "get", id, "-f", "json")).json["metadata"], {"k": value})

    async def test_wrongUse(self) -> None:
        """An error on the command line is one line that suggests the right word, and exit code 2."""
        cases = [
            (["services", "lst"], "Did you mean services list"),
            (["servces", "list"], "Did you mean services list"),
            (["configuration", "delete", "key"], "import, list, remove, rollback"),
            (["services"], "services needs an action: create, drain, get, heartbeat, list, out, remove, states, up, "),
            (["services", "list", "--tga", "x"], "Did you mean --tag"),
            (["services", "list", "--limit", "0"], "from 1 to 1000"),
            (["services", "list", "--limit", "9" * 5000], "from 1 to 1000"),
            (["services", "list", "--limit", "5", "--all"], "not allowed"),
            (["services", "list", "-c", "Tgas"], "Did you mean tags"),
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
        """A refusal of the registry is one line that names the object, with exit code 1."""
        id = self.prefix
        await self.clientWithServices(id)
        cases = [
            (["services", "get", "unknown"], 'there is no service "unknown"'),
            (["services", "remove", "unknown"], 'there is no service "unknown"'),
            (["services", "update", "unknown", "--tags", "x"], 'there is no service "unknown"'),
            (["services", "heartbeat", "unknown", "--token", TOKEN], 'there is no service "unknown"'),
            (["services", "heartbeat", id, "--token", TOKEN], f'token does not belong to the service "{id}"'),
            (["services", "create", id], "already exists"),
            (["services", "create", "a/b"], "id"),
            (["services", "create", "abc", "--heartbeat-timeout", "2"], "3"),
        ]
        await self.allRefused(cases)
        with self.assertRaises(NotFound):
            await self.client().services.get("abc")

    async def test_account(self) -> None:
        """The limits are tables with the columns that people know."""
        rates = (await self.good("account", "rate-limits", "-f", "json")).json
        self.assertEqual(list(rates[0]), ["rate", "window", "used", "limit"])
        resources = (await self.good("account", "resource-limits", "-f", "json")).json
        self.assertEqual([list(row) for row in resources], [["resource", "limit"]] * len(resources))
        self.assertEqual(len(resources), 2)


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def _squeezed(text: str) -> str:
    """The text without blanks at the beginning of lines, and without line ends."""
    return "".join(map(str.strip, text.splitlines()))
