"""DNS messages: what the server reads of a query, and how it writes responses."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs
from dns.flags import AA, QR, RD, TC
from dns.rcode import BADVERS, FORMERR, NOERROR, NOTIMP
from dns.rdataclass import IN
from dns.rdatatype import OPT

#: The size of a UDP response to a query without EDNS, and the largest of any.
PLAIN_SIZE = 512
LARGEST_UDP = 8192
LARGEST_TCP = 65535

HEADER = struct.Struct(">6H")
_QUESTION_END = struct.Struct(">HH")
# Of a record, behind its name: type, class, the parts of the TTL as EDNS uses it, and the length of the data.
_RECORD = struct.Struct(">HHBBHH")
_LONGEST_NAME = 255
_OPCODE = 0x7800
_DO = 0x8000
# Payloads of so many bytes are seldom fragmented.
_OWN_SIZE = 1232


@attrs.define(eq=False)
class Query:
    """
    A query.

    :ivar flags: those that the response repeats.
    :ivar question: the question as it was sent; empty if it can't be read.
    :ivar name: the name in lower case, with its lengths.
    :ivar size: how many bytes the response may have over UDP.
    :ivar opt: the end of the response: the record of EDNS if the query has one, or nothing.
    :ivar rcode: the reason why it can't be answered, or ``NOERROR``.
    """

    id: int
    flags: int
    question: bytes = b""
    name: bytes = b""
    type: int = 0
    klass: int = 0
    size: int = PLAIN_SIZE
    opt: bytes = b""
    rcode: int = NOERROR

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
    id, flags, *counts, additional = HEADER.unpack_from(data)
    if flags & QR:
        return None
    query = Query(id, QR | flags & (_OPCODE | RD), rcode=NOTIMP if flags & _OPCODE else NOERROR)
    if query.rcode:
        return query
    try:
        end = _endOfName(data, HEADER.size)
        query.type, query.klass = _QUESTION_END.unpack_from(data, end)
        query.name = data[HEADER.size : end].lower()
        position = questionEnd = end + _QUESTION_END.size
        for _ in range(additional):
            position = _readRecord(query, data, position)
        if counts != [1, 0, 0] or position != len(data) or len(query.name) > _LONGEST_NAME:
            raise ValueError("not one question, or bytes behind the last record")
    except (ValueError, IndexError, struct.error):
        query.rcode, query.opt = FORMERR, b""
    else:
        query.question = data[HEADER.size : questionEnd]
    return query


def _endOfName(data: bytes, position: int) -> int:
    while length := data[position]:
        if length > 63:
            raise ValueError("a compressed name, or a label of another kind")
        position += length + 1
    return position + 1


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
    """
    All records of one name and type. They do not depend on their position in a message: each response begins with the
    next one.

    :ivar records: the records, each owned by the name that was asked for; at least one.
    :ivar additional: the addresses of what they name.
    :ivar start: the number of the record that the next response begins with.
    """

    records: Sequence[bytes]
    additional: Sequence[bytes] = ()
    start: int = 0

    def response(self, query: Query, size: int) -> bytes:
        """
        The response: as many records as fit, then as many addresses.

        :param size: how many bytes it may have. If not all records fit into less than a message over TCP can have, it
            is truncated.
        """
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
