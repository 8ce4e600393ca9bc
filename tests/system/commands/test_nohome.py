"""All programs as a user without a home directory: no HOME, and no passwd entry, as in a container with a bare uid."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Mapping
from unittest import skipUnless

from tests.needs import SENTENCE
from tests.system.processes import Child, ProcessTestCase, sharedRegistry
from txserviceregistry.settings import readSettings

UID = next(iter(set(range(64077, 65000)) - {user.pw_uid for user in pwd.getpwall()}))
# With the right to read what root can, or it could not read the tests' own Python. No right over HOME or passwd.
AS_NOBODY = (
    *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
LIBRARY = """
import os, sys
from twisted.internet import reactor
from txserviceregistry import Client
from txserviceregistry.errors import InvalidSettings
from txserviceregistry.settings import namesRegistry
from txserviceregistry.testing import FakeRegistry
from txserviceregistry.http.tls import tlsPolicy

try:
    os.path.expanduser("~") != "~" and sys.exit("there is a home directory")
    Client(reactor=reactor, username="joe", apiKey="key", baseUrl="http://127.0.0.1:1/v1.0")
    FakeRegistry().client()
    print(namesRegistry())
    tlsPolicy(caFile="~/ca.pem")
except InvalidSettings as error:
    print(error)
"""


# Only root can become a user without a passwd entry.
@skipUnless(os.geteuid() == 0 and shutil.which("setpriv") is not None, SENTENCE)
class NoHomeTests(ProcessTestCase):
    """Commands that work there, and errors if something is missing."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        os.chown(self.folder, UID, UID)
        settings = readSettings(environ=sharedRegistry())
        self.given = {
            "RAXSR_API_URL": ",".join(settings.baseUrls),
            "RAXSR_USERNAME": settings.username,
            "RAXSR_API_KEY": settings.apiKey,
        }

    def run_(self, program: str, *words: str, environment: Mapping[str, str] | None = None) -> Child:
        """A program as that user, with this environment and nothing else."""
        path = os.path.join(os.path.dirname(sys.executable), program)
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        # Not "spawn" alone: that gives HOME.
        return self.spawn(
            shutil.which("env") or "env",
            *("-i", "-C", self.folder, f"PATH={os.environ['PATH']}", *variables, *AS_NOBODY, path, *words),
        )

    async def ended(self, program: str, *words: str, environment: Mapping[str, str] | None = None) -> Child:
        """The same, at its end. It has shown no traceback, and left nothing."""
        child = self.run_(program, *words, environment=environment)
        await child.ended
        self.assertNoTraceback([child])
        self.assertEqual(os.listdir(self.folder), [])
        return child

    async def test_theLibrary(self) -> None:
        """Clients, FakeRegistry and the search for settings need no home directory; a path with ~ is told."""
        child = await self.ended("python", "-c", LIBRARY)
        self.assertEqual(child.output, "False\n'~/ca.pem' can't be used: ~ has no home directory here\n", child.errors)

    async def test_raxsr(self) -> None:
        """raxsr works if a registry is configured; else it says that there is no file with settings."""
        child = await self.ended("raxsr", "services", "list", "-f", "json", environment=self.given)
        self.assertEqual(child.exitCode, 0, child.errors)
        child = await self.ended("raxsr", "services", "list")
        self.assertEqual((child.exitCode, len(child.errors.splitlines())), (1, 1))
        self.assertIn("searched: no file, no home directory", child.errors)
        child = await self.ended("raxsr", "--help")
        self.assertEqual(child.exitCode, 0, child.errors)

    async def test_theWrapper(self) -> None:
        """The wrapper registers the command, without a place for its token, and says how to name one."""
        command = ("--id", "without-a-home", "--deregister", "sh", "-c", "echo $SERVICE_REGISTRY_ID")
        child = await self.ended("service-registry-wrapper", *command, environment=self.given)
        self.assertEqual((child.output, child.exitCode), ("without-a-home\n", 0), child.errors)
        self.assertIn("Set RAXSR_DATA_DIR", child.errors)

    async def test_theUsersAndTheRegistry(self) -> None:
        """A command for a data directory says in one line that it has to be named, and works with one."""
        for program, words, code in (
            ("service-registry-users", ["list"], 2),
            ("twistd", ["-n", "--pidfile=", "--logfile=/dev/null", "service-registry"], 1),
            ("twistd", ["-n", "--pidfile=", "--logfile=/dev/null", "service-registry-agent"], 1),
        ):
            child = await self.ended(program, *words)
            self.assertEqual((child.exitCode, len(child.errors.splitlines())), (code, 1), child.errors)
            self.assertIn("Give --data-dir, or set RAXSR_DATA_DIR", child.errors)
        dataDir = os.path.join(self.folder, "data")
        listen = ("--listen", "tcp:0:interface=127.0.0.1", "--data-dir", dataDir)
        registry = self.run_("twistd", "-n", "--pidfile=", "service-registry", *listen)
        await registry.says("The registry listens on")
        listed = self.run_("service-registry-users", "list", environment={"RAXSR_DATA_DIR": dataDir})
        await listed.ended
        self.assertIn("local", listed.output, listed.errors)

    async def test_theAgent(self) -> None:
        """The agent needs no data directory if its environment names a registry."""
        words = ("-n", "--pidfile=", "service-registry-agent", "--id", "agent-without-a-home")
        agent = self.run_("twistd", *words, environment=self.given)
        await agent.says("Service agent-without-a-home is registered")
