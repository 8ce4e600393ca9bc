"""
Under which names the console is served, and which pages may send requests to it.

A page of another site can let a browser connect to this machine under a name of its own (DNS rebinding), so only names
are served that cannot be such a one: those of the loopback, the address that the client has connected to, and those
that the operator has listed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from twisted.web.server import Request

from ..faults import forbidden
from ..http.connections import ipOf
from ..http.messages import header

_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9._-]{1,253}))(?::([0-9]{1,5}))?", re.ASCII)


def check(request: Request, names: Collection[str]) -> None:
    """
    Check the ``Host`` of a request, and its ``Origin`` where it has one or changes something.

    :param names: the names that the operator has listed, in lower case.
    :raises Fault: 403 if the request must not be served.
    """
    host = header(request, b"Host")
    name = nameOf(host)
    if not (name in names or _isLoopback(name) or name == str(ipOf(request.getHost()))):
        raise forbidden(f"The console is not served under the name {name[:100]!r} (see --console-host)")
    origin = header(request, b"Origin")
    if not origin:
        if request.method not in (b"GET", b"HEAD"):
            raise forbidden("The request has no Origin header")
    elif origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        raise forbidden("The request comes from a page of another site")


def namesOf(hosts: Collection[str]) -> frozenset[str]:
    return frozenset(map(nameOf, hosts))


def nameOf(host: str) -> str:
    """The name in a ``Host`` header, in lower case and without the port; an IP address in its shortest form."""
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return ""
    name = (found[1] or found[2]).removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def portOf(host: str) -> str:
    """The port in a ``Host`` header; empty if there is none."""
    found = _HOST.fullmatch(host.lower())
    return (found and found[3]) or ""


def _isLoopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
