"""State files of RegisteredService among processes."""

from __future__ import annotations

import os
import subprocess
import sys
from select import select

from tests import ROOT
from tests.system.processes import PATIENCE
from tests.unit.test_registration import RegistrationCase

# Has a state file, and a child that was forked and lives as long as our end of the pipe is open.
HOLDER = """
import os, sys
from txserviceregistry import RegisteredService
from txserviceregistry.testing import FakeRegistry

service = RegisteredService(FakeRegistry().client(), "web1", 10, state=sys.argv[1])
service.startService()
if not os.fork():
    print("forked", flush=True)
sys.stdin.read()
"""


class StateFileTests(RegistrationCase):
    """Whose service it is."""

    def test_anotherProcess(self) -> None:
        """A service of another process is taken over when that was killed, though a forked child runs on."""
        path = os.path.abspath(self.mktemp())
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert holder.stdin is not None and holder.stdout is not None
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.stdin.close)
        self.addCleanup(holder.wait)
        self.addCleanup(holder.kill)
        # A line, or its end, within some seconds.
        self.assertNotEqual(select([holder.stdout], [], [], PATIENCE)[0], [])
        self.assertEqual(holder.stdout.readline(), b"forked\n")
        theirs = self.heldBy(path)
        # The registry is another one: only the file tells the two of each other.
        service = self.service(10, state=path)
        service.startService()
        self.fake.advance(30)
        self.assertEqual(service.state, "registered")
        self.assertEqual(self.heldBy(path), theirs)
        holder.kill()
        holder.wait()
        self.fake.advance(10)
        self.assertNotEqual(self.heldBy(path), theirs)
