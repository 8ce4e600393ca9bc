"""DNS messages, and the zone: the names of a domain, and the records that the services give them."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs
import dns.exception
import dns.name
from dns.flags import AA, QR, RD, TC
from dns.rcode import BADVERS, FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED
from dns.rdataclass import IN
from dns.rdatatype import AAAA, ANY, AXFR, CNAME, IXFR, OPT, SOA, SRV, A

from ..types import Service
from ..util.fields import Unusable, readAddress, takesWork, weightOf

#: The size of a UDP response to a query without EDNS, and the largest of any.
PLAIN_SIZE = 512
LARGEST_UDP = 8192
LARGEST_TCP = 65535

HEADER = struct.Struct(">6H")
_QUESTION_END = struct.Struct(">HH")
# Of a record, behind its name: type, class, the parts of the TTL as EDNS uses it, and the length of the data.
_RECORD = struct.Struct(">HHBBHH")
_LONGEST_NAME = 255
LONGEST_LABEL = 63  # the longest label, in bytes
# Characters of a label that are escaped. A hyphen before a hyphen is escaped because two of them begin an escape.
_ESCAPED = re.compile(rb"[^a-z0-9_-]|-(?=-)")
_HASH_LENGTH = 10
_OPCODE = 0x7800
_DO = 0x8000
_OWN_SIZE = 1232  # payloads of so many bytes are seldom fragmented


@attrs.define(eq=False)
class Query:
    id: int
    flags: int  # those that the response repeats
    question: bytes = b""  # as it was sent; empty if it can't be read
    name: bytes = b""  # in lower case, with lengths
    type: int = 0
    klass: int = 0
    size: int = PLAIN_SIZE  # of the response over UDP
    opt: bytes = b""  # the end of the response: the record of EDNS, if the query has one
    rcode: int = NOERROR  # the reason if it can't be answered

    def empty(self, rcode: int, flags: int = 0, authority: bytes = b"") -> bytes:
        """The response without an answer; *authority* is a record for the section of that name."""
        counts = (bool(self.question), 0, bool(authority), bool(self.opt))
        header = HEADER.pack(self.id, self.flags | flags | rcode & 15, *counts)
        return header + self.question + authority + self.opt

    def truncated(self) -> bytes:
        """The response that makes a client ask again over TCP."""
        return self.empty(NOERROR, AA | TC)


def readQuery(data: bytes) -> Query | None:
    """The query in a message, perhaps with an *rcode* that refuses it; ``None`` if it is not a query at all."""
    if len(data) < HEADER.size:
        return None
    id, flags, *counts, authority, additional = HEADER.unpack_from(data)
    if flags & QR:
        return None
    query = Query(id, QR | flags & (_OPCODE | RD), rcode=NOTIMP if flags & _OPCODE else NOERROR)
    if query.rcode:
        return query
    try:
        end = HEADER.size
        while length := data[end]:
            if length > LONGEST_LABEL:
                raise ValueError("a compressed name, or a label of another kind")
            end += length + 1
        end += 1
        query.type, query.klass = _QUESTION_END.unpack_from(data, end)
        query.name = data[HEADER.size : end].lower()
        position = questionEnd = end + _QUESTION_END.size
        for _ in range(authority + additional):
            position = _readRecord(query, data, position)
        if counts != [1, 0] or position != len(data) or len(query.name) > _LONGEST_NAME:
            raise ValueError("not one question, or bytes behind the last record")
    except (ValueError, IndexError, struct.error):
        query.rcode, query.opt = FORMERR, b""
    else:
        query.question = data[HEADER.size : questionEnd]
    return query


def _readRecord(query: Query, data: bytes, start: int) -> int:
    """Read a record, of which only that of EDNS matters; the position behind it."""
    position = start
    while 0 < data[position] < 64:
        position += data[position] + 1
    position += 2 if data[position] else 1
    type, size, _, version, flags, length = _RECORD.unpack_from(data, position)
    position += _RECORD.size + int(length)
    if type == OPT:
        option = position - length
        while option < position:
            option += 4 + int.from_bytes(data[option + 2 : option + 4], "big")
        if query.opt or data[start] or option != position:
            raise ValueError("a second record of EDNS, one with a name, or an option that ends behind it")
        query.size = max(PLAIN_SIZE, min(size, LARGEST_UDP))
        # The upper bits of a response code are in this record.
        query.rcode = BADVERS if version else NOERROR
        query.opt = b"\0" + _RECORD.pack(OPT, _OWN_SIZE, query.rcode >> 4, 0, flags & _DO, 0)
    return position


@attrs.define(eq=False)
class Answer:
    """All records of one name and type, at least one, and the addresses of what they name."""

    records: Sequence[bytes]
    additional: Sequence[bytes] = ()
    start: int = 0  # each response begins with the next one

    def response(self, query: Query, size: int) -> bytes:
        """As many records as fit into *size* bytes, then as many addresses; truncated if it is to come over TCP."""
        count, flags = len(self.records), query.flags | AA
        start, self.start = self.start % count, (self.start + 1) % count
        room = size - HEADER.size - len(query.question) - len(query.opt)
        taken = _taken(self.records, start, room)
        addresses: list[bytes] = []
        if len(taken) < count:
            flags |= TC if size < LARGEST_TCP else 0
        elif self.additional:
            first = start * len(self.additional) // count
            addresses = _taken(self.additional, first, room - sum(map(len, taken)))
        header = HEADER.pack(query.id, flags, 1, len(taken), 0, len(addresses) + bool(query.opt))
        return b"".join((header, query.question, *taken, *addresses, query.opt))


def _taken(records: Sequence[bytes], start: int, room: int) -> list[bytes]:
    """As many whole records as there is room for, from number *start* on, and from the first one after the last."""
    taken = []
    for number in range(start, start + len(records)):
        record = records[number % len(records)]
        room -= len(record)
        if room < 0:
            break
        taken.append(record)
    return taken


def record(owner: bytes, type: int, ttl: int, data: bytes) -> bytes:
    """A record of a name, which may be compressed."""
    return owner + struct.pack(">HHIH", type, IN, ttl, len(data)) + data


def pointer(position: int) -> bytes:
    """A compressed name: the rest of it is at *position*."""
    return struct.pack(">H", 0xC000 | position)


def encodeLabel(text: str) -> bytes:
    """A tag or an id as a label, with escapes such as ``--2e``; one of over 63 bytes is cut, and ends in a hash."""
    raw = text.encode(errors="surrogatepass")
    label = _ESCAPED.sub(lambda found: b"--" + found[0].hex().encode(), raw)
    if len(label) > LONGEST_LABEL:
        digest = hashlib.sha256(raw).hexdigest()[:_HASH_LENGTH].encode()
        label = label[: LONGEST_LABEL - _HASH_LENGTH - 1] + b"-" + digest
    return label


def wireName(*labels: bytes) -> bytes:
    """Labels as they are in a message, without the end of the name."""
    return b"".join([len(label).to_bytes(1, "big") + label for label in labels])


# The records of a service for a name, by type: a record, and one for the additional section: its name in the zone, and
# the rest of it.
Given: TypeAlias = Mapping[int, "tuple[bytes, tuple[bytes, bytes] | None]"]

_SERVICES = wireName(b"service")
_TCP = wireName(b"_tcp", b"service")
_IDS = wireName(b"id")
_ADDRESSES = wireName(b"addr")
# These exist whatever services there are.
_ALWAYS = frozenset({b"", _SERVICES, _TCP, _IDS, _ADDRESSES})
_REFUSED_TYPES = frozenset({ANY, AXFR, IXFR})
# Answers of these types are kept. There are 65,536 types to ask for.
_KEPT = frozenset({A, AAAA, SRV})
_MOST_WITH_ADDRESSES = 4000  # more SRV records than fit into any message leave no room for addresses
# Names of the zone are compressed: what follows them is the domain in the question.
_OWNER = pointer(HEADER.size)
_NOTHING: Given = {}


class Zone:
    """
    The names of a domain. A name in another case than that of the tag or id means all that are equal but for the case.
    """

    # <tag>.service.<domain> has the addresses of the services with a tag, and _<tag>._tcp.service.<domain> their SRV
    # records; <id>.id.<domain> has the address of one service. The targets of SRV records have to be valid host names:
    # for addresses these are <hexadecimal address>.addr.<domain>.

    def __init__(self, domain: dns.name.Name, ttl: int) -> None:
        self._domain = domain.canonicalize().to_wire() or b""
        self._ttl = ttl
        self._serial = 0
        # By name, without the domain, and whether that is its own case: what each service gives to it.
        self._nodes: dict[tuple[bytes, bool], dict[tuple[str, bytes], Given]] = {}
        # For each service, where that is.
        self._places: dict[str, list[tuple[tuple[bytes, bool], tuple[str, bytes]]]] = {}
        # By name and type; None where a name has no records of a type: resolvers that ask for A ask for AAAA as well.
        # A change of the records of a name drops its answers.
        self._answers: dict[bytes, dict[int, Answer | None]] = {}

    def put(self, id: str, service: Service | None) -> None:
        """A service is there, or has changed; or it is gone."""
        self._serial += 1
        for node, place in self._places.pop(id, ()):
            self._answers.pop(node[0], None)
            del self._nodes[node][place]
            if not self._nodes[node]:
                del self._nodes[node]
        if service is None:
            return
        places = self._places[id] = []
        for own, loose, given in self._records(service):
            for node in ((own, True), *([(loose, False)] if loose != own else [])):
                self._answers.pop(node[0], None)
                self._nodes.setdefault(node, {})[id, own] = given
                places.append((node, (id, own)))

    def _records(self, service: Service) -> Iterator[tuple[bytes, bytes, Given]]:
        """The names of a service, in their own case and without it, and what it gives to them."""

        def named(text: str, parent: bytes, given: Given, prefix: str = "") -> tuple[bytes, bytes, Given]:
            own, loose = (wireName(encodeLabel(prefix + each)) + parent for each in (text, text.lower()))
            return own, loose, given

        address, srv = self._addressAndSrv(service["metadata"])
        yield named(service["id"], _IDS, address if service.get("state") != "out" else _NOTHING)
        for _, target in srv.values():
            if target is not None:
                yield target[0], target[0], address
        isOffered = takesWork(service)
        for tag in dict.fromkeys(service["tags"]):
            yield named(tag, _SERVICES, address if isOffered and CNAME not in address else _NOTHING)
            yield named(tag, _TCP, srv if isOffered else _NOTHING, "_")

    def _addressAndSrv(self, metadata: Mapping[str, str]) -> tuple[Given, Given]:
        """The records of a service for its own name, and for those of its tags."""
        try:
            host, port = readAddress(metadata)
        except Unusable:
            return _NOTHING, _NOTHING
        # HAProxy divides it by 256, so that a weight of 100 is 1 there.
        weight = max(1, -(-weightOf(metadata) * 256 // 100))
        start = struct.pack(">HHH", 0, weight, port)
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            # A host name stays as it is: this server does not resolve it.
            try:
                target = dns.name.from_text(host).to_wire() or b""
            except dns.exception.DNSException:
                return _NOTHING, _NOTHING
            alias = record(_OWNER, CNAME, self._ttl, target)
            return {CNAME: (alias, None)}, {SRV: (record(_OWNER, SRV, self._ttl, start + target), None)}
        if "%" in host:
            # It means something on one machine only.
            return _NOTHING, _NOTHING
        type = A if ip.version == 4 else AAAA
        own = wireName(ip.packed.hex().encode()) + _ADDRESSES
        srv = record(_OWNER, SRV, self._ttl, start + own + self._domain)
        rest = record(b"", type, self._ttl, ip.packed)
        return {type: (_OWNER + rest, None)}, {SRV: (srv, (own, rest))}

    def response(self, query: Query, size: int) -> bytes:
        """The response to a query, of at most *size* bytes."""
        name, type = query.name, query.type
        if not name.endswith(self._domain) or query.klass != IN or type in _REFUSED_TYPES:
            return query.empty(REFUSED)
        relative = name[: -len(self._domain)]
        answers = self._answers.get(relative, {})
        answer = answers[type] if type in answers else self._build(relative, type)
        if answer is not None:
            return answer.response(query, size)
        position = 0
        while position < len(relative):
            position += relative[position] + 1
        if position != len(relative):
            # The domain is the end of a longer label.
            return query.empty(REFUSED)
        if not relative and type == SOA:
            return Answer([self._soa(_OWNER)]).response(query, query.size)
        exists = relative in _ALWAYS or bool(self._nodeOf(relative))
        return query.empty(NOERROR if exists else NXDOMAIN, AA, self._soa(pointer(HEADER.size + len(relative))))

    def _soa(self, owner: bytes) -> bytes:
        names = wireName(b"ns") + self._domain + wireName(b"hostmaster") + self._domain
        times = (self._serial & 0xFFFFFFFF, 3600, 600, 86400, self._ttl)
        return record(owner, SOA, self._ttl, names + struct.pack(">5I", *times))

    def _nodeOf(self, relative: bytes) -> Mapping[tuple[str, bytes], Given]:
        return self._nodes.get((relative, True)) or self._nodes.get((relative, False)) or {}

    def _build(self, relative: bytes, type: int) -> Answer | None:
        """The answer for a name and a type, which is kept; ``None`` if there are no such records."""
        node = self._nodeOf(relative)
        if type not in _KEPT and len(node) != 1:
            return None
        # Several services may have the same address.
        found = dict(given[type] for given in node.values() if type in given)
        if not found and len(node) == 1:
            found = dict(given[CNAME] for given in node.values() if CNAME in given)
        answer = None
        if found:
            domain = pointer(HEADER.size + len(relative))
            few = len(found) < _MOST_WITH_ADDRESSES
            addresses = dict([target for target in found.values() if few and target is not None])
            answer = Answer([*found], [name + domain + rest for name, rest in addresses.items()], self._serial)
        if node and type in _KEPT:
            self._answers.setdefault(relative, {})[type] = answer
        return answer
