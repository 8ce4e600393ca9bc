"""``raxsr`` as a process: streams, signals, terminals, and the completion of shells."""

from __future__ import annotations

import shutil
import subprocess
import sys

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from tests.system.commands.raxsr.raxsrcase import RAXSR, RaxsrProcessTestCase
from tests.system.processes import Child, reactor


class ProgramTests(RaxsrProcessTestCase):
    """What only a process shows."""

    async def test_completion(self) -> None:
        """The script is good bash, and completes commands, options and choices."""
        for shell in ("bash", "zsh"):
            script = (await self.good("complete", "--shell", shell)).out
            program = shutil.which(shell)
            if program is not None:
                checked = subprocess.run([program, "-n"], input=script.encode(), capture_output=True)
                self.assertEqual((checked.returncode, checked.stderr), (0, b""))
        script = (await self.good("complete")).out

        def completed(*words: str) -> list[str]:
            line = " ".join(f"'{word}'" for word in words)
            asking = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _raxsr; echo "${{COMPREPLY[@]}}"\n'
            return (
                subprocess.run(["bash"], input=asking.encode(), capture_output=True, check=True).stdout.decode().split()
            )

        self.assertEqual(completed("raxsr", "serv"), ["services"])
        self.assertEqual(completed("raxsr", "services", "re"), ["remove"])
        self.assertEqual(completed("raxsr", "--username", "joe", "services", "list", "--t"), ["--tag"])
        self.assertEqual(completed("raxsr", "events", "list", "--type", "service.t"), ["service.timeout"])
        self.assertEqual(completed("raxsr", "help", "account", "rate"), ["rate-limits"])
        self.assertEqual(completed("raxsr", "configuration", "exec", "--", "--n"), [])

    async def test_aReaderThatLeaves(self) -> None:
        """Nobody at the other end of the pipe any more: the shell's code for that, and not a word."""
        await self.clientWithServices(self.prefix)
        command = f"{RAXSR} help | true; echo ${{PIPESTATUS[0]}}; {RAXSR} services list >/dev/full; echo $?"
        ran = await deferToThread(
            subprocess.run, ["bash", "-c", command], env=self.environment(), capture_output=True, timeout=60
        )
        first, second = ran.stdout.decode().split()
        # A help that fits into the pipe may be written before the reader has left.
        self.assertIn(first, ("0", "141"))
        self.assertEqual(second, "1")
        self.assertEqual(ran.stderr.decode().splitlines(), ["raxsr: can't write the output: No space left on device"])

    async def test_withoutTheExtra(self) -> None:
        """Where cliff is not installed, one line says what to install."""
        code = (
            "import sys; sys.modules['cliff'] = None\n"
            "from txserviceregistry.commands.raxsr.main import main; sys.exit(main())"
        )
        ran = await deferToThread(
            subprocess.run, [sys.executable, "-c", code], env=self.environment(), capture_output=True, timeout=60
        )
        self.assertEqual((ran.stdout, ran.returncode), (b"", 1))
        self.assertIn(b"pip install 'twisted-service-registry[cli]'", ran.stderr)
        self.assertEqual(len(ran.stderr.splitlines()), 1)

    async def test_ctrlC(self) -> None:
        """Ctrl-C ends a command that waits for a registry that does not answer, with exit code 130 and not a word."""
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Protocol))
        self.addCleanup(port.stopListening)
        child = self.started("services", "list", "--debug", "--api-url", f"http://127.0.0.1:{port.getHost().port}/v1.0")
        await child.says("> POST")
        child.kill("INT")
        await child.ended
        self.assertEqual((child.output, child.exitCode), ("", 130))

    async def test_onATerminal(self) -> None:
        """On a terminal a table fits its width: wide columns are broken into lines, ids are whole."""
        await self.client().services.create(self.prefix, 120, {"metadata": {"key": "word " * 40}})
        script = f"stty cols 80; {RAXSR} services get {self.prefix}"
        terminal = Child()
        reactor.spawnProcess(
            terminal, "/bin/sh", ["sh", "-c", script], env=self.environment(), path=self.home, usePTY=True
        )
        self.children.append(terminal)
        await terminal.ended
        lines = terminal.output.replace("\r", "").splitlines()
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertTrue(any(self.prefix in line for line in lines))
        self.assertEqual(terminal.exitCode, 0)
