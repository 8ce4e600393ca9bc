"""
The application: its commands, the options that all of them have, and its exit codes.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, Protocol, cast

from cliff.app import App
from cliff.commandmanager import CommandManager

from ..._version import __version__
from ...errors import ServiceRegistryError
from ..console import checkOutput, tell
from ..outcome import CommandFailed, Interrupted, UsageError, oneLine
from .logfile import LogFile
from .parser import GlobalParser, didYouMean

#: Each command, and the class of this package that does it. It is imported when it is needed.
COMMANDS = {
    "account rate-limits": "account:RateLimits",
    "account resource-limits": "account:ResourceLimits",
    "complete": "completion:Complete",
    "configuration exec": "execute:Execute",
    "configuration export": "transfer:Export",
    "configuration get": "configuration:Get",
    "configuration import": "transfer:Import",
    "configuration list": "configuration:List",
    "configuration remove": "configuration:Remove",
    "configuration set": "configuration:Set",
    "events follow": "follow:Follow",
    "events list": "events:List",
    "help": "help:Help",
    "services create": "services:Create",
    "services get": "services:Get",
    "services heartbeat": "services:Heartbeat",
    "services list": "services:List",
    "services remove": "services:Remove",
    "services update": "services:Update",
}


def _commandManager() -> CommandManager:
    manager = CommandManager()
    package = __name__.rpartition(".")[0]
    for name, place in COMMANDS.items():
        manager.commands[name] = EntryPoint(name, f"{package}.{place}", "raxsr")
    return manager


class _Command(Protocol):
    """What is done with a command here: see :class:`~txserviceregistry.commands.raxsr.base.RaxsrCommand`."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser: ...

    def hasOutput(self, parsed: argparse.Namespace) -> bool: ...

    def run(self, parsed: argparse.Namespace) -> int: ...


class Raxsr(App):
    """The application."""

    NAME = "raxsr"

    #: Takes lines for ``--log-file``, if it is given.
    log: Callable[[str], None] | None = None

    def __init__(self) -> None:
        super().__init__("Ask a service registry, and change what is in it.", __version__, _commandManager())
        # cliff has put commands of its own over two of ours.
        self.command_manager.commands.update(_commandManager().commands)

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, Any] | None = None
    ) -> argparse.ArgumentParser:
        """The parser of the options that every command has."""
        parser = GlobalParser(
            prog=self.NAME,
            usage="%(prog)s RESOURCE ACTION [OPTION]…",
            description=description,
            add_help=False,
            allow_abbrev=False,
        )
        options = parser.add_argument_group("options of every command, anywhere on the line")
        options.add_argument("-h", "--help", action="store_true", help="show this help, or the command's")
        options.add_argument("--version", action="store_true", help="show the version")
        options.add_argument("--username", metavar="NAME", help="the user's name")
        options.add_argument(
            "--api-key",
            metavar="KEY",
            dest="apiKey",
            help="the user's key; everybody on this machine can see it there: RAXSR_API_KEY or ~/.raxrc keep it better",
        )
        options.add_argument("--api-url", metavar="URL", dest="baseUrl", help="the registry; several URLs with commas")
        options.add_argument("--auth-url", metavar="URL", dest="authUrl", help="the Auth API")
        options.add_argument("--region", metavar="REGION", help="which registry of the Auth API's catalog")
        options.add_argument("-q", "--quiet", action="store_true", help="no confirmations, notes or progress")
        options.add_argument(
            "--debug", action="store_true", help="show the HTTP exchange on stderr, with secrets blanked"
        )
        options.add_argument(
            "-v",
            "--verbose",
            action="count",
            default=0,
            help="show each request and its status on stderr; -vv is the same as --debug",
        )
        options.add_argument(
            "--log-file",
            metavar="FILE",
            dest="logFile",
            help="append notes, errors and the HTTP exchange to this file, with secrets blanked",
        )
        return parser

    def run(self, argv: list[str]) -> int:
        """
        :param argv: the arguments, without the program's name.
        :return: the exit code.
        """
        try:
            return self._run(argv)
        except UsageError as error:
            self.complain(str(error))
            return 2
        except (CommandFailed, ServiceRegistryError) as error:
            self.complain(str(error))
            return 1
        except Interrupted as interrupted:
            return 128 + interrupted.signal
        except OSError:
            # What commands do with files they tell themselves: this is about the output.
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.complain(f"a defect of raxsr, {type(error).__name__} in {place.filename}:{place.lineno}: {error}")
            return 1

    def complain(self, text: str) -> None:
        """Tell what went wrong, in one line."""
        tell(f"{self.NAME}: {oneLine(text)}")
        if self.log is not None:
            self.log(f"{self.NAME}: {oneLine(text)}")

    def note(self, text: str) -> None:
        """Tell what is good to know and no result."""
        if not self.options.quiet:
            tell(f"{self.NAME}: {oneLine(text)}")
        if self.log is not None:
            self.log(f"{self.NAME}: {oneLine(text)}")

    def _run(self, argv: list[str]) -> int:
        self.options, words = self.parser.parse_known_args(argv)
        if self.options.version:
            print(f"{self.NAME} {__version__}", file=self.stdout)
            return 0
        if self.options.help or not words:
            leading = self.leadingWords(words)
            return self.run_subcommand(["help", *(leading[1:] if leading[:1] == ["help"] else leading)])
        return self.run_subcommand(words)

    def run_subcommand(self, argv: list[str]) -> int:
        """
        :param argv: a command and its arguments.
        :raises UsageError: if there is no such command, or it does not take these arguments.
        :raises OSError: if it has output, and this can't be written.
        """
        try:
            factory, name, arguments = self.command_manager.find_command(argv)
        except ValueError:
            raise UsageError(self.unknownCommand(argv)) from None
        if self.options.logFile is not None and self.log is None:
            self.log = LogFile(self.options.logFile).write
            self.log(f"{self.NAME} {__version__}: {name}")
        command = cast(_Command, factory(self, self.options))
        parsed = command.get_parser(f"{self.NAME} {name}").parse_args(arguments)
        if command.hasOutput(parsed):
            # Before anything is done: what comes of it could not be shown.
            checkOutput()
        return command.run(parsed)

    @staticmethod
    def leadingWords(argv: list[str]) -> list[str]:
        """The words before the first option."""
        end = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
        return argv[:end]

    def unknownCommand(self, argv: list[str]) -> str:
        """What to tell about a command that there is not."""
        words = self.leadingWords(argv)[:2]
        see = f"See {self.NAME} --help"
        if not words:
            option = argv[0].partition("=")[0]
            known = self.parser._option_string_actions
            return f"the command comes first, and {option} is none{didYouMean(option, known)} {see}"
        said = " ".join(words)
        actions = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{words[0]} ")]
        if len(words) == 1 and actions:
            return f"{said} what? There is: {', '.join(actions)}. {see}"
        close = didYouMean(said, COMMANDS)
        if not close and actions:
            close = f". Of {words[0]} there is: {', '.join(actions)}."
        return f"there is no command '{said}'{close or '.'} {see}"
