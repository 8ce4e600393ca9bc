"""``raxsr configuration``, as installed, beside a real registry."""

from __future__ import annotations

import json
import os
import sys

from tests.commands.raxsr.raxsrcase import RaxsrTestCase


class ConfigurationTests(RaxsrTestCase):
    """Values one by one, as files and as an environment."""

    async def test_oneByOne(self) -> None:
        """set, get, list and remove, with options and without."""
        key = f"/{self.prefix}/listen_ip"
        said = await self.good("configuration", "set", "--id", key, "--value", "127.0.0.1")
        self.assertEqual(said.out, f'Value for key "{key}" set to "127.0.0.1"\n')
        self.assertEqual(
            (await self.good("configuration", "set", key, "::1")).out, f'Value for key "{key}" set to "::1"\n'
        )
        self.assertEqual((await self.good("configuration", "set", key, "::2", "-q")).out, "")
        self.assertEqual((await self.good("configuration", "get", key, "-f", "value", "-c", "Value")).out, "::2\n")
        found = await self.good("configuration", "list", "--namespace", f"/{self.prefix}", "-f", "json")
        self.assertEqual(found.json, [{"ID": key, "Value": "::2"}])
        removed = await self.good("configuration", "remove", "--id", key)
        self.assertEqual(removed.out, f'Configuration value "{key}" has been removed\n')
        for action in ("get", "remove"):
            self.assertIn(f'there is no configuration value "{key}"', await self.refused("configuration", action, key))
        self.assertIn("one key and one value", await self.refused("configuration", "set", key, code=2))

    async def test_whatCantBeSet(self) -> None:
        """A key or a value that no registry takes is told as an import tells it, and nothing is sent."""
        key = f"/{self.prefix}/listen_ip"
        await self.allRefused(
            [
                (("configuration", "set", *given, "--api-url", "http://127.0.0.1:9/v1.0"), text)
                for given, text in (
                    (("/own/sp", "x"), "'/own/sp': no key (a name of a-z 0-9 _ - . with 3 characters or more"),
                    (("/own/space/", "x"), "'/own/space/': no key"),
                    ((key, ""), "its value has 0 characters, and 1 to 1024 are allowed"),
                )
            ]
        )

    async def test_files(self) -> None:
        """What export writes, import reads; a dry run shows what would change, and changes nothing."""
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

    async def test_brokenFiles(self) -> None:
        """A file with anything wrong in it changes nothing, and the line that is wrong is told."""
        space = f"/{self.prefix}"
        cases = []
        for name, text, expected in (
            ("a.json", '{"good": "1",\n "bad', "line 2"),
            ("b.json", '["good"]', "no object"),
            ("c.json", '{"good": "1", "good": "2"}', "twice"),
            ("d.json", '{"good": "1", "nest": {"a": 1}}', "no text"),
            ("e.yaml", "good: 1\nbad: [", "line 2"),
            ("f.yaml", "- good", "no mapping"),
            ("g.yaml", "good: 1\nx: 2\n", "'x'"),
            ("h.yaml", "good: 1\n/elsewhere/key: 2\n", "not below"),
            ("i.yaml", "good: ''\n", "0 characters"),
            ("j.json", "[" * 100_000, "no JSON"),
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
        self.assertIn("--format", await self.refused("configuration", "import", "values.txt", code=2))
        self.assertEqual((await self.good("configuration", "list", "--namespace", space, "-f", "json")).json, [])

    async def test_exportReplacesAWholeFileOrNone(self) -> None:
        """Where nothing can be written, the file that was there stays as it was."""
        target = os.path.join(self.home, "folder.yaml")
        os.mkdir(target)
        self.assertIn(target, await self.refused("configuration", "export", target))
        self.assertEqual(os.listdir(target), [])
        self.assertIn("/proc", await self.refused("configuration", "export", "/proc/nothing/here.yaml"))

    async def test_execute(self) -> None:
        """A command has the values as environment variables, and raxsr's place: streams and exit code are its own."""
        space = f"/{self.prefix}"
        client = self.client()
        for key, value in (("listen_ip", "::1"), ("deep/port-no", "80"), ("9lives", "yes")):
            await client.configuration.set(f"{space}/{key}", value)
        code = (
            "import os, sys; print(sys.stdin.read(), os.environ['LISTEN_IP'], os.environ['DEEP_PORT_NO'], "
            "os.environ['_9LIVES'], sys.argv[1:]); sys.exit(7)"
        )
        run = ("configuration", "exec", "--namespace", space, "--")
        ended = await self.raxsr(*run, sys.executable, "-c", code, "--help", "", "*", stdin=b"typed")
        self.assertEqual((ended.out, ended.err, ended.code), ("typed ::1 80 yes ['--help', '', '*']\n", "", 7))
        ended = await self.raxsr(*run, "no-such-program")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (127, 1))
        ended = await self.raxsr(*run, "/")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (126, 1))
        self.assertIn("which command", await self.refused("configuration", "exec", "--namespace", space, code=2))
        await self.refused("configuration", "exec", "--", "true", code=2)
        await client.configuration.set(f"{space}/listen-ip", "::2")
        self.assertIn("LISTEN_IP", await self.refused(*run, "true"))
        empty = await self.raxsr("configuration", "exec", "--namespace", f"{space}/none", "--", "echo", "ran")
        self.assertEqual((empty.out, empty.code, len(empty.err.splitlines())), ("ran\n", 0, 1))
