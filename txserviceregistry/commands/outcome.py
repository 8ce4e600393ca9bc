"""
The ways in which a command ends other than well.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from ..util.escaping import escaped

# What Python makes of a byte of the command line that the locale's encoding can't decode: 0xDC00 and the byte.
_UNDECODED = re.compile("[\udc80-\udcff]")


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


def undecodable(words: Sequence[str]) -> str | None:
    """
    :param words: a command line.
    :return: what is wrong with the first of them that is not text in the locale's encoding, if there is one. The word
        is not repeated, because it can be a secret.
    """
    for before, word in zip(["", *words], words, strict=False):
        found = _UNDECODED.search(word)
        if found is not None:
            option = next(
                (each for each in (word.partition("=")[0], before) if re.fullmatch("--?[a-zA-Z-]+", each)), ""
            )
            name = f"the value of {option}" if option else "an argument"
            byte = ord(found[0]) - 0xDC00
            return (
                f"{name} is not text in {sys.getfilesystemencoding().upper()}, the encoding of the locale: it has the "
                f"byte 0x{byte:02X}. Write it in UTF-8, in a UTF-8 locale such as LC_ALL=C.UTF-8"
            )
    return None


def oneLine(text: str) -> str:
    """*text* without line breaks, for a terminal."""
    return printable(" ".join(text.split()))
