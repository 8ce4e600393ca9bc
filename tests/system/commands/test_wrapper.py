"""``service-registry-wrapper``: the real process, with real commands in it and a real registry beside it."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.system.processes import Child, ProcessTestCase, reactor, sharedRegistry, together
from txserviceregistry import Client
from txserviceregistry.commands.wrapper.process import startChild
from txserviceregistry.errors import NotFound, ServiceRegistryError
from txserviceregistry.settings import readSettings

WRAPPER = os.path.join(os.path.dirname(sys.executable), "service-registry-wrapper")
WRAPPED = [sys.executable, "-S", "-E", os.path.join(os.path.dirname(__file__), "wrapped.py")]
# Signals whose default is to end a process, or nothing.
SIGNALS = [
    *("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGALRM", "SIGABRT", "SIGURG"),
    *("SIGCONT", "SIGPWR", "SIGIO", "SIGVTALRM", "SIGPROF", "SIGRTMIN", "SIGRTMAX"),
]
# Otherwise the command starts, and a line says so, if a busy machine's registry takes longer than three seconds.
REGISTERED_FIRST = "--abort-on-failure"
PR_SET_CHILD_SUBREAPER = 36


def processesIn(home: str) -> Iterator[int]:
    """The ids of the processes whose home this is: those that a test has started, and what they have."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if b"\0HOME=" + home.encode() + b"\0" in b"\0" + file.read() + b"\0":
                        yield int(name)
            except OSError:
                continue


class WrapperTestCase(ProcessTestCase):
    """Wrappers of this test's own home; what they leave behind ends with the test."""

    settings: dict[str, str] = {}

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.endLeftovers)

    def endLeftovers(self) -> None:
        for pid in processesIn(self.home):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def environment(self, extra: Any = None) -> dict[str, str]:
        return super().environment({**self.settings, **(extra or {})})

    def client(self, **options: Any) -> Client:
        environ = {"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir, **self.settings}
        client = Client(reactor=reactor, settings=readSettings(environ=environ), **options)
        self.addCleanup(client.close)
        return client

    def wrapper(self, *words: str, environment: dict[str, str] | None = None) -> Child:
        return self.spawn("service-registry-wrapper", *words, environment=environment)

    async def run_(
        self, *words: str, stdin: bytes | None = None, environment: dict[str, str] | None = None
    ) -> tuple[bytes, str, int]:
        """Run the wrapper to its end: what it said on stdout and stderr, and its exit code (minus N: a signal's)."""
        try:
            out, err, code = await getProcessOutputAndValue(
                WRAPPER, words, env=self.environment(environment), path=self.home, stdinBytes=stdin
            )
        except Exception as error:
            out, err, number = error.args
            code = -number
        self.assertNotIn(b"Traceback", err)
        return out, err.decode(), code

    async def events(self, serviceId: str) -> list[str]:
        events = self.client().events.iterate()
        return [event["type"] async for event in events if event["payload"].get("id") == serviceId]

    async def untilRegistered(self, serviceId: str, present: bool = True) -> None:
        async def isThere() -> bool:
            try:
                await self.client().services.get(serviceId)
            except NotFound:
                return not present
            except ServiceRegistryError:
                return False
            return present

        await self.until(isThere)

    def pidOf(self, child: Child) -> int:
        pid: int = child.transport.pid  # type: ignore[union-attr] # IProcessTransport
        return pid

    def childrenOf(self, pid: int) -> list[int]:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]

    def end(self, child: Child) -> Deferred[Child]:
        """Close its stdin, on which the programs of ``wrapped.py`` end."""
        child.transport.closeStdin()  # type: ignore[union-attr] # IProcessTransport
        return child.ended


