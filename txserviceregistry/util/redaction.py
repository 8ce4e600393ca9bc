"""Texts that are logged, printed or raised: without secrets, and without characters that a terminal obeys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

# A secret of this length is not part of an ordinary word, and is redacted wherever it occurs.
_LONG = 16

# The beginning of a word: after a character that is not a letter or digit, or that belongs to an escape in a URL or a
# quoted text.
_BEGINNING = r"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[abfnrtv])|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
_END = r"(?![^\W_])"


def escaped(text: str, keep: str = "") -> str:
    """
    *text* without characters that a terminal obeys or does not show: control characters (C0, DEL, C1), those that
    change the direction of text, and other invisible ones become escapes such as ``\\x1b`` and ``\\u202e``. Line ends
    are among them, so that a text can't add lines.

    :param keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def redacted(text: str, secrets: Iterable[str], replacement: str = "…") -> str:
    """
    *text* without secrets, as they are written in it (:func:`encodings`). A secret of less than 16 characters is not
    removed from within a word: a token that is ``bad`` leaves ``badRequest`` as it is.
    """
    # The longest first, because others may be part of it.
    for secret in sorted({secret for secret in secrets if secret and secret in text}, key=len, reverse=True):
        beginning = end = ""
        if len(secret) < _LONG:
            # One that begins or ends with another character than a letter or digit is not within a word there.
            beginning, end = _BEGINNING if secret[0].isalnum() else "", _END if secret[-1].isalnum() else ""
        text = re.sub(f"{beginning}{re.escape(secret)}{end}", lambda _: replacement, text)
    return text


def encodings(secret: str) -> set[str]:
    """How a secret is written: as it is, in JSON and in a URL."""
    inJSON = {json.dumps(secret, ensure_ascii=isASCII)[1:-1] for isASCII in (True, False)}
    return {secret, *inJSON, quote(secret, safe="", errors="replace")}
