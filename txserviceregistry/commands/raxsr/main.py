"""The console script: the options that all commands have, the help, and the completion of shells."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any

from ..._version import __version__, installCommand
from ..console import CommandFailed, Interrupted, Parser, UsageError, describe, didYouMean, oneLine, runConsole, tell

# These declare commands.
from . import configuration, events, execute, services  # noqa: F401
from .command import COMMANDS, NAME, Command, Run, argument, command

_MORE = """\
The registry and the credentials are set by these options, by RAXSR_* environment variables, by ~/.raxrc, or by the file
that a registry on this machine has written.

Examples:
  raxsr services list --tag www
  raxsr services list -f json
  raxsr help services list
"""

# shtab's script for zsh registers itself in an eval only, and when compinit has run.
_ZSH = """autoload -U +X compinit && compinit
eval "$(cat <<'RAXSR'
@SCRIPT@
RAXSR
)"
"""


def main() -> int:
    return runConsole(NAME, lambda: run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line, and return the exit code."""
    common, log = _commonParser(), None
    # The words after -- are another program's.
    end = list(words).index("--") if "--" in words else len(words)
    common.checkText(words[:end])
    options, before = common.parse_known_args(words[:end])
    words = [*before, *words[end:]]
    if options.version:
        print(f"{NAME} {__version__}")
        return 0
    if options.help or not words:
        leading = _leadingWords(words)
        words = ["help", *(leading[1:] if leading[:1] == ["help"] else leading)]
    try:
        found, rest = _find(words, common)
        if options.logFile is not None:
            log = _logFile(os.path.expanduser(options.logFile))
            log(f"{NAME} {__version__}: {found.name}")
        return Run(found, found.parse(rest, common), options, log).start()
    except (Interrupted, OSError):
        raise
    except Exception as error:
        if isinstance(error, ImportError) and not (error.name or "").startswith("txserviceregistry"):
            missing = f"the extra 'cli' is required, and {error.name or 'a part of it'} is not installed"
            error = CommandFailed(f"{missing}: {installCommand('cli')}")
        if log is not None:
            log(f"{NAME}: {oneLine(describe(error)[1])}")
        raise error from None


def _commonParser() -> Parser:
    """The parser of the options that may be anywhere before ``--``."""
    parser = Parser(
        prog=NAME,
        usage="%(prog)s RESOURCE ACTION [OPTION]…",
        description="Query and change a service registry.",
        add_help=False,
        allow_abbrev=False,
    )
    key = "the user's API key; other users of this machine can see it: prefer RAXSR_API_KEY or ~/.raxrc"
    verbose = "show each request and its status on stderr; -vv is the same as --debug"
    logFile = "append notes, errors, requests and responses to this file, with secrets redacted"
    group = parser.add_argument_group("options of every command, anywhere on the line")
    for add in (
        argument("-h", "--help", action="store_true", help="show this help, or the command's"),
        argument("--version", action="store_true", help="show the version"),
        argument("--username", metavar="NAME", help="the user's name"),
        argument("--api-key", metavar="KEY", dest="apiKey", help=key),
        argument("--api-url", metavar="URL", dest="baseUrl", help="the registry's URL, or several with commas"),
        argument("--auth-url", metavar="URL", dest="authUrl", help="the Auth API's URL"),
        argument("--region", metavar="REGION", help="the registry's region in the Auth API's catalog"),
        argument("-q", "--quiet", action="store_true", help="no confirmations, notes or progress"),
        argument("--debug", action="store_true", help="show requests and responses on stderr, with secrets redacted"),
        argument("-v", "--verbose", action="count", default=0, help=verbose),
        argument("--log-file", metavar="FILE", dest="logFile", help=logFile),
    ):
        add(group)
    return parser


