"""The W3C header ``traceparent``, which names the trace that a request belongs to."""

from __future__ import annotations

import re

_VALID = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def validTraceparent(text: object) -> str | None:
    """*text*, if it is a valid value of the header; ``None`` if not."""
    return text if isinstance(text, str) and _VALID.fullmatch(text) else None
