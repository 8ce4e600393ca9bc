"""``raxsr configuration``, beside a registry."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry.commands.raxsr.configuration import parseValues


class ConfigurationTests(RaxsrTestCase):
    """Values one by one, as files and as an environment."""

    async def test_keysAtTheTop(self) -> None:
        """An import that would set keys outside of all namespaces changes nothing, unless --root says that it may."""
        names = {f"top-{self.prefix}"[:40]: "1", f"/{self.prefix}/low": "2"}
        top = next(iter(names))
        for suffix, text in (("json", json.dumps(names)), ("yaml", "".join(f"{k}: '{v}'\n" for k, v in names.items()))):
            path = os.path.join(self.home, f"values.{suffix}")
            Path(path).write_text(text)
            line = await self.refused("configuration", "import", path)
            self.assertIn(f"'{top}': not in a namespace: give --namespace, or --root to set it at the top", line)
            self.assertIn("Nothing was changed", line)
        self.assertIn(
            "not allowed with",
            await self.refused("configuration", "import", path, "--root", "--namespace", "/x", code=2),
        )
        self.assertIn("no configuration value", await self.refused("configuration", "get", f"/{self.prefix}/low"))
        done = await self.good("configuration", "import", path, "--root")
        self.assertEqual(done.out, "Configuration values: 2 added, 0 changed, 0 unchanged\n")
        await self.good("configuration", "remove", top)

    async def test_oneByOne(self) -> None:
        """set, get, list and remove, with options and without."""
        key = f"/{self.prefix}/listen_ip"
        said = await self.good("configuration", "set", "--id", key, "--value", "127.0.0.1")
        self.assertEqual(said.out, f'Value for key "{key}" set to "127.0.0.1"\n')
        self.assertEqual(
            (await self.good("configuration", "set", key, "::1")).out, f'Value for key "{key}" set to "::1"\n'
        )
        self.assertEqual((await self.good("configuration", "set", key, "::2", "-q")).out, "")
        self.assertEqual((await self.good("configuration", "get", key, "-f", "value")).out, "::2\n")
        found = await self.good("configuration", "list", "--namespace", f"/{self.prefix}", "-f", "json")
        self.assertEqual(found.json, [{"id": key, "value": "::2"}])
        removed = await self.good("configuration", "remove", "--id", key)
        self.assertEqual(removed.out, f'Configuration value "{key}" has been removed\n')
        for action in ("get", "remove"):
            self.assertIn(f'there is no configuration value "{key}"', await self.refused("configuration", action, key))
        self.assertIn("VALUE --value is required", await self.refused("configuration", "set", key, code=2))

    async def test_namespaceWithoutSlash(self) -> None:
        """Commands that read take a namespace without its first slash too, as the import does."""
        space = f"{self.prefix}/www"
        await self.good("configuration", "import", "-", "--namespace", space, stdin=b"port: 80")
        listed = await self.good("configuration", "list", "--namespace", f"{space}/", "-f", "json")
        self.assertEqual(listed.json, [{"id": f"/{space}/port", "value": "80"}])
        exported = await self.good("configuration", "export", "-", "--namespace", space, "--format", "json")
        self.assertEqual(exported.json, {f"/{space}/port": "80"})

    async def test_whatCantBeSet(self) -> None:
        """A key or a value that no registry takes is told as an import tells it, and nothing is sent."""
        key = f"/{self.prefix}/listen_ip"
        await self.allRefused(
            [
                (("configuration", "set", *given, "--api-url", "http://127.0.0.1:9/v1.0"), text)
                for given, text in (
                    (("/own/sp", "x"), "'/own/sp': not a configuration key: 3 to 170 characters"),
                    (("/own/space/", "x"), "'/own/space/': not a configuration key"),
                    ((key, ""), "the value has 0 characters; 1 to 1024 are allowed"),
                )
            ]
        )

    async def test_files(self) -> None:
        """Import reads the files of export; a dry run shows what would change, and changes nothing."""
        space = f"/{self.prefix}"
        path = os.path.join(self.home, "values.yaml")
        with open(path, "w") as file:
            file.write(f"version: 1.10\nswitch: no\n{space}/deep/text: 'a: ü'\n")
        dry = await self.good("configuration", "import", path, "--namespace", space, "--dry-run")
        self.assertIn(f'+ {space}/version: "1.10"\n', dry.out)
        self.assertIn("3 added, 0 changed, 0 unchanged", dry.out)
        self.assertEqual((await self.good("configuration", "list", "--namespace", space, "-f", "json")).json, [])

        done = await self.good("configuration", "import", path, "--namespace", space)
        self.assertEqual(done.out, "Configuration values: 3 added, 0 changed, 0 unchanged\n")
        expected = {f"{space}/deep/text": "a: ü", f"{space}/switch": "no", f"{space}/version": "1.10"}
        out = os.path.join(self.home, "out.json")
        await self.good("configuration", "export", out, "--namespace", space)
        with open(out) as file:
            self.assertEqual(json.load(file), expected)
        self.assertEqual(os.stat(out).st_mode & 0o777, 0o600)
        shown = await self.good("configuration", "export", "-", "--namespace", space)
        self.assertEqual(
            (await self.good("configuration", "import", "-", stdin=shown.out.encode())).out,
            "Configuration values: 0 added, 0 changed, 3 unchanged\n",
        )
        await self.good("configuration", "set", f"{space}/switch", "yes")
        await self.good("configuration", "remove", f"{space}/version")
        dry = await self.good("configuration", "export", out, "--namespace", space, "--dry-run")
        self.assertIn(f'~ {space}/switch: "no" -> "yes"', dry.out)
        self.assertIn(f'- {space}/version: "1.10"', dry.out)
        with open(out) as file:
            self.assertEqual(json.load(file), expected)

    async def test_valuesThatATerminalObeys(self) -> None:
        """Output for people is escaped; output for programs is exact, and in CSV no spreadsheet computes it."""
        evil = "\x1b]0;owned\x07\x9b2J\u202e\x7f\r\nraxsr: a second line"
        key = f"/{self.prefix}/evil"
        said = await self.good("configuration", "set", key, evil)
        self.assertTrue(said.out.removesuffix("\n").isprintable(), said.out)
        for words in (("get", key), ("list", "--namespace", f"/{self.prefix}")):
            shown = await self.good("configuration", *words)
            self.assertTrue(shown.out.replace("\n", "").isprintable(), shown.out)
            found = (await self.good("configuration", *words, "-f", "json")).json
            self.assertEqual((found[0] if isinstance(found, list) else found)["value"], evil)
        exact = await self.good("configuration", "get", key, "-f", "value", "-c", "Value")
        self.assertEqual(exact.out, f"{evil}\n")
        for options in (["--dry-run"], ["--format", "json"], ["--format", "yaml"]):
            exported = await self.good("configuration", "export", "-", "--namespace", f"/{self.prefix}", *options)
            self.assertTrue(exported.out.replace("\n", "").isprintable(), exported.out)
            if options != ["--dry-run"]:
                self.assertEqual(parseValues(exported.out, options[1], "-", None), {key: evil})
        for error in (
            await self.refused("configuration", "get", f"/{self.prefix}/none\x1b[31m"),
            await self.refused("configuration", "set", f"/{self.prefix}/x\x1b[31m", "value"),
            await self.refused("services", "get", "web\x9b1"),
            await self.refused("events", "list", "--typ\x1be", code=2),
        ):
            self.assertTrue(error.removesuffix("\n").isprintable(), error)

    async def test_valuesThatASpreadsheetComputes(self) -> None:
        """A cell of CSV that begins like a formula is marked as text; other cells and formats are exact."""
        values = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=b", "'quoted", "1-1")
        client = self.client()
        for number, value in enumerate(values):
            await client.configuration.set(f"/{self.prefix}/value{number}", value)
        listed = ("configuration", "list", "--namespace", f"/{self.prefix}", "-c", "Value")
        shown = await self.good(*listed, "-f", "csv")
        rows = list(csv.reader(io.StringIO(shown.out, newline="")))
        self.assertEqual(
            [row[0] for row in rows[1:]], [f"'{value}" if value[0] in "=+-@\t\r" else value for value in values]
        )
        self.assertEqual([each["value"] for each in (await self.good(*listed, "-f", "json")).json], list(values))
        exact = await self.good(*listed, "-f", "value")
        self.assertEqual(exact.out, "".join(f"{value}\n" for value in values))

    async def test_localesThatAreNotUTF8(self) -> None:
        """Output for programs is UTF-8 in every locale, and import reads what export wrote."""
        space = f"/{self.prefix}"
        value = "é ü \u20ac \U0001f600"
        await self.client().configuration.set(f"{space}/value", value)
        for encoding in ("latin-1", "ascii"):
            locale = {"PYTHONIOENCODING": encoding}
            for format in ("yaml", "json"):
                export = ("configuration", "export", "-", "--namespace", space, "--format", format)
                shown = await self.raxsr(*export, environment=locale)
                self.assertIn(value, shown.out)
                again = ("configuration", "import", "-", "--namespace", space, "--format", format)
                done = await self.raxsr(*again, stdin=shown.out.encode(), environment=locale)
                self.assertEqual(done.out, "Configuration values: 0 added, 0 changed, 1 unchanged\n")
            for format in ("value", "csv"):
                listing = ("configuration", "list", "--namespace", space, "-f", format)
                self.assertIn(value, (await self.raxsr(*listing, environment=locale)).out)
        # A table is for people, and so in the encoding of their terminal.
        table = await self.raxsr("configuration", "list", "--namespace", space, environment=locale)
        self.assertIn(r"\xe9 \xfc \u20ac", table.out)

    async def test_brokenFiles(self) -> None:
        """A file with anything wrong in it changes nothing, and the line that is wrong is told."""
        space = f"/{self.prefix}"
        cases = []
        for name, text, expected in (
            ("a.json", '{"good": "1",\n "bad', "line 2"),
            ("b.json", '["good"]', "not a JSON object"),
            ("c.json", '{"good": "1", "good": "2"}', "duplicate key"),
            ("d.json", '{"good": "1", "nest": {"a": 1}}', "not a string"),
            ("e.yaml", "good: 1\nbad: [", "line 2"),
            ("f.yaml", "- good", "not a YAML mapping"),
            ("g.yaml", "good: 1\nx: 2\n", "'x'"),
            ("h.yaml", "good: 1\n/elsewhere/key: 2\n", "not below"),
            ("i.yaml", "good: ''\n", "0 characters"),
            ("j.json", "[" * 100_000, "not valid JSON"),
        ):
            path = os.path.join(self.home, name)
            with open(path, "w") as file:
                file.write(text)
            cases.append((["configuration", "import", path, "--namespace", space], expected))
        await self.allRefused(cases)
        with open(os.path.join(self.home, "k.json"), "wb") as binary:
            binary.write(b"\xff\xfe\x00")
        await self.refused("configuration", "import", "k.json", "--namespace", space)
        await self.refused("configuration", "import", "missing.yaml", "--namespace", space)
        self.assertEqual((await self.good("configuration", "list", "--namespace", space, "-f", "json")).json, [])

    async def test_exportReplacesAWholeFileOrNone(self) -> None:
        """If nothing can be written, the old file stays as it was."""
        target = os.path.join(self.home, "folder.yaml")
        os.mkdir(target)
        self.assertIn(target, await self.refused("configuration", "export", target))
        self.assertEqual(os.listdir(target), [])
        self.assertIn("/proc", await self.refused("configuration", "export", "/proc/nothing/here.yaml"))

    async def test_executeSendsNoKeyElsewhere(self) -> None:
        """A value gives the programs here no other server, to which they would send the API key."""
        space = f"/{self.prefix}"
        await self.client().configuration.set(f"{space}/raxsr_auth_url", "http://127.0.0.1:1/v2.0")
        run = ("configuration", "exec", "--namespace", space)
        line = await self.refused(*run, "--", "env")
        self.assertIn(f"{space}/raxsr_auth_url would be the environment variable RAXSR_AUTH_URL", line)
        self.assertIn("where API keys are sent", line)
