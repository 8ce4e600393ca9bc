"""``raxsr help``: all commands, those of one resource, or one of them."""

from __future__ import annotations

import argparse

from ..outcome import UsageError
from .app import COMMANDS
from .base import RaxsrCommand
from .parser import Parser


class Help(RaxsrCommand):
    """Show all commands, or the help of one."""

    example = "raxsr help services list"

    def addArguments(self, parser: Parser) -> None:
        parser.add_argument("words", nargs="*", metavar="COMMAND", help="a command, or its first word")

    def take_action(self, parsed: argparse.Namespace) -> None:
        words = list(parsed.words)
        below = [name for name in COMMANDS if name.startswith(f"{words[0]} ")] if len(words) == 1 else []
        if not words:
            text = f"{self.app.parser.format_help()}\ncommands:\n{self._lines(list(COMMANDS))}\n\n{_MORE}"
        elif below:
            text = f"{self._lines(below)}\n"
        else:
            text = self._of(words)
        self.app.stdout.write(text)

    def _of(self, words: list[str]) -> str:
        try:
            factory, name, rest = self.app.command_manager.find_command(words)
        except ValueError:
            raise UsageError(self.app.unknownCommand(words)) from None
        if rest:
            raise UsageError(self.app.unknownCommand(words))
        command = factory(self.app, self.app.options)
        further = f"\nOptions of every command: see {self.app.NAME} --help\n"
        return command.get_parser(f"{self.app.NAME} {name}").format_help() + further

    def _lines(self, names: list[str]) -> str:
        width = max(map(len, names))
        return "\n".join(f"  {name.ljust(width)}  {self._inShort(name)}" for name in sorted(names))

    def _inShort(self, name: str) -> str:
        factory = self.app.command_manager.commands[name].load()
        return (factory.__doc__ or "").strip().partition("\n")[0].rstrip(".")


_MORE = """\
The registry and the credentials are set by these options, by RAXSR_* environment variables, by ~/.raxrc, or by the file
that a registry on this machine has written.

Examples:
  raxsr services list --tag www
  raxsr services list -f json
  raxsr help services list
"""
