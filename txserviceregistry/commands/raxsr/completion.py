"""
``raxsr complete``: a script that lets a shell complete command lines.

The script contains all commands and options, so that pressing a key starts no Python.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, TypeVar

from .base import NAME, RaxsrCommand
from .main import COMMANDS, load
from .parser import Parser

_Parser = TypeVar("_Parser", bound=argparse.ArgumentParser)

# shtab's script for zsh registers itself in an eval only, and when compinit has run.
_ZSH = """autoload -U +X compinit && compinit
eval "$(cat <<'RAXSR'
@SCRIPT@
RAXSR
)"
"""


class Complete(RaxsrCommand):
    """
    Print a script that completes raxsr's commands and options.

    For bash, add this to ~/.bashrc:    source <(raxsr complete --shell bash)
    For zsh, add this to ~/.zshrc:      source <(raxsr complete --shell zsh)
    """

    example = "raxsr complete --shell bash > /etc/bash_completion.d/raxsr"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("--shell", choices=("bash", "zsh"), default="bash", help="the shell (default: bash)")

    def run(self) -> int | None:
        import shtab

        common = self.program.parser
        parser = argparse.ArgumentParser(NAME, parents=[_withFiles(common)], add_help=False)
        self._addCommands(parser, [common])
        script = shtab.complete(parser, self.parsed.shell)
        sys.stdout.write(_ZSH.replace("@SCRIPT@", script) if self.parsed.shell == "zsh" else f"{script}\n")
        return None

    def _addCommands(self, parser: argparse.ArgumentParser, common: list[argparse.ArgumentParser]) -> None:
        """
        Add all commands to *parser* as subparsers, which is how shtab expects them.

        :param common: the parsers of the options of each command; none to add no options at all.
        """
        subparsers = parser.add_subparsers()
        resources: dict[str, Any] = {}
        for name in COMMANDS:
            resource, _, action = name.partition(" ")
            if action and resource not in resources:
                added = subparsers.add_parser(resource, parents=common, add_help=False, help=f"commands of {resource}")
                resources[resource] = added.add_subparsers()
            command = load(name)(self.program)
            leaf = resources.get(resource, subparsers).add_parser(
                action or resource,
                parents=[*([_withFiles(command.parser(name))] if common and name != "help" else []), *common],
                add_help=False,
                help=command.description().partition("\n")[0],
            )
            if common and name == "help":
                self._addCommands(leaf, [])


def _withFiles(parser: _Parser) -> _Parser:
    import shtab

    for action in parser._actions:
        if action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    return parser
