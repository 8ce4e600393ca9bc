"""
The common parts of the tests of the DNS server: services, and queries that are answered by a zone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset

from txserviceregistry.dns.zone import LARGEST_TCP, Zone, readQuery
from txserviceregistry.types import Service

DOMAIN = "registry."


def service(id: str, tags: Sequence[str] = ("www",), **metadata: str) -> Service:
    """A service, at 10.0.0.1:80 unless its metadata say otherwise."""
    metadata = {"host": "10.0.0.1", "port": "80", **metadata}
    return {"id": id, "heartbeat_timeout": 30, "tags": list(tags), "metadata": metadata, "last_seen": None}


def zoneOf(*services: Service, domain: str = DOMAIN) -> Zone:
    """A zone with services."""
    zone = Zone(dns.name.from_text(domain), 5)
    for each in services:
        zone.put(each["id"], each)
    return zone


def ask(zone: Zone, name: str, type: str = "A", size: int = LARGEST_TCP) -> dns.message.Message:
    """The response of a zone to a question."""
    query = dns.message.make_query(name, type)
    if type == "IXFR":
        # The version of the zone that the client has.
        query.authority.append(dns.rrset.from_text(f"{name}.", 0, "IN", "SOA", "ns. root. 1 2 3 4 5"))
    read = readQuery(query.to_wire())
    assert read is not None and not read.rcode
    response = dns.message.from_wire(zone.response(read, size))
    assert query.is_response(response)
    assert len(response.to_wire()) <= LARGEST_TCP
    return response


def recordsOf(response: dns.message.Message, type: str) -> list[str]:
    """The records of a type in an answer, in their order."""
    wanted = dns.rdatatype.from_text(type)
    return [record.to_text() for found in response.answer if found.rdtype == wanted for record in found]


def additionalOf(response: dns.message.Message) -> Mapping[str, str]:
    """The addresses in the additional section, by name."""
    return {found.name.to_text(): found[0].to_text() for found in response.additional}