class WrapperTests(WrapperTestCase):
    """Beside one registry, which is there all the time."""

    def setUp(self) -> None:
        super().setUp()
        self.settings = sharedRegistry()

    # -- options

    async def test_theCommandIsUntouched(self) -> None:
        """From the first word that is not an option on, all words are the command's."""
        rest = ["--id=other", "-n", "--", "", "a b", "--help", "*", "ü", "\udcff"]
        code = "import sys; sys.stdout.buffer.write('|'.join(sys.argv[1:]).encode('utf-8', 'surrogateescape'))"
        program = [sys.executable, "-S", "-E", "-X", "utf8", "-c", code]
        for options in (["--id=words", "--interval=20"], ["--id", "words", "--interval", "20", "--"]):
            out, err, result = await self.run_(*options, *program, *rest)
            self.assertEqual((out.decode("utf-8", "surrogateescape").split("|"), result), (rest, 0), err)

    # -- what the command has

    async def test_exitCodes(self) -> None:
        """The command's own, 128 + N after signal N, 127 when there is none, 126 when it can't be run."""
        scripts = {"noshebang": "echo\n", "lost": "#!/no/such/interpreter\n", "alien": "\x7fELF\0"}
        for name, text in scripts.items():
            with open(os.path.join(self.home, name), "w") as file:
                file.write(text)
            os.chmod(file.name, 0o755)
        cases: list[tuple[list[str], int]] = [
            (["sh", "-c", "exit 7"], 7),
            (["sh", "-c", "kill -KILL $$"], 128 + 9),
            (["no-such-program"], 127),
            (["./noshebang"], 126),
            (["./lost"], 126),
            (["./alien"], 126),
        ]
        ends = await together(
            self.run_(f"--id=codes{number}", REGISTERED_FIRST, *command) for number, (command, _) in enumerate(cases)
        )
        for (out, err, code), (command, expected) in zip(ends, cases, strict=True):
            self.assertEqual((out, code), (b"", expected), command)
            lines = [line for line in err.splitlines() if not line.endswith((" of its state file", " deregistered"))]
            self.assertEqual(len(lines), int(expected in (126, 127)), err)
            if command in (["./noshebang"], ["./alien"]):
                self.assertIn(f"can't run {command[0]}: it is not a program for this machine", err)

    async def test_theChildsStateIsClean(self) -> None:
        """No signal is blocked or ignored, the standard streams block, and no file of the wrapper's is open."""
        out, _err, _code = await self.run_("--id=clean", *WRAPPED, "state")
        self.assertEqual(out.decode(), "blocking True True True\nfiles 0 1 2\n")
        # A Python program ignores signals of its own accord; this one tells what it has been given.
        given = ["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]
        out, _err, _code = await self.run_("--id=clean", *given)
        self.assertEqual(self.masks(out), {"SigBlk": 0, "SigIgn": 0})
        script = f"trap '' HUP; exec {WRAPPER} --id=clean {shlex.join(given)}"
        out, _err, _code = await getProcessOutputAndValue("/bin/sh", ["-c", script], env=self.environment())
        self.assertEqual(self.masks(out), {"SigBlk": 0, "SigIgn": 1})

    @staticmethod
    def masks(out: bytes) -> dict[str, int]:
        """The signals of each mask, without two that are glibc's own: no program sees them."""
        lines = [line.split() for line in out.decode().splitlines()]
        return {name.rstrip(":"): int(mask, 16) & ~0x180000000 for name, mask in lines}

    async def test_theEnvironmentIsAsItWas(self) -> None:
        """All of it, nothing added by Python, and the service's id."""
        given = {**self.environment(), "ODD": "a=b\n\udcff", "LC_ALL": "", "LANG": "C"}
        out, _err, _code = await getProcessOutputAndValue(WRAPPER, ["--id=environ", "env", "-0"], env=given)
        found = dict(entry.split(b"=", 1) for entry in out.split(b"\0") if entry)
        expected = {os.fsencode(key): os.fsencode(value) for key, value in given.items()}
        self.assertEqual(found, {**expected, b"SERVICE_REGISTRY_ID": b"environ"})

    async def test_passesEveryByte(self) -> None:
        """10 MB of anything go in through a pipe and come out as they were; stderr is its own."""
        data = os.urandom(10 * 1024 * 1024)
        out, err, code = await self.run_("--id=bytes", REGISTERED_FIRST, "sh", "-c", "cat; echo done >&2", stdin=data)
        self.assertEqual((len(out), code), (len(data), 0), err)
        self.assertEqual(hashlib.sha256(out).digest(), hashlib.sha256(data).digest())
        self.assertEqual(err, "done\n")

    # -- signals

    async def test_passesOnSignals(self) -> None:
        """Each that reaches the wrapper reaches the command; the exit code is still the command's."""
        wrapper = self.wrapper("--id=signals", REGISTERED_FIRST, *WRAPPED, "signals")
        await wrapper.says("ready")
        for name in SIGNALS:
            os.kill(self.pidOf(wrapper), getattr(signal, name))
            await wrapper.says(f"got {name}.")
        await self.end(wrapper)
        self.assertEqual(wrapper.exitCode, 5)
        self.assertEqual(wrapper.errors, "")

    async def test_stopsAndGoesOnWithTheCommand(self) -> None:
        """SIGTSTP stops both, SIGCONT continues both."""
        # Its parent has to be able to continue it, as a shell is: the system stops no other process.
        shell = self.spawn(
            os.path.basename(sys.executable),
            *("-c", "import os, subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], preexec_fn=os.setpgrp))"),
            *(WRAPPER, "--id=stops", "sh", "-c", "echo ready; exec sleep 60"),
        )
        await shell.says("ready")
        (pid,) = self.childrenOf(self.pidOf(shell))
        (command,) = self.childrenOf(pid)
        for number, states in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "SDR")):
            os.kill(pid, number)

            async def bothAre(states: str = states) -> bool:
                return all(self.stateOf(each) in states for each in (pid, command))

            await self.until(bothAre)
        os.kill(pid, signal.SIGTERM)
        await shell.ended
        self.assertEqual(shell.exitCode, 143)

    async def test_stopsAfterTheCommand(self) -> None:
        """A command that prepares to stop has the terminal meanwhile: the shell still waits for the wrapper."""
        # It shows the state of its wrapper several times.
        prepare = "for _ in 1 2 3 4; do cut -d' ' -f3 /proc/$PPID/stat; done; kill -STOP $$; kill $!"
        script = f"trap {shlex.quote(prepare)} TSTP; sleep 60 & echo ready; wait"
        shell = self.spawn(
            os.path.basename(sys.executable),
            *("-c", "import os, subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], preexec_fn=os.setpgrp))"),
            *(WRAPPER, "--id=prepares", "sh", "-c", script),
        )
        await shell.says("ready")
        (pid,) = self.childrenOf(self.pidOf(shell))
        os.kill(pid, signal.SIGTSTP)

        async def isStopped() -> bool:
            return self.stateOf(pid) == "T"

        await self.until(isStopped)
        os.kill(pid, signal.SIGCONT)
        await shell.ended
        self.assertRegex(shell.output, r"^ready\n([^T]\n){4}$")

    def stateOf(self, pid: int) -> str:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    def onTerminal(self, program: str, *words: str) -> Child:
        child = Child()
        reactor.spawnProcess(child, program, [program, *words], env=self.environment(), path=self.home, usePTY=True)
        self.children.append(child)
        return child

    async def test_whatIsTypedReachesTheCommandOnce(self) -> None:
        """Ctrl-C and Ctrl-backslash are the terminal's to deliver; what is sent to the wrapper alone is passed on."""
        wrapper = self.onTerminal(
            WRAPPER, "--id=terminal", "sh", "-c", f"test -t 0 && exec {' '.join(WRAPPED)} signals"
        )
        await wrapper.says("ready")
        pid = self.pidOf(wrapper)
        for typed, name in ((b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT")):
            wrapper.output = ""
            wrapper.transport.write(typed)  # type: ignore[union-attr] # IProcessTransport
            await wrapper.says(f"got {name}.")
            os.kill(pid, signal.SIGUSR1)
            await wrapper.says("got SIGUSR1.")
            os.kill(pid, getattr(signal, name))
            await wrapper.says(f"got SIGUSR1.\r\ngot {name}.")
            os.kill(pid, signal.SIGUSR2)
            await wrapper.says("got SIGUSR2.")
            self.assertEqual(re.findall(r"got (\w+)\.", wrapper.output).count(name), 2, wrapper.output)

    async def test_jobControl(self) -> None:
        """In a shell on a terminal Ctrl-Z gives the prompt back, and fg goes on."""
        shell = self.onTerminal("/bin/bash", "--norc", "--noprofile", "-i")

        async def typed(line: bytes, answer: str) -> None:
            shell.output = ""
            shell.transport.write(line)  # type: ignore[union-attr] # IProcessTransport
            await shell.says(answer)

        # Each answer is one that the shell gives after it has read the line: what is typed while it changes the mode
        # of the terminal may be echoed twice, or not at all.
        await typed(b"PS1='next'': '\n", "next: ")
        await typed(
            f"{WRAPPER} --id=jobs sh -c 'echo rea''dy; read line; echo \"go\"t $line; exit 9'\n".encode(), "ready"
        )
        await typed(b"\x1a", "next: ")
        self.assertIn("Stopped", shell.output)
        await typed(b"fg\n", WRAPPER)
        await typed(b"hello\n", "got hello")
        await shell.says("next: ")
        await typed(b'echo "co"de $?\n', "code 9")

    # -- processes of processes

    async def test_reapsOrphans(self) -> None:
        """As the one to whom orphans are handed it leaves no zombie, and the exit code is the command's."""
        launch = (
            "import ctypes, os, sys\n"
            f"ctypes.CDLL(None).prctl({PR_SET_CHILD_SUBREAPER}, 1, 0, 0, 0)\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        wrapper = self.spawn("python", "-S", "-c", launch, WRAPPER, "--id=reaper", *WRAPPED, "orphans")
        await wrapper.says("ready")

        async def onlyTheCommandIsLeft() -> bool:
            return len(self.childrenOf(self.pidOf(wrapper))) == 1

        await self.until(onlyTheCommandIsLeft)
        await self.end(wrapper)
        self.assertEqual(wrapper.exitCode, 6)

    async def test_aCommandThatForks(self) -> None:
        """When the command ends the wrapper does, whatever it leaves behind, and however long that holds the pipes."""
        wrapper = self.wrapper("--id=forks", *WRAPPED, "forks")
        await wrapper.says("ready")
        await wrapper.exited
        self.endLeftovers()
        await wrapper.ended
        self.assertEqual(wrapper.exitCode, 4)

    # -- the end of the service

    async def test_continuesTheService(self) -> None:
        """Killed and started again within the interval, it continues the same service."""
        words = ["--id=restarted", "--interval=20", REGISTERED_FIRST, "sh", "-c", "echo ready; exec sleep 60"]
        first = self.wrapper(*words)
        await first.says("ready")
        first.kill("KILL")
        self.endLeftovers()
        await first.ended
        again = self.wrapper(*words)
        await again.says("ready")
        await again.says("continued with the token")
        self.assertEqual(await self.events("restarted"), ["service.join"])

    # -- the health check

    # -- what it costs

    async def test_costsLittle(self) -> None:
        """Under 60 MB, and no CPU time that could be measured while nothing happens."""
        # The measurement of coverage costs more than the measured code.
        plain = {key: value for key, value in self.environment().items() if not key.startswith("COVERAGE_")}
        wrapper = Child()
        command = ["sh", "-c", "echo ready; exec sleep 60"]
        reactor.spawnProcess(wrapper, WRAPPER, [WRAPPER, "--id=cheap", "--interval=20", *command], env=plain)
        self.children.append(wrapper)
        await wrapper.says("ready")
        pid = self.pidOf(wrapper)
        with open(f"/proc/{pid}/status") as file:
            memory = re.search(r"VmHWM:\s*(\d+) kB", file.read())
        assert memory is not None
        self.assertLess(int(memory[1]), 60_000)

        async def isIdle() -> bool:
            # A start goes on when the command is ready, for longer on a slow machine. A tick is 10 ms.
            before = self.ticksOf(pid)
            await deferLater(reactor, 2, lambda: None)
            return self.ticksOf(pid) - before <= 1

        await self.until(isIdle)

    def ticksOf(self, pid: int) -> int:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


class ChildTests(TestCase):
    """A child whose end a thread waits for."""

    async def test_aSignalAfterTheEnd(self) -> None:
        """It is dropped also when the reactor does not know of the end yet."""
        child = startChild(["true"], os.environb, frozenset())
        os.waitpid(child.pid, 0)
        child.signal(signal.SIGTERM)
        self.assertFalse(child.ended.called)
