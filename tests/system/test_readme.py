"""The README's own code, run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue

from tests import ROOT
from tests.system.ports import freePorts
from tests.system.processes import ProcessTestCase

README = ROOT / "README.rst"


def codeBlocks() -> list[str]:
    """The Python blocks of the README, in their order."""
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README.read_text())
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks]


class ReadmeTests(ProcessTestCase):
    """The blocks that a newcomer copies work."""

    def write(self, name: str, text: str) -> str:
        path = Path(self.home, name)
        path.write_text(text)
        return str(path)

    async def test_theApplicationRegistersItself(self) -> None:
        """The ten lines: registered when the registry comes up, found by the other example, gone after a stop."""
        app, look, *_ = codeBlocks()
        application = self.twistd("-y", self.write("app.py", app.replace("8000", str(freePorts(1)[0]))))
        # There is no registry yet, and not even credentials for one.
        await application.ended
        self.assertIn("No username", application.output + application.errors)
        registry = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1")
        await registry.says("Credentials")
        application = self.twistd("-y", self.write("app.py", app.replace("8000", str(freePorts(1)[0]))))
        client = self.client()

        async def registered() -> bool:
            return bool((await client.services.list())["values"])

        await self.until(registered)
        out, err, code = await getProcessOutputAndValue(
            sys.executable, [self.write("look.py", look)], env=self.environment(), path=self.home
        )
        self.assertEqual((code, err), (0, b""))
        self.assertRegex(out.decode(), r"^web1 \{'port': '\d+', 'host': '127.0.0.1'\}$")
        application.kill("TERM")
        await application.ended
        self.assertEqual((await client.services.list())["values"], [])

    async def test_theTestPasses(self) -> None:
        """The example of a test is a test that trial runs and that passes."""
        block = next(block for block in codeBlocks() if "SynchronousTestCase" in block)
        self.write("test_mine.py", block)
        out, _, code = await getProcessOutputAndValue(
            sys.executable, ["-m", "twisted.trial", "test_mine"], env=self.environment(), path=self.home
        )
        self.assertEqual(code, 0, out.decode())
        self.assertIn(b"PASSED (successes=1)", out)


class CrashTests(ProcessTestCase):
    """An application that is killed and started again within its timeout."""

    async def eventsAfterCrash(self, timeout: int, state: str) -> list[str]:
        registry = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1")
        await registry.says("Credentials")
        path = Path(self.home, "app.py")
        path.write_text(
            "from twisted.application.service import Application\n"
            "from txserviceregistry import Client, RegisteredService, useMonotonic\n"
            "useMonotonic()\n"
            "application = Application('web')\n"
            f"me = RegisteredService(Client.fromSettings(), 'web1', {timeout}{state})\n"
            "me.onStateChange(lambda state: print('it is', state))\n"
            "me.setServiceParent(application)\n"
        )
        first = self.twistd("-y", str(path))
        await first.says("it is registered")
        first.kill("KILL")
        await first.ended
        again = self.twistd("-y", str(path))
        await again.says("it is registered")
        client = self.client()
        return [event["type"] for event in (await client.events.list())["values"]]

    async def test_goesOnAsTheSameService(self) -> None:
        """With a state file the new process continues the service: there is no event."""
        types = await self.eventsAfterCrash(60, f", state={str(Path(self.home, 'state-file'))!r}")
        self.assertEqual(types, ["service.join"])

    async def test_registersWhenTheOldServiceHasExpired(self) -> None:
        """Without one it is registered as soon as the old service has expired."""
        types = await self.eventsAfterCrash(3, "")
        self.assertEqual(types, ["service.join", "service.timeout", "service.join"])
