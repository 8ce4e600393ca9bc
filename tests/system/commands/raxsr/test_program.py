"""``raxsr`` as a process: streams, signals, terminals, and the completion of shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from tests.system.commands.raxsr.raxsrcase import RAXSR, RaxsrProcessTestCase
from tests.system.processes import Child, reactor


class ProgramTests(RaxsrProcessTestCase):
    """Behavior that only a process shows."""

    async def test_completion(self) -> None:
        """The scripts complete commands, options, choices and files in bash, and register themselves in zsh."""
        script = (await self.good("complete")).out + (
            'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
            '_shtab_raxsr raxsr "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"\n'
            'echo "${COMPREPLY[@]}"\n'
        )

        def completed(*words: str) -> list[str]:
            run = subprocess.run(
                ["bash", "-s", *words], input=script.encode(), cwd=self.home, capture_output=True, check=True
            )
            self.assertEqual(run.stderr, b"")
            return run.stdout.decode().split()

        with open(os.path.join(self.home, "values.yaml"), "w"):
            pass
        for line, expected in (
            ("raxsr serv", ["services"]),
            ("raxsr services re", ["remove"]),
            ("raxsr --username joe services list --t", ["--tag"]),
            ("raxsr services list --debug --t", ["--tag"]),
            ("raxsr events list --type service.t", ["service.timeout"]),
            ("raxsr configuration export val", ["values.yaml"]),
            ("raxsr --log-file val", ["values.yaml"]),
            ("raxsr configuration exec -- --n", []),
        ):
            self.assertEqual(completed(*line.split()), expected, line)
        if shutil.which("zsh") is not None:
            line = f"source <({RAXSR} complete --shell zsh); print $_comps[raxsr]"
            run = subprocess.run(["zsh", "-f", "-c", line], env=self.environment(), capture_output=True, check=True)
            self.assertEqual((run.stdout, run.stderr), (b"_shtab_raxsr\n", b""))

    async def test_aReaderThatLeaves(self) -> None:
        """When the other end of the pipe is closed: the shell's code for that, and no output."""
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
        """If a package of the extra is not installed, one line says what to install."""
        code = (
            "import sys; sys.modules['prettytable'] = None; sys.argv[1:] = ['services', 'list']\n"
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
