"""
How a service's tags and metadata are written on a command line.

Commas separate. ``\\,`` is a comma that belongs to the text and ``\\\\`` a backslash; any other backslash is one.
"""

from __future__ import annotations

import re

__all__ = ["parseMetadata", "parseTags"]

_PIECE = re.compile(r"(?:\\[,\\]|[^,])+")
_ESCAPED = re.compile(r"\\([,\\])")


def _pieces(text: str) -> list[str]:
    pieces = (_ESCAPED.sub(r"\1", piece) for piece in _PIECE.findall(text))
    return [piece for piece in pieces if piece.strip()]


def parseTags(text: str) -> list[str]:
    """
    The tags of ``api,www``: without the blanks around each, each once, in the order given.

    :param text: may be empty, which is no tag.
    """
    return list(dict.fromkeys(piece.strip() for piece in _pieces(text)))


def parseMetadata(text: str) -> dict[str, str]:
    """
    The metadata of ``port=8000,host=localhost``. A value may hold ``=``, and is taken as it stands.

    :param text: may be empty, which is no metadata.
    :raises ValueError: if a part of it is no ``key=value``, or a key is given twice.
    """
    metadata: dict[str, str] = {}
    for piece in _pieces(text):
        key, equals, value = piece.partition("=")
        key = key.strip()
        if not key or not equals:
            raise ValueError(f"{piece!r} is no key=value pair")
        if key in metadata:
            raise ValueError(f"the key {key!r} is given twice")
        metadata[key] = value
    return metadata
