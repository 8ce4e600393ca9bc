"""Names: tags and ids of services as labels of DNS names."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

#: The longest label, in bytes.
LONGEST_LABEL = 63

# What a label can't have as it is. A hyphen before a hyphen is escaped because two of them begin an escape.
_ESCAPED = re.compile(rb"[^a-z0-9_-]|-(?=-)")
_HASH_LENGTH = 10


@lru_cache(maxsize=10_000)
def encodeLabel(text: str) -> bytes:
    """
    A tag or an id as a label: each byte of its UTF-8 other than ``a-z 0-9 _ -``, and the first of two hyphens, becomes
    ``--`` and two hexadecimal digits. A label that would exceed 63 bytes is cut, and ends in a hyphen and a hash of the
    whole text.
    """
    raw = text.encode(errors="surrogatepass")
    label = _ESCAPED.sub(lambda found: b"--" + found[0].hex().encode(), raw)
    if len(label) > LONGEST_LABEL:
        digest = hashlib.sha256(raw).hexdigest()[:_HASH_LENGTH].encode()
        label = label[: LONGEST_LABEL - _HASH_LENGTH - 1] + b"-" + digest
    return label


def wireName(*labels: bytes) -> bytes:
    """Labels as they are in a message, without the end of the name."""
    return b"".join([len(label).to_bytes(1, "big") + label for label in labels])
