"""``raxsr configuration exec``: runs a command with values of the registry in its environment."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Collection, Mapping
from typing import Any

from ..outcome import CommandFailed, UsageError
from .base import RaxsrCommand
from .configuration import addNamespace, allValues
from .loaders import decidesWhatRuns
from .parser import Parser

_NOT_EXECUTABLE = 126


def environmentOf(namespace: str, values: Mapping[str, str], allowed: Collection[str] = ()) -> dict[str, str]:
    """
    Environment variables for the values of a namespace. The name is the part of the key below the namespace, in upper
    case, with ``_`` for what is neither letter nor digit, and ``_`` before a leading digit.

    :param allowed: the names of variables that may be set although they decide which code runs.
    :raises CommandFailed: if two keys have the same name, a value can't be in an environment, or a variable that
        decides which code runs is not allowed.
    """
    prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
    environment: dict[str, str] = {}
    keys: dict[str, str] = {}
    for key, value in values.items():
        # The namespace's own name may be a key too, which is not below it.
        if not key.startswith(prefix):
            continue
        name = re.sub(r"[^A-Z0-9]", "_", key[len(prefix) :].upper())
        name = f"_{name}" if name[0].isdigit() else name
        if name in keys:
            raise CommandFailed(f"{keys[name]} and {key} would both be the environment variable {name}")
        if "\0" in value:
            raise CommandFailed(f"the value of {key} has a NUL character, which an environment variable can't have")
        if decidesWhatRuns(name) and name not in allowed:
            raise CommandFailed(
                f"{key} would be the environment variable {name}, which decides which code runs or where API keys "
                f"are sent. Nothing was run. --allow {name} permits it"
            )
        keys[name], environment[name] = key, value
    return environment


class RunningCommand(RaxsrCommand):
    """
    A command that runs another program, whose words follow ``--``.

    :ivar usage: the options, for the help.
    """

    usage = ""

    def addArguments(self, parser: Parser) -> None:
        parser.usage = f"%(prog)s {self.usage} -- COMMAND [ARGUMENT]…"
        parser.takesCommand = True

    def hasOutput(self) -> bool:
        # The output is the program's.
        return False

    def run(self) -> int | None:
        if not self.parsed.command:
            raise UsageError("give the command to run, and its arguments, after --")

        # This imports Twisted, which help does not need.
        from ..wrapper.process import CantStart, findProgram

        try:
            # In the user's PATH, which the values of exec may change.
            return self.runProgram(os.path.abspath(findProgram(self.parsed.command[0])))
        except CantStart as error:
            self.program.complain(str(error))
            return error.exitCode

    def runProgram(self, program: str) -> int:
        """Run the *program*, and return its exit code."""
        raise NotImplementedError


class Execute(RunningCommand):
    """
    Run a command with the values of a namespace as environment variables.

    The value of /production/cassandra/listen_ip is LISTEN_IP for --namespace /production/cassandra, and
    CASSANDRA_LISTEN_IP for --namespace /production. The command takes the place of raxsr: its exit code is its own.
    It is looked up in raxsr's own PATH. Variables that decide which programs or code run (PATH, LD_PRELOAD, BASH_ENV,
    PYTHONPATH, NODE_OPTIONS and others), or where API keys are sent (RAXSR_AUTH_URL), are refused unless they are named
    with --allow.
    """

    example = "raxsr configuration exec --namespace /production/cassandra -- /opt/cassandra/bin/cassandra -f"
    usage = "--namespace NAMESPACE [--allow VARIABLE]… [--require]"

    def addArguments(self, parser: Parser) -> None:
        super().addArguments(parser)
        addNamespace(parser, required=True)
        shown = "set this environment variable although it decides which code runs; may be given several times"
        parser.add_argument("--allow", action="append", default=[], metavar="VARIABLE", help=shown)
        shown = "run nothing if there are no values below the namespace"
        parser.add_argument("--require", action="store_true", help=shown)

    async def perform(self) -> Any:
        return await allValues(self, self.client, self.parsed.namespace)

    def runProgram(self, program: str) -> int:
        environment = environmentOf(self.parsed.namespace, self.ask(), self.parsed.allow)
        if not environment:
            nothing = f"there are no configuration values below {self.parsed.namespace}"
            if self.parsed.require:
                raise CommandFailed(f"{nothing}. Nothing was run (--require)")
            self.program.note(f"{nothing}: the command runs without them")
        sys.stdout.flush()
        sys.stderr.flush()
        # Python ignores these two, and the program would inherit that.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        try:
            os.execve(program, self.parsed.command, {**os.environ, **environment})
        except (OSError, ValueError) as error:
            self.program.complain(f"{self.parsed.command[0]} can't be run: {getattr(error, 'strerror', None) or error}")
            return _NOT_EXECUTABLE
