"""
Secrets in what somebody else has written: they are blanked before anybody sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

# So long a secret is no piece of any ordinary word: it is one wherever it stands.
_NO_WORD = 16

# Where a word begins: behind what is no letter and no digit, or looks like one but belongs to an escape, in a URL or a
# quoted text.
_BEGINNING = r"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[abfnrtv])|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
_END = r"(?![^\W_])"


def redacted(text: str, secrets: Iterable[str], blank: str = "…") -> str:
    """
    *text* without secrets. What is a piece of a longer word is none, unless it has 16 characters or more: a token that
    is ``bad`` leaves ``badRequest`` as it is.

    :param secrets: as they are written in the text; see :func:`spellings`.
    :param blank: what stands there instead.
    """
    # The longest first: another one may be a piece of it.
    found = sorted({secret for secret in secrets if secret and secret in text}, key=len, reverse=True)
    for secret in found:
        text = re.sub(_pattern(secret), lambda _: blank, text)
    return text


def encodings(secret: str) -> set[str]:
    """How a secret is written: as it is, in JSON and in a URL."""
    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe="", errors="replace"),
    }


def _pattern(secret: str) -> str:
    if len(secret) >= _NO_WORD:
        return re.escape(secret)
    # What begins or ends with another character than those of words stands by itself there.
    beginning, end = _BEGINNING if secret[0].isalnum() else "", _END if secret[-1].isalnum() else ""
    return f"{beginning}{re.escape(secret)}{end}"
