"""
The console script: the commands, the options that all of them have, and the help.

A command's module is imported when the command is needed.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence

from ..._version import __version__, installCommand
from ..console import checkOutput, runConsole, tell
from ..outcome import CommandFailed, Interrupted, UsageError, describe, didYouMean, oneLine
from .base import NAME, Program, RaxsrCommand
from .parser import GlobalParser, Parser

#: The commands, and their classes in this package.
COMMANDS = {
    "account rate-limits": "account:RateLimits",
    "account resource-limits": "account:ResourceLimits",
    "complete": "completion:Complete",
    "configuration exec": "execute:Execute",
    "configuration export": "transfer:Export",
    "configuration get": "configuration:Get",
    "configuration history": "configuration:History",
    "configuration import": "transfer:Import",
    "configuration list": "configuration:List",
    "configuration remove": "configuration:Remove",
    "configuration rollback": "configuration:Rollback",
    "configuration set": "configuration:Set",
    "configuration watch": "watch:Configuration",
    "console": "account:Console",
    "events follow": "events:Follow",
    "events list": "events:List",
    "help": "main:Help",
    "lock": "locks:Lock",
    "locks get": "locks:Get",
    "locks list": "locks:List",
    "locks release": "locks:Release",
    "services create": "services:Create",
    "services drain": "services:Drain",
    "services get": "services:Get",
    "services heartbeat": "services:Heartbeat",
    "services list": "services:List",
    "services out": "services:Out",
    "services remove": "services:Remove",
    "services states": "services:States",
    "services up": "services:Up",
    "services update": "services:Update",
    "services watch": "watch:Services",
    "template": "template:Template",
}

_MORE = """\
The registry and the credentials are set by these options, by RAXSR_* environment variables, by ~/.raxrc, or by the file
that a registry on this machine has written.

Examples:
  raxsr services list --tag www
  raxsr services list -f json
  raxsr help services list
"""


def main() -> int:
    return runConsole(NAME, lambda: run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line, and return the exit code."""
    program = Program(_globalParser())
    try:
        return _run(program, words)
    except (Interrupted, OSError):
        raise
    except Exception as error:
        if isinstance(error, ImportError) and not (error.name or "").startswith("txserviceregistry"):
            missing = f"the extra 'cli' is required, and {error.name or 'a part of it'} is not installed"
            error = CommandFailed(f"{missing}: {installCommand('cli')}")
        if program.log is not None:
            program.log(f"{NAME}: {oneLine(describe(error)[1])}")
        raise error from None


def _run(program: Program, words: Sequence[str]) -> int:
    program.options, words = program.parser.parse_known_args(words)
    options = program.options
    if options.version:
        print(f"{NAME} {__version__}")
        return 0
    if options.help or not words:
        leading = _leadingWords(words)
        words = ["help", *(leading[1:] if leading[:1] == ["help"] else leading)]
    factory, name, arguments = _found(program, words)
    if options.logFile is not None:
        program.log = _logFile(options.logFile)
        program.log(f"{NAME} {__version__}: {name}")
    command = factory(program)
    command.parsed = command.parser(name).parse_args(arguments)
    if command.hasOutput():
        # Before anything is changed: the result could not be shown.
        checkOutput()
    command.complete()
    return command.run() or 0


