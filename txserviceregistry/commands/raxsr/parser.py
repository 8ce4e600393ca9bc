"""Parsers of command lines, whose errors are one line with a suggestion."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ..outcome import UsageError, didYouMean, undecodable


class Parser(argparse.ArgumentParser):
    """
    The parser of one command's options and arguments.

    :ivar furtherOptions: options that another parser accepts, for suggestions.
    :ivar takesCommand: whether the words after ``--`` are another program's. They become ``command``.
    """

    furtherOptions: Sequence[str] = ()
    takesCommand = False

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = list(args)
        command = None
        if self.takesCommand and "--" in args:
            end = args.index("--")
            args, command = args[:end], args[end + 1 :]
        self.checkText(args)
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        if self.takesCommand:
            parsed.command = command
        return parsed

    def checkText(self, words: Sequence[str]) -> None:
        """:raises UsageError: if one of the words is not text."""
        problem = undecodable(words)
        if problem is not None:
            self.error(problem)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """:raises UsageError: about the first of the unknown arguments."""
        hint = ": the command to run comes after --" if self.takesCommand else ""
        # After the first word that is not an option, the options may be those of the command to run.
        for argument in unknown[:1] if self.takesCommand else unknown:
            if argument.startswith("-") and argument != "--":
                option = argument.partition("=")[0]
                known = [*self._option_string_actions, *self.furtherOptions]
                self.error(f"unknown option {option}{didYouMean(option, known)}")
        self.error(f"unexpected argument {unknown[0]!r}{hint}")

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{message}{end} See {self.prog} --help")


class GlobalParser(Parser):
    """The parser of options that may be anywhere before ``--``. It leaves unknown options alone."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        args = list(args)
        end = args.index("--") if "--" in args else len(args)
        self.checkText(args[:end])
        parsed, left = super().parse_known_args(args[:end], namespace)
        return parsed, left + args[end:]
