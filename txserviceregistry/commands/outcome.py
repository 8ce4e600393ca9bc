"""The ways in which a command fails, and its lines for a terminal."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from ..errors import ServiceRegistryError
from ..util.redaction import escaped

# Python's character for a byte of the command line that the locale's encoding can't decode: 0xDC00 and the byte.
_UNDECODED = re.compile("[\udc80-\udcff]")


class UsageError(Exception):
    """The command line is wrong: exit code 2."""


class CommandFailed(Exception):
    """The command failed: exit code 1."""


class Interrupted(Exception):
    """A *signal* ended the command: exit code 128 and its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def describe(error: Exception) -> tuple[int, str]:
    """The exit code after an error, and the line that reports it."""
    if isinstance(error, UsageError):
        return 2, str(error)
    if isinstance(error, (CommandFailed, ServiceRegistryError)):
        return 1, str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return 1, f"internal error: {type(error).__name__} in {place.filename}:{place.lineno}: {error}"


def printable(text: str) -> str:
    """*text* for a terminal, with its line breaks."""
    return escaped(text, keep="\n")


def undecodable(words: Sequence[str]) -> str | None:
    """
    The error about the first word of a command line that is not text in the locale's encoding; ``None`` if there is
    none. The word is not repeated, because it can be a secret.
    """
    for before, word in zip(["", *words], words, strict=False):
        found = _UNDECODED.search(word)
        if found is not None:
            options = (each for each in (word.partition("=")[0], before) if re.fullmatch("--?[a-zA-Z-]+", each))
            option = next(options, "")
            return (
                f"{f'the value of {option}' if option else 'an argument'} is not text in "
                f"{sys.getfilesystemencoding().upper()}, the encoding of the locale: it has the byte "
                f"0x{ord(found[0]) - 0xDC00:02X}. Write it in UTF-8, in a UTF-8 locale such as LC_ALL=C.UTF-8"
            )
    return None


def oneLine(text: str) -> str:
    """*text* without line breaks, for a terminal."""
    return printable(" ".join(text.split()))


def didYouMean(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests known words that are similar to *word*, or nothing."""
    close = get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f". Did you mean {' or '.join(close)}?" if close else ""


def typeOf(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an argument for argparse, whose *parse* raises ``ValueError`` with a text for the user."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