def _globalParser() -> GlobalParser:
    parser = GlobalParser(
        prog=NAME,
        usage="%(prog)s RESOURCE ACTION [OPTION]…",
        description="Query and change a service registry.",
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
    options.add_argument("--api-url", metavar="URL", dest="baseUrl", help="the registry's URL, or several with commas")
    options.add_argument("--auth-url", metavar="URL", dest="authUrl", help="the Auth API's URL")
    options.add_argument("--region", metavar="REGION", help="the registry's region in the Auth API's catalog")
    options.add_argument("-q", "--quiet", action="store_true", help="no confirmations, notes or progress")
    shown = "show requests and responses on stderr, with secrets redacted"
    options.add_argument("--debug", action="store_true", help=shown)
    shown = "show each request and its status on stderr; -vv is the same as --debug"
    options.add_argument("-v", "--verbose", action="count", default=0, help=shown)
    shown = "append notes, errors, requests and responses to this file, with secrets redacted"
    options.add_argument("--log-file", metavar="FILE", dest="logFile", help=shown)
    return parser


def _logFile(path: str) -> Callable[[str], None]:
    """Open a file, or make it with mode 0600; the result appends a line with the time."""
    try:
        # Buffered by lines, so that other commands can append to it meanwhile.
        file = open(  # noqa: SIM115  # it lasts as long as the process
            path, "a", 1, encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)
        )
    except OSError as error:
        raise CommandFailed(f"can't write the log file {path}: {error.strerror}") from None
    failures: list[OSError] = []

    def write(line: str) -> None:
        if failures:
            return
        try:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {line}\n")
        except OSError as error:
            # The first failure is reported, and the command goes on.
            failures.append(error)
            tell(f"raxsr: can't write the log file {path} any more: {error.strerror}")

    return write


# -- finding a command


def load(name: str) -> type[RaxsrCommand]:
    module, _, attribute = COMMANDS[name].partition(":")
    found: type[RaxsrCommand] = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def _found(program: Program, words: Sequence[str]) -> tuple[type[RaxsrCommand], str, list[str]]:
    """The class of the command that *words* begin with, its words, and the others. They may be shortened."""
    for end in range(len(_leadingWords(words)), 0, -1):
        given, rest = words[:end], list(words[end:])
        name = " ".join(given)
        if name in COMMANDS:
            return load(name), name, rest
        similar = [each for each in COMMANDS if _isShort(given, each.split())]
        if len(similar) == 1:
            return load(similar[0]), name, rest
    raise UsageError(_unknown(program, words))


def _isShort(given: Sequence[str], whole: Sequence[str]) -> bool:
    return len(given) == len(whole) and all(map(str.startswith, whole, given))


def _leadingWords(words: Sequence[str]) -> list[str]:
    """The words before the first option."""
    end = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:end])


def _unknown(program: Program, words: Sequence[str]) -> str:
    """The error about a command that does not exist."""
    leading = _leadingWords(words)[:2]
    see = f"See {NAME} --help"
    if not leading:
        option = words[0].partition("=")[0]
        return f"unknown option {option}{didYouMean(option, program.parser._option_string_actions) or '.'} {see}"
    command = " ".join(leading)
    actions = ", ".join(name.partition(" ")[2] for name in _below(leading[0]))
    if len(leading) == 1 and actions:
        return f"{command} needs an action: {actions}. {see}"
    hint = didYouMean(command, COMMANDS) or (f". Actions of {leading[0]}: {actions}." if actions else ".")
    return f"unknown command '{command}'{hint} {see}"


def _below(resource: str) -> list[str]:
    return [name for name in COMMANDS if name.startswith(f"{resource} ")]


class Help(RaxsrCommand):
    """Show all commands, or the help of one."""

    example = "raxsr help services list"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("words", nargs="*", metavar="COMMAND", help="a command, or its first word")

    def run(self) -> int | None:
        words = self.parsed.words
        if not words:
            options = self.program.parser.format_help()
            sys.stdout.write(f"{options}\ncommands:\n{_summaries(list(COMMANDS))}\n\n{_MORE}")
        elif len(words) == 1 and _below(words[0]):
            print(_summaries(_below(words[0])))
        else:
            factory, name, rest = _found(self.program, words)
            if rest:
                raise UsageError(_unknown(self.program, words))
            print(factory(self.program).parser(name).format_help())
            print(f"Options of every command: see {NAME} --help")
        return None


def _summaries(names: Sequence[str]) -> str:
    width = max(map(len, names))
    lines = ((name, load(name).description().partition("\n")[0].rstrip(".")) for name in sorted(names))
    return "\n".join(f"  {name.ljust(width)}  {summary}" for name, summary in lines)
