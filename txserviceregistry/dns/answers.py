"""Answers: the records of a name and a type, joined for the wire, and the part of them that fits into a response."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from dns.flags import AA, TC

from .messages import HEADER, LARGEST_TCP, Query


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
