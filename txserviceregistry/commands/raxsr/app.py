"""The application: its commands, the options that all of them have, and its exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

from cliff.app import App
from cliff.commandmanager import CommandManager

from ..._version import __version__
from ..console import checkOutput, tell
from ..outcome import Interrupted, UsageError, describe, didYouMean, oneLine
from .logfile import LogFile
from .parser import GlobalParser

#: The commands, and their classes in this package, each of which is imported when it is needed.
COMMANDS = {
    "account rate-limits": "account:RateLimits",
    "account resource-limits": "account:ResourceLimits",
    "complete": "completion:Complete",
    "configuration exec": "execute:Execute",
    "configuration export": "transfer:Export",
    "configuration get": "configuration:Get",
    "configuration history": "history:History",
    "configuration import": "transfer:Import",
    "configuration list": "configuration:List",
    "configuration remove": "configuration:Remove",
    "configuration rollback": "history:Rollback",
    "configuration set": "configuration:Set",
    "configuration watch": "watch:Configuration",
    "console": "console:Console",
    "events follow": "follow:Follow",
    "events list": "events:List",
    "help": "help:Help",
    "lock": "lock:Lock",
    "locks get": "locks:Get",
    "locks list": "locks:List",
    "locks release": "locks:Release",
    "services create": "services:Create",
    "services drain": "states:Drain",
    "services get": "services:Get",
    "services heartbeat": "services:Heartbeat",
    "services list": "services:List",
    "services out": "states:Out",
    "services remove": "services:Remove",
    "services states": "states:States",
    "services up": "states:Up",
    "services update": "services:Update",
    "services watch": "watch:Services",
    "template": "template:Template",
}


def _commandManager() -> CommandManager:
    manager = CommandManager()
    package = __name__.rpartition(".")[0]
    for name, place in COMMANDS.items():
        manager.commands[name] = EntryPoint(name, f"{package}.{place}", "raxsr")
    return manager


class Raxsr(App):
    """The application."""

    NAME = "raxsr"

    #: Takes lines for ``--log-file``, if it is given.
    log: Callable[[str], None] | None = None

    def __init__(self) -> None:
        super().__init__("Read and change what is in a service registry.", __version__, _commandManager())
        # cliff replaces two of them with its own.
        self.command_manager.commands.update(_commandManager().commands)

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, Any] | None = None
    ) -> argparse.ArgumentParser:
        """The parser of the options of every command."""
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
            help="the user's API key; other users of this machine can see it: prefer RAXSR_API_KEY or ~/.raxrc",
        )
        options.add_argument(
            "--api-url", metavar="URL", dest="baseUrl", help="the registry's URL, or several with commas"
        )
        options.add_argument("--auth-url", metavar="URL", dest="authUrl", help="the Auth API's URL")
        options.add_argument("--region", metavar="REGION", help="the registry's region in the Auth API's catalog")
        options.add_argument("-q", "--quiet", action="store_true", help="no confirmations, notes or progress")
        options.add_argument(
            "--debug", action="store_true", help="show requests and responses on stderr, with secrets redacted"
        )
        shown = "show each request and its status on stderr; -vv is the same as --debug"
        options.add_argument("-v", "--verbose", action="count", default=0, help=shown)
        options.add_argument(
            "--log-file",
            metavar="FILE",
            dest="logFile",
            help="append notes, errors, requests and responses to this file, with secrets redacted",
        )
        return parser

    def run(self, argv: list[str]) -> int:
        """Run the command line *argv*, and return the exit code."""
        try:
            return self._run(argv)
        except (Interrupted, OSError):
            raise
        except Exception as error:
            if self.log is not None:
                self.log(f"{self.NAME}: {oneLine(describe(error)[1])}")
            raise

    def complain(self, text: str) -> None:
        """Write an error, in one line."""
        self._write(text, quiet=False)

    def note(self, text: str) -> None:
        """Write something that is good to know and not a result."""
        self._write(text, quiet=self.options.quiet)

    def _write(self, text: str, quiet: bool) -> None:
        line = f"{self.NAME}: {oneLine(text)}"
        if not quiet:
            tell(line)
        if self.log is not None:
            self.log(line)

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
        :raises UsageError: if the command or its arguments are wrong.
        :raises OSError: if its output can't be written.
        """
        try:
            factory, name, arguments = self.command_manager.find_command(argv)
        except ValueError:
            raise UsageError(self.unknownCommand(argv)) from None
        if self.options.logFile is not None and self.log is None:
            self.log = LogFile(self.options.logFile).write
            self.log(f"{self.NAME} {__version__}: {name}")
        command: Any = factory(self, self.options)
        parsed = command.get_parser(f"{self.NAME} {name}").parse_args(arguments)
        if command.hasOutput(parsed):
            # Before anything is changed: the result could not be shown.
            checkOutput()
        code: int = command.run(parsed)
        return code

    @staticmethod
    def leadingWords(argv: list[str]) -> list[str]:
        """The words before the first option."""
        end = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
        return argv[:end]

    def unknownCommand(self, argv: list[str]) -> str:
        """The error about a command that does not exist."""
        words = self.leadingWords(argv)[:2]
        see = f"See {self.NAME} --help"
        if not words:
            option = argv[0].partition("=")[0]
            return f"unknown option {option}{didYouMean(option, self.parser._option_string_actions) or '.'} {see}"
        command = " ".join(words)
        actions = ", ".join(name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{words[0]} "))
        if len(words) == 1 and actions:
            return f"{command} needs an action: {actions}. {see}"
        hint = didYouMean(command, COMMANDS) or (f". Actions of {words[0]}: {actions}." if actions else ".")
        return f"unknown command '{command}'{hint} {see}"
