"""
``twistd web`` on an endpoint string of ours, as real processes.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

from treq.client import HTTPClient
from twisted.internet import reactor

from tests import ROOT
from tests.system.processes import ProcessTestCase, sharedRegistry
from txserviceregistry import Client
from txserviceregistry.discovery import RegistryAgent
from txserviceregistry.errors import NotFound
from txserviceregistry.settings import readSettings

from ..unit.discovery.standin import FakeDirectory

DOCUMENT = ROOT / "docs" / "finding-services.rst"


class TwistdWebTests(ProcessTestCase):
    """``twistd web``, which knows nothing of this package."""

    def program(self) -> str:
        """The program in the documentation, for the tag that is used here."""
        _, _, after = DOCUMENT.read_text().partition("finds the server by its tag:\n\n.. code-block:: python\n")
        found = re.match(r"((?:    .*\n|\n)+)", after)
        assert found is not None
        path = Path(self.home, "ask.py")
        path.write_text(dedent(found.group(1)).replace("registry://www/", "registry://twistd-www/"))
        return str(path)

    async def test_joinsByItsEndpoint(self) -> None:
        """
        ``twistd -n web --listen 'registered:…' --path .`` registers with its real port, serves, and on SIGTERM leaves
        the registry and ends as ever. The program in the documentation finds it.
        """
        environment = sharedRegistry()
        client = Client(reactor=reactor, settings=readSettings(environ=environment, home=Path(self.home)))
        self.addCleanup(client.close)
        Path(self.home, "hello.txt").write_text("hello")
        listen = r"registered:id=twistd-web1:tags=twistd-www,a\\,b:endpoint=tcp\:0\:interface=127.0.0.1"
        child = self.twistd("web", "--listen", listen, "--path", ".", environment=environment)

        async def found() -> Any:
            assert child.running, child.output + child.errors
            return (await client.services.listForTag("twistd-www"))["values"]

        [service] = await self.until(found)
        self.assertEqual((service["id"], service["tags"]), ("twistd-web1", ["twistd-www", "a,b"]))
        agent = RegistryAgent(reactor, FakeDirectory(service))
        self.addCleanup(agent.close)
        response = await HTTPClient(agent).get("registry://twistd-www/hello.txt")
        self.assertEqual(await response.text(), "hello")
        ask = self.spawn(os.path.basename(sys.executable), self.program(), environment=environment)
        await ask.ended
        self.assertRegex(ask.output + ask.errors, r"^200 \d+ bytes\n$")
        child.kill("TERM")
        await child.ended
        self.assertEqual((child.signal, child.exitCode), (15, None))
        with self.assertRaises(NotFound):
            await client.services.get("twistd-web1")
        self.assertNoTraceback()

    async def test_mistakesAreOneLine(self) -> None:
        """An error in a string, or no settings for it, ends twistd with one line that says what to write."""
        for listen, expected in (
            ("registered:id=web1:endpoint=tcp:0", r"Write registered:id=web1:endpoint=tcp\:0"),
            (r"registered:id=x:endpoint=tcp\:0", "id=x is not valid: it has 3 to 65 characters"),
            (r"registered:id=web1:endpoint=tcp\:0", "No username and no API key"),
        ):
            child = await self.twistd("web", "--listen", listen, "--path", ".").ended
            said = child.output + child.errors
            self.assertEqual((child.exitCode, said.count(expected)), (1, 1), said)
            self.assertNotIn("Traceback", said)

    async def test_mistakesAreOneLineInTwistToo(self) -> None:
        """The same in Twisted's other program, by each of its names."""
        for words in (("twist",), ("python", "-m", "twisted")):
            child = await self.spawn(*words, "web", "--listen", r"registered:id=x:endpoint=tcp\:0").ended
            self.assertEqual((child.exitCode, len(child.errors.splitlines())), (1, 1), child.errors)
            self.assertIn("id=x is not valid: it has 3 to 65 characters", child.errors)
