"""
Target: what a ``registry://TAG/path`` URI means.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes, urljoin

import attrs
from twisted.web.client import URI

from .instances import Instance

#: The schemes of a tag, and what each of them is at an instance.
SCHEMES = {b"registry": b"http", b"registrys": b"https"}


@attrs.frozen
class Target:
    """A tag, also as it is quoted in the URI (*netloc*), and the path with the query."""

    scheme: bytes
    netloc: bytes
    tag: str
    path: bytes

    @classmethod
    def read(cls, uri: bytes) -> Target | None:
        """The target of a URI, ``None`` if it has another scheme; raises ValueError if the tag is not valid."""
        scheme, _, rest = uri.partition(b"://")
        if scheme not in SCHEMES:
            return None
        end = min((at for at in map(rest.find, (b"/", b"?", b"#")) if at >= 0), default=len(rest))
        netloc, path = rest[:end], rest[end:]
        if b":" in netloc or b"@" in netloc:
            raise ValueError("a tag can't have a port or a user")
        tag = unquote_to_bytes(netloc).decode("utf-8")
        if not tag:
            raise ValueError("the tag is missing")
        return cls(scheme, netloc, tag, path if path.startswith(b"/") else b"/" + path)

    @property
    def isTLS(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme == b"registrys"

    def uriFor(self, instance: Instance) -> bytes:
        """The URI at one instance."""
        return b"%b://%b%b" % (SCHEMES[self.scheme], instance.netloc.encode("ascii"), self.path)

    def hostFor(self, instance: Instance) -> bytes:
        """The ``Host`` header for one instance."""
        if not self.isTLS or instance.tlsName == instance.host:
            return instance.netloc.encode("ascii")
        return f"{instance.tlsName}:{instance.port}".encode("ascii")

    def redirected(self, location: bytes, instance: Instance) -> bytes:
        """
        The absolute form of a ``Location``. One on the same instance becomes one of the tag, so that any instance can
        answer it, and credentials and cookies, which belong to the origin, are sent.
        """
        scheme = SCHEMES[self.scheme]
        base = scheme + b"://" + self.hostFor(instance) + self.path
        try:
            absolute: bytes = urljoin(base, location)
        except ValueError:
            # The agent that follows redirects reports it.
            return location
        if not absolute.startswith((b"http://", b"https://")):
            return absolute
        parsed = URI.fromBytes(absolute)
        here = {URI.fromBytes(base).netloc, instance.netloc.encode("ascii")}
        netloc = parsed.netloc if b":" in parsed.netloc.rpartition(b"]")[2] else b"%b:%d" % (parsed.netloc, parsed.port)
        if parsed.scheme != scheme or netloc not in here:
            return absolute
        rest = absolute.partition(b"://")[2]
        return self.scheme + b"://" + self.netloc + rest[len(parsed.netloc) :]
