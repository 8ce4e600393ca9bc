r"""
How tags and metadata are written on a command line and in an endpoint string: ``a,b`` and ``key=value,key=value``.

A comma separates; ``\,`` is a comma and ``\\`` a backslash, and any other backslash stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["formatMetadata", "formatTags", "parseMetadata", "parseTags"]

_PIECE = re.compile(r"(?:\\[\\,]|[^,])+")
_ESCAPE = re.compile(r"\\([\\,])")


def parseTags(text: str) -> list[str]:
    """Tags, separated by commas. Blanks around a tag are not part of it, and where nothing is left there is no tag."""
    return [piece.strip() for piece in _pieces(text)]


def parseMetadata(text: str) -> dict[str, str]:
    """
    Pairs of a key and a value, separated by commas. A key ends at the first ``=``; its value may hold more of them.

    :raises ValueError: if a piece is no pair, or a key is there twice.
    """
    pairs: dict[str, str] = {}
    for piece in _pieces(text):
        key, equals, value = piece.lstrip().partition("=")
        if not key or not equals:
            raise ValueError(rf"{piece!r} is no key=value pair (a comma within a value is written \,)")
        if key in pairs:
            raise ValueError(f"the key {key!r} is there twice")
        pairs[key] = value
    return pairs


def formatTags(tags: Iterable[str]) -> str:
    """The text that :func:`parseTags` reads as *tags*."""
    return ",".join(map(_escape, tags))


def formatMetadata(metadata: Mapping[str, str]) -> str:
    """The text that :func:`parseMetadata` reads as *metadata*, as long as no key holds a ``=``."""
    return ",".join(f"{_escape(key)}={_escape(value)}" for key, value in metadata.items())


def _pieces(text: str) -> list[str]:
    pieces = (_ESCAPE.sub(r"\1", piece) for piece in _PIECE.findall(text))
    return [piece for piece in pieces if piece.strip()]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")
