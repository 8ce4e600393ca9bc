"""The files of the page, and the headers that every response of the console has."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from ..http.messages import Response

#: What the page may do, and what may be done with it: nothing but its own scripts, styles and requests.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def load() -> Mapping[str, Response]:
    """The responses with the files, by name; the page itself has the empty name too."""
    responses = {}
    for file in (files(__package__) / "assets").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            # No-cache: a browser asks again after an update of the registry.
            headers = {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-cache"}
            responses[file.name] = Response(200, headers=headers, text=file.read_bytes())
    responses[""] = responses["index.html"]
    return MappingProxyType(responses)
