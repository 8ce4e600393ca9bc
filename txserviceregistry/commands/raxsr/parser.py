"""
Parsing the command line: mistakes are told in one line, with a suggestion.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ..outcome import UsageError, undecodable


def didYouMean(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests what could have been meant by *word*, or nothing."""
    close = get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f". Did you mean {' or '.join(close)}?" if close else ""


class Parser(argparse.ArgumentParser):
    """
    The parser of one command's options and arguments.

    :ivar furtherOptions: options that are accepted as well, but parsed elsewhere, for suggestions.
    :ivar takesCommand: whether what follows ``--`` is a command line of somebody else's. It goes to ``command``.
    """

    furtherOptions: Sequence[str] = ()
    takesCommand = False

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """
        :raises UsageError: if something is not as it should be.
        """
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
        """
        :raises UsageError: if one of the words is not text.
        """
        problem = undecodable(words)
        if problem is not None:
            self.error(problem)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """
        :raises UsageError: about the first of the arguments that nobody knows.
        """
        hint = ": the command to run comes after --" if self.takesCommand else ""
        # After the first word that is not an option, the options may be those of the command to run.
        for argument in unknown[:1] if self.takesCommand else unknown:
            if argument.startswith("-") and argument != "--":
                option = argument.partition("=")[0]
                known = [*self._option_string_actions, *self.furtherOptions]
                self.error(f"there is no option {option}{didYouMean(option, known)}")
        self.error(f"unexpected argument {unknown[0]!r}{hint}")

    def error(self, message: str) -> NoReturn:
        """
        :raises UsageError: always.
        """
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{message}{end} See {self.prog} --help")


class GlobalParser(Parser):
    """The parser of the options that can stand anywhere before a ``--``. What it does not know it leaves alone."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """See argparse."""
        args = list(args)
        end = args.index("--") if "--" in args else len(args)
        self.checkText(args[:end])
        parsed, left = super().parse_known_args(args[:end], namespace)
        return parsed, left + args[end:]
