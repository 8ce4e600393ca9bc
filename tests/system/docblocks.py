"""
The code in the documentation: found on its pages, and run as a reader would run it.

A comment before a block (``.. not run: why``) says that it can't be run here; ``.. run: once`` leaves its loop, which
has no end, after one turn; ``.. run: interrupt twistd -n …`` does what the text tells the reader to do by hand.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from itertools import dropwhile, takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
from twisted.internet import reactor as globalReactor
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater

from tests import ROOT
from tests.inprocess import Ended, runScript
from tests.needs import PROGRAMS, needs
from tests.system.ports import freePorts
from tests.system.processes import PATIENCE, Child, ProcessTestCase
from txserviceregistry.commands.raxsr.main import main as raxsr
from txserviceregistry.commands.users import main as users
from txserviceregistry.util.deferred import returnsDeferred

reactor: Any = globalReactor
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^\.\. (?:(?P<comment>run|not run): (?P<words>.*)"
    r"|code-block:: (?P<language>\w+)\n(?:   +:.*\n)*\n(?P<text>(?:   +.*\n|\n)+)"
    r"|literalinclude:: (?P<file>\S+))",
    re.MULTILINE,
)
# Text that differs each time, and its placeholder.
_CHANGING = {
    r"[0-9a-f]{8}\\-[0-9a-f]{4}\\-[0-9a-f]{4}\\-[0-9a-f]{4}\\-[0-9a-f]{12}": r"[0-9a-f-]{36}",
    r"\d{4}\\-\d\d\\-\d\dT[\d:]{8}\\.\d{3}Z": r"[0-9T:.Z-]{24}",
    r"after\\ \d+\\ ms": r"after \\d+ ms",
    r"\d+\\ of\\ ": r"\\d+ of ",
    r'"uptime":\\ [\d\\.]+': r'"uptime": [0-9.]+',
    r'"version":\\ "[^"]+': r'"version": "[^"]+',
    r"127\.0\.0\.1:\d+": r"127.0.0.1:\\d+",
    r"…": r".*",
}
# Ports that pages name; each is another one here, that is free.
_PORT = re.compile(r"\b(8\d{3}|9\d{3})\b")
# Commands that need no shell, start no program and end by themselves.
_IN_PROCESS = re.compile(
    r"(raxsr (services|account|events list|configuration (set|list|history|import))|service-registry-users)\b"
    r"[^|$;&<>*]*"
)
_NEEDS_NO_SHELL = re.compile(r"""([\w\s./:,=@%+#-]|'[^']*')*""")
_SCRIPTS = {"raxsr": raxsr, "service-registry-users": users}
# So that tables stay as they are shown.
_FOUR_DIGITS = range(2000, 10_000)


@attrs.frozen
class Block:
    """
    A piece of a page.

    :ivar kind: the language of a block of code; ``file`` for a file that is shown, by its path from ``docs``; ``run``
        for what the reader does by hand.
    :ivar reason: why it is not run.
    """

    page: str
    line: int
    kind: str
    text: str
    reason: str = ""


def blocksOf(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    source = page.read_text()
    reason = ""
    for found in _BLOCK.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        if found["comment"] == "not run":
            reason = found["words"]
        elif found["comment"]:
            yield Block(page.name, line, "run", found["words"])
        elif found["file"]:
            yield Block(page.name, line, "file", found["file"])
        else:
            yield Block(page.name, line, found["language"], dedent(found["text"]).strip("\n") + "\n", reason)
            reason = ""


def commandsIn(block: Block) -> list[tuple[str, str]]:
    """The commands of a block of shell, each with what it is shown to print (``sh`` blocks show nothing)."""
    text = block.text.replace("\\\n", "")
    if block.kind == "sh":
        return [(line, "") for line in text.splitlines() if line and not line.startswith("#")]
    commands: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line == "$ echo $?":
            command, output = commands.pop()
            commands.append((f"{command}; echo $?", output))
        elif line.startswith("$ "):
            commands.append((line[2:], ""))
        else:
            command, output = commands.pop()
            commands.append((command, f"{output}{line}\n"))
    return commands


class PageTestCase(ProcessTestCase):
    """Runs a page as a reader would: from top to bottom, in a folder of its own, with a terminal for all that stays."""

    #: Which commands go on until they are stopped.
    STAYING = re.compile(r"(\w+=\S+ )*twistd -n")
    #: The line that some of them print as soon as they work. Ctrl-C is Twisted's to take only then: before
    #: its reactor runs, it is Python's, with a traceback.
    READY = {"service-registry": "Credentials", "dice.tac": "has host", "service-registry-dns": "(TCP)"}

    def setUp(self) -> None:
        super().setUp()
        self.ports: dict[str, str] = {}
        self.staying: dict[str, Child] = {}
        self.stayed: list[Child] = []
        self.exported: dict[str, str] = {}
        self.dataDir = os.path.join(self.home, ".local", "state", "txserviceregistry")

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """See ProcessTestCase; with our programs on the path."""
        environment = super().environment(extra)
        # Pages say where things are on a machine that says nothing else.
        del environment["XDG_STATE_HOME"]
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        return {**environment, "PATH": path, **self.exported}

    def withFreePorts(self, text: str) -> str:
        """The text, with ports that are free here."""

        def other(found: re.Match[str]) -> str:
            return self.ports.setdefault(found[0], str(freePorts(1, _FOUR_DIGITS)[0]))

        return _PORT.sub(other, text.replace("/opt/my-app", f"{self.home}/my-app"))

    def shell(self, command: str) -> Child:
        """Start a command."""
        words = shlex.split(command, comments=True) if _NEEDS_NO_SHELL.fullmatch(command) else []
        words = list(dropwhile(("exec", "env").__contains__, words))
        settings = list(takewhile(lambda word: "=" in word, words))
        program = words[len(settings) :]
        if program and os.path.exists(os.path.join(os.path.dirname(sys.executable), program[0])):
            given = dict(word.split("=", 1) for word in settings)
            return self.spawn(*program, environment={"COLUMNS": "200", **given})
        return self.spawn("/bin/sh", "-c", command, environment={"COLUMNS": "200"})

    async def stay(self, command: str) -> None:
        """Start a command that goes on, unless it is there already, and wait until it does what it is there for."""
        if command in self.staying:
            return
        full = f"{command} --listen=tcp:8880:interface=127.0.0.1" if command.endswith(" service-registry") else command
        child = self.shell("exec env " + self.withFreePorts(full))
        self.staying[command] = child
        self.stayed.append(child)
        for program, saying in self.READY.items():
            if re.search(rf"(?<![\w-]){program}(?![\w-])", command):
                await child.says(saying)

    def expected(self, output: str) -> re.Pattern[str]:
        """The pattern of a command's output."""
        # Lines that are folded for the page are one line.
        pattern = re.escape(re.sub(r',\n +"', ', "', self.withFreePorts(output)))
        for changing, stands in _CHANGING.items():
            pattern = re.sub(changing, stands, pattern)
        return re.compile(pattern, re.DOTALL)

    @returnsDeferred
    async def ran(self, command: str) -> Ended:
        """Run a command to its end, our own in this process if it needs neither a shell nor a process of its own."""
        environment = {**self.environment(), "COLUMNS": "200"}
        if _IN_PROCESS.fullmatch(command):
            program, *words = shlex.split(command, comments=True)
            return await runScript(_SCRIPTS[program], *words, environment=environment, folder=self.home)
        child = self.shell(command)
        try:
            await child.ended
        except CancelledError:
            child.kill("KILL")
            raise
        return Ended(child.output, child.errors, -1 if child.exitCode is None else child.exitCode)

    async def command(self, command: str, output: str) -> None:
        """Run a command until it prints what is shown; what the reader started before may need its time."""
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            child = await self.shell(self.withFreePorts(f'X={value}; printf %s "$X"')).ended
            self.assertEqual((child.exitCode, child.errors), (0, ""), command)
            self.exported[name] = child.output
            return
        if command.startswith("cat ") and not os.path.exists(path := os.path.join(self.home, command[4:])):
            # The page shows what the reader has written.
            Path(path).write_text(self.withFreePorts(output))
        pattern = self.expected(output.strip())
        seen: list[str] = []
        end = reactor.seconds() + PATIENCE
        while reactor.seconds() < end or not seen:
            try:
                ended = await self.ran(self.withFreePorts(command)).addTimeout(PATIENCE, reactor)
            except TimeoutError:
                seen.append(f"(nothing more within {PATIENCE} s)")
                break
            # curl tells a pipe of its progress, on stderr; on a terminal both come together, in whatever order.
            for printed in (ended.out, ended.out + ended.err, ended.err + ended.out):
                seen.append(re.sub(r" +$", "", printed, flags=re.MULTILINE).strip())
                if pattern.fullmatch(seen[-1]) if output else ended.code == 0:
                    return
            await deferLater(reactor, 0.1, lambda: None)
        self.fail(f"$ {command}\nprinted\n" + "\n\n".join(dict.fromkeys(seen)) + f"\ninstead of\n{output}")

    async def python(self, text: str, names: dict[str, Any]) -> None:
        """Run a block of Python: a test by trial, a program by itself, and anything else here, with what it needs."""
        text = self.withFreePorts(text).replace("/var/lib/app", self.home)
        name = f"block_{len(os.listdir(self.home))}"
        if "def test_" in text:
            Path(self.home, f"{name}.py").write_text(text)
            await self.command(f"PYTHONPATH=. trial {name}", "")
        elif re.search(r"^application = Application", text, re.MULTILINE):
            Path(self.home, f"{name}.tac").write_text(text)
            await self.stay(f"twistd -n --pidfile= -y {name}.tac")
            registered = re.search(r'Registered(?:Service|Endpoint)\(.*, "([\w-]+)"', text)
            assert registered is not None
            client = self.client()

            async def isThere() -> bool:
                return registered[1] in [service["id"] async for service in client.services.iterate()]

            await self.until(isThere)
        elif "react(" in text or "useMonotonic(" in text:
            Path(self.home, f"{name}.py").write_text(text)
            await self.command(f"python3 {name}.py", "")
        else:
            code = compile(text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, names)
            if code.co_flags & inspect.CO_COROUTINE:
                await Deferred.fromCoroutine(result).addTimeout(PATIENCE, reactor)

    async def perform(self, page: Path, names: dict[str, Any] | None = None) -> None:
        """
        Do all that a page says.

        :param names: what the page's pieces of Python take for granted.
        """
        names = {} if names is None else names
        once = False
        shell = [block.text for block in blocksOf(page) if block.kind in ("sh", "console") and not block.reason]
        needs(*PROGRAMS.intersection(re.findall(r"\w+", " ".join(shell))))
        for block in blocksOf(page):
            if block.kind == "file":
                source = DOCS / block.text
                Path(self.home, source.name).write_text(self.withFreePorts(source.read_text()))
            elif block.kind == "run" and block.text == "once":
                once = True
            elif block.kind == "run":
                verb, _, what = block.text.partition(" ")
                self.assertEqual(verb, "interrupt")
                child = self.staying.pop(what)
                child.kill("INT")
                await child.ended
            elif block.reason:
                pass
            elif block.kind in ("sh", "console"):
                for command, output in commandsIn(block):
                    if self.STAYING.match(command):
                        await self.stay(command)
                    else:
                        await self.command(command, output)
            elif block.kind == "python":
                # A loop without an end, in the last lines, is left after one turn.
                await self.python(block.text + ("    break\n" if once else ""), names)
                once = False
        # (A command that does not stay may have been tried too early.)
        self.assertNoTraceback(self.stayed)
