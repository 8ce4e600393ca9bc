"""``raxsr`` as a program: help, settings, and what it shows of its requests."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase, reactor
from txserviceregistry import __version__
from txserviceregistry.commands.raxsr.main import _logFile
from txserviceregistry.settings import readSettings


class ProgramTests(RaxsrTestCase):
    """The common behavior of all commands."""

    async def test_help(self) -> None:
        """Every command is in the help with a line about it, and has a help of its own with an example."""
        overview, same, again = [(await self.good(*words)).out for words in (["--help"], ["help"], [])]
        self.assertEqual([same, again], [overview, overview])
        commands = ["services list", "services create", "configuration import", "configuration exec", "events follow"]
        for words in commands:
            help = await self.good("help", *words.split())
            other = await self.good(*words.split(), "--help")
            self.assertIn(f"  {words} ", overview)
            self.assertIn(f"raxsr {words}", help.out)
            self.assertIn("Example: ", help.out)
            self.assertEqual(other.out, help.out)
        self.assertIn("services remove", (await self.good("help", "services")).out)
        for option in (
            "--username",
            "--api-key",
            "--api-url",
            "--auth-url",
            "--region",
            "--debug",
            "--verbose",
            "--log-file",
        ):
            self.assertIn(option, overview)
        self.assertEqual((await self.good("--version")).out, f"raxsr {__version__}\n")

    async def test_helpAfterArguments(self) -> None:
        """--help shows the command's help also on a line that is complete."""
        for words in ("services get web1", "configuration set /production/port 8000", "lock /production/jobs"):
            name = words.partition(" web1")[0].partition(" /")[0]
            self.assertIn(f"usage: raxsr {name} [", (await self.good(*words.split(), "--help")).out)

    async def test_noRegistry(self) -> None:
        """The line has the URL that was tried, and the setting that it comes from."""
        url = "http://127.0.0.1:9/v1.0"
        self.settings = {}
        credentials = ("--username", "joe", "--api-key", "wrong-key-0123456789")
        self.assertRegex(
            await self.refused("services", "list", "--api-url", url, *credentials),
            "The URL http://127.0.0.1:9.* is set by --api-url",
        )
        told = await self.refused("services", "list", *credentials, environment={"RAXSR_API_URL": url})
        self.assertIn(f"{url} is set by ", told)
        self.assertIn("RAXSR_API_URL", told)
        self.assertIn(".raxrc", await self.refused("services", "list"))

    async def test_wrongKey(self) -> None:
        """A key that is refused is told in a line without the key."""
        told = await self.refused("services", "list", "--api-key", "wrong-key-0123456789")
        self.assertNotIn("0123456789", told)

    async def test_sourcesOfRefusedCredentials(self) -> None:
        """The line has the sources of the name and the key."""
        told = await self.refused("services", "list", "--username", "joe", environment={"RAXSR_API_KEY": "wrong-key"})
        self.assertIn(
            ". The username is set by --username, and the API key is set by the environment variable RAXSR_API_KEY\n",
            told,
        )
        self.assertNotIn("wrong-key", told)

    async def test_urlsOfOtherServers(self) -> None:
        """A URL of another server, or an incomplete one: the line says so, and has the source of the URL."""
        site = Site(Resource())
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
        self.addCleanup(port.stopListening)
        other = f"http://127.0.0.1:{port.getHost().port}/v1.0"
        settings = readSettings(environ={"HOME": self.home, **self.settings})
        short = settings.baseUrls[0].removesuffix("/v1.0")
        credentials = ("--username", settings.username, "--api-key", settings.apiKey)
        doubts = {
            other: "Check that this is the URL of a service registry. ",
            short: "Check the registry's URL, which ends in /v1.0. ",
        }
        for url, doubt in doubts.items():
            for words in (("services", "list"), ("services", "get", self.prefix)):
                told = await self.refused(*words, *credentials, environment={"RAXSR_API_URL": url})
                self.assertIn(f"{doubt}The URL {url} is set by the environment variable RAXSR_API_URL", told)
        self.assertIn(f'there is no service "{self.prefix}"', await self.refused("services", "get", self.prefix))

    async def test_debug(self) -> None:
        """--debug shows requests and responses, without keys, auth tokens and heartbeat tokens."""
        settings = readSettings(environ={"HOME": self.home, **self.settings})
        shown = await self.raxsr("services", "create", self.prefix, "-f", "json", "--debug")
        self.assertEqual(shown.code, 0)
        self.assertIn("> POST http://", shown.err)
        self.assertIn("/services", shown.err)
        self.assertIn("< 201 after", shown.err)
        self.assertNotIn(settings.apiKey, shown.err)
        self.assertNotIn(shown.json["token"], shown.err)
        heartbeat = await self.raxsr("services", "heartbeat", self.prefix, "--token", shown.json["token"], "--debug")
        self.assertEqual(heartbeat.code, 0)
        self.assertNotIn(shown.json["token"], heartbeat.err)
        down = await self.raxsr("services", "list", "--debug", "--api-url", "http://127.0.0.1:9/v1.0")
        self.assertEqual(down.code, 1)
        self.assertIn("no response after", down.err)

    async def test_verbose(self) -> None:
        """-v shows one line for each request and each response, and -vv what --debug shows."""
        shown = await self.raxsr("services", "list", "-v", "-f", "json")
        self.assertEqual(shown.code, 0)
        lines = shown.err.splitlines()
        # Authentication, and a listing that is asked for again when its response says that services have states.
        self.assertEqual([line[0] for line in lines], [">", "<"] * 3)
        self.assertRegex(lines[3], r"^< 200 after \d+ ms, GET http://.*/services$")
        self.assertRegex(lines[5], r"^< 200 after \d+ ms, GET http://.*/services\?states=true$")
        more = await self.raxsr("services", "list", "-vv", "-f", "json")
        self.assertIn('"apiKey": "***"', more.err)

    async def test_logFile(self) -> None:
        """--log-file appends requests, responses and messages to a file, with the time and without secrets."""
        settings = readSettings(environ={"HOME": self.home, **self.settings})
        path = Path(self.home, "raxsr.log")
        created = (await self.good("--log-file", str(path), "services", "create", self.prefix, "-f", "json")).json
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        await self.refused("services", "get", "not-there", "--log-file=~/raxsr.log", "-q")
        lines = path.read_text().splitlines()
        for line in lines:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ")
        text = "\n".join(lines)
        self.assertIn(f" raxsr {__version__}: services create\n", text)
        self.assertIn("> POST http://", text)
        self.assertIn('raxsr: there is no service "not-there"', text)
        for secret in (settings.apiKey, created["token"]):
            self.assertNotIn(secret, text)
        for bad in (self.home, os.path.join(self.home, "none", "raxsr.log")):
            self.assertIn(f"can't write the log file {bad}", await self.refused("services", "list", "--log-file", bad))
        ended = await self.good("services", "get", self.prefix, "-f", "value", "-c", "id", "--log-file", os.devnull)
        self.assertEqual(ended.out, f"{self.prefix}\n")
        full = await self.raxsr("services", "get", self.prefix, "-f", "value", "-c", "id", "--log-file", "/dev/full")
        self.assertEqual((full.out, full.code, len(full.err.splitlines())), (f"{self.prefix}\n", 0, 1))
        self.assertIn("can't write the log file /dev/full any more", full.err)

    async def test_debugLeavesWordsWhole(self) -> None:
        """A token or key that is a part of other words is redacted where it is a word, and nowhere else."""
        await self.clientWithServices(self.prefix)
        for token in ("bad", "on"):
            heartbeat = ("services", "heartbeat", self.prefix, "--token", token)
            for words in (heartbeat, (*heartbeat, "--debug")):
                shown = await self.raxsr(*words)
                self.assertEqual(shown.code, 1)
                self.assertRegex(shown.err, "badRequest|notFoundError")
                self.assertNotRegex(shown.err, rf"\b{token}\b")
        shown = await self.raxsr("services", "list", "--api-key", "a", "--debug")
        self.assertIn('"apiKey": "***"', shown.err)
        self.assertIn('{"auth": {"RAX-KSKEY:apiKeyCredentials"', shown.err)

    async def test_argumentsThatAreNotText(self) -> None:
        """One line names the option, and does not repeat what may be a secret."""
        # As Python decodes Latin-1 in a UTF-8 locale.
        word = "caf\udce9"
        for name, words in (
            ("the value of --username", ("services", "list", "--username", word)),
            ("the value of --tag", ("services", "list", f"--tag={word}")),
            ("an argument", ("configuration", "set", "/some/key", word)),
            ("an argument", ("configuration", "set", "--", "/some/key", word)),
            ("the value of --namespace", ("configuration", "exec", "--namespace", word, "--", "echo", "ran")),
        ):
            told = await self.refused(*words, code=2)
            self.assertRegex(told, f"^raxsr: {name} is not text in .*, the encoding of the locale")
            self.assertNotIn("caf", told)

    async def test_outputThatCantBeWritten(self) -> None:
        """Lists, exports and helps are not lost without an error; what would not be shown is not done."""
        shown = [["services", "list"], ["configuration", "export", "-"], ["--help"], ["--version"], ["complete"]]
        done = [["configuration", "set", f"/{self.prefix}/key", "value"], ["services", "create", self.prefix]]
        for words in [*shown, *done]:
            line = await self.intoAFullFile(*words)
            self.assertEqual(line, "raxsr: can't write the output: No space left on device\n", words)
        client = self.client()
        self.assertEqual((await client.configuration.list())["values"], [])
        self.assertEqual((await client.services.list())["values"], [])


class LogFileTests(SynchronousTestCase):
    """The file of ``--log-file``."""

    def test_aFullDisk(self) -> None:
        """It is closed after the first failure: from version 3.13 on, Python reports a file that it can't close."""
        self.patch(sys, "stderr", io.StringIO())
        write = _logFile("/dev/full")
        for line in ("first", "second"):
            write(line)
        self.assertEqual(len(sys.stderr.getvalue().splitlines()), 1)  # type: ignore[attr-defined]  # it is the one above
        opened = []
        for number in os.listdir("/proc/self/fd"):
            # One is that of the list.
            with contextlib.suppress(FileNotFoundError):
                opened.append(os.readlink(f"/proc/self/fd/{number}"))
        self.assertNotIn("/dev/full", opened)
