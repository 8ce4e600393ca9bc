"""
The ways in which a command ends other than well.
"""

from __future__ import annotations

from ..escaping import escaped

__all__ = ["CommandFailed", "Interrupted", "UsageError", "oneLine", "printable"]


class UsageError(Exception):
    """The command line is wrong: exit code 2."""


class CommandFailed(Exception):
    """The command could not do what it was asked to: exit code 1."""


class Interrupted(Exception):
    """
    A signal ended the command: exit code 128 and its number.

    :ivar signal: the signal's number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def printable(text: str) -> str:
    """*text* for a terminal, with its lines."""
    return escaped(text, keep="\n")


def oneLine(text: str) -> str:
    """*text* without line breaks, for a terminal."""
    return printable(" ".join(text.split()))