def _logFile(path: str) -> Callable[[str], None]:
    """Open a file, or make it with mode 0600; the result appends a line with the time."""
    try:
        # Buffered by lines, so that other commands can append to it meanwhile.
        file = open(path, "a", 1, encoding="utf-8", opener=partial(os.open, mode=0o600))  # noqa: SIM115  # it lasts as long as the process
    except OSError as error:
        raise CommandFailed(f"can't write the log file {path}: {error.strerror}") from None

    def write(line: str) -> None:
        try:
            if not file.closed:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {line}\n")
        except OSError as error:
            # The first failure is reported, and the command goes on.
            with suppress(OSError):
                file.close()
            tell(f"{NAME}: can't write the log file {path} any more: {error.strerror}")

    return write


# -- finding a command


def _find(words: Sequence[str], common: Parser) -> tuple[Command, list[str]]:
    """The command that *words* begin with, and its other words; :class:`UsageError` if there is none."""
    leading = _leadingWords(words)
    for end in range(len(leading), 0, -1):
        found = COMMANDS.get(" ".join(leading[:end]))
        if found is not None:
            return found, list(words[end:])
    see = f"See {NAME} --help"
    if not leading:
        option = words[0].partition("=")[0]
        raise UsageError(f"unknown option {option}{didYouMean(option, common._option_string_actions) or '.'} {see}")
    name, below = " ".join(leading[:2]), f"{leading[0]} "
    actions = ", ".join(sorted(each.removeprefix(below) for each in COMMANDS if each.startswith(below)))
    if len(leading) == 1 and actions:
        raise UsageError(f"{name} needs an action: {actions}. {see}")
    similar = [each for each in COMMANDS if not actions or didYouMean(each.removeprefix(below), leading[1:2])]
    hint = didYouMean(name, similar) or (f". Actions of {leading[0]}: {actions}." if actions else ".")
    raise UsageError(f"unknown command '{name}'{hint} {see}")


def _leadingWords(words: Sequence[str]) -> list[str]:
    """The words before the first option."""
    return list(takewhile(lambda word: not word.startswith("-"), words))


# -- commands about commands


@command("help", "services list", argument("words", nargs="*", metavar="COMMAND", help="a command, or its first word"))
def showHelp(run: Run) -> None:
    """Show all commands, or the help of one."""
    words = run.parsed.words
    names = sorted(name for name in COMMANDS if name.startswith(" ".join([*words, ""])))
    summaries = "\n".join(f"  {name.ljust(24)}  {COMMANDS[name].summary}" for name in names)
    if not words:
        print(f"{_commonParser().format_help()}\ncommands:\n{summaries}\n\n{_MORE}", end="")
    elif names:
        print(summaries)
    else:
        # The words of a command line before --help may be followed by its arguments.
        found, _ = _find(words, _commonParser())
        print(f"{found.parser().format_help()}\nOptions of every command: see {NAME} --help")


@command(
    "complete",
    "--shell bash > /etc/bash_completion.d/raxsr",
    argument("--shell", choices=("bash", "zsh"), default="bash", help="the shell (default: bash)"),
)
def complete(run: Run) -> None:
    """
    Print a script that completes raxsr's commands and options.

    For bash, add this to ~/.bashrc:    source <(raxsr complete --shell bash)
    For zsh, add this to ~/.zshrc:      source <(raxsr complete --shell zsh)
    """
    import shtab

    def adapted(parser: Parser) -> Parser:
        for action in parser._actions:
            if action.metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        return parser

    common = adapted(_commonParser())
    parser = argparse.ArgumentParser(NAME, parents=[common], add_help=False)
    subparsers: dict[str, Any] = {"": parser.add_subparsers()}
    for name, each in COMMANDS.items():
        resource, _, action = name.rpartition(" ")
        if resource not in subparsers:
            added = subparsers[""].add_parser(resource, parents=[common], add_help=False, help=f"{resource} commands")
            subparsers[resource] = added.add_subparsers()
        options = [adapted(each.parser()), common]
        subparsers[resource].add_parser(action, parents=options, add_help=False, help=each.summary)
    script = shtab.complete(parser, run.parsed.shell)
    sys.stdout.write(_ZSH.replace("@SCRIPT@", script) if run.parsed.shell == "zsh" else f"{script}\n")
