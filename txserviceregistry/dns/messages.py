"""DNS messages: what the server reads of a query, and the responses that have no records of the zone."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

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
    id, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & QR:
        return None
    query = Query(id, QR | flags & (_OPCODE | RD))
    if flags & _OPCODE:
        query.rcode = NOTIMP
        return query
    try:
        if (questions, answers, authorities) != (1, 0, 0):
            raise ValueError("not one question")
        end = _endOfName(data, HEADER.size)
        query.type, query.klass = _QUESTION_END.unpack_from(data, end)
        query.name = data[HEADER.size : end].lower()
        position = end + _QUESTION_END.size
        question = data[HEADER.size : position]
        for _ in range(additional):
            position = _readRecord(query, data, position)
        if position != len(data):
            raise ValueError("bytes behind the last record")
    except (ValueError, IndexError, struct.error):
        query.rcode = FORMERR
        query.opt = b""
    else:
        query.question = question
    return query


def _endOfName(data: bytes, start: int) -> int:
    position = start
    while length := data[position]:
        if length > 63:
            raise ValueError("a compressed name, or a label of another kind")
        position += length + 1
        if position - start >= _LONGEST_NAME:
            raise ValueError("a name of more than 255 bytes")
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
        if query.opt or data[start]:
            raise ValueError("a second record of EDNS, or one with a name")
        option = position - length
        while option < position:
            option += 4 + int.from_bytes(data[option + 2 : option + 4], "big")
        if option != position:
            raise ValueError("an option of EDNS that ends behind the record")
        query.size = max(PLAIN_SIZE, min(size, LARGEST_UDP))
        # The upper bits of a response code are in this record.
        query.rcode = BADVERS if version else NOERROR
        query.opt = b"\0" + _RECORD.pack(OPT, _OWN_SIZE, query.rcode >> 4, 0, flags & _DO, 0)
    return position


class Ring:
    """
    Records that do not depend on their position in a message, so that they can begin with any of them.

    :ivar count: how many there are.
    """

    __slots__ = ("_offsets", "_records", "count")

    def __init__(self, records: Sequence[bytes]) -> None:
        self._records = b"".join(records)
        self._offsets = [0, *accumulate(map(len, records))]
        self.count = len(records)

    def take(self, start: int, room: int) -> tuple[int, bytes]:
        """As many whole records as there is room for, from number *start* on, and from the first one after the last."""
        records, offsets = self._records, self._offsets
        begin = offsets[start]
        if len(records) <= room:
            return self.count, records[begin:] + records[:begin]
        end = bisect_right(offsets, begin + room) - 1
        if end < self.count:
            return end - start, records[begin : offsets[end]]
        wrapped = bisect_right(offsets, room - (len(records) - begin)) - 1
        return end - start + wrapped, records[begin:] + records[: offsets[wrapped]]


class Answer:
    """
    All records of one name and type. Each response begins with the next one.

    :param records: the records, each owned by the name that was asked for.
    :param additional: the addresses of what they name.
    :param start: the number of the record that the first response begins with, modulo their number.
    """

    __slots__ = ("_additional", "_next", "_records")

    def __init__(self, records: Sequence[bytes], additional: Sequence[bytes], start: int = 0) -> None:
        self._records = Ring(records)
        self._additional = Ring(additional)
        self._next = start % len(records)

    def response(self, query: Query, size: int) -> bytes:
        """
        The response: as many records as fit, then as many addresses.

        :param size: how many bytes it may have. If not all records fit into less than a message over TCP can have, it
            is truncated.
        """
        question, opt, ring, additional = query.question, query.opt, self._records, self._additional
        start = self._next
        self._next = (start + 1) % ring.count
        room = size - HEADER.size - len(question) - len(opt)
        count, records = ring.take(start, room)
        flags = query.flags | AA
        others, addresses = 0, b""
        if count < ring.count:
            if size < LARGEST_TCP:
                flags |= TC
        elif additional.count:
            others, addresses = additional.take(start * additional.count // ring.count, room - len(records))
        header = HEADER.pack(query.id, flags, 1, count, 0, others + bool(opt))
        return b"".join((header, question, records, addresses, opt))


def record(owner: bytes, type: int, ttl: int, data: bytes) -> bytes:
    """A record of a name, which may be compressed."""
    return owner + struct.pack(">HHIH", type, IN, ttl, len(data)) + data


def pointer(position: int) -> bytes:
    """A compressed name: the rest of it is at *position*."""
    return struct.pack(">H", 0xC000 | position)
