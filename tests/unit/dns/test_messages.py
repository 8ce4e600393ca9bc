"""
Tests for :mod:`txserviceregistry.dns.zone`, with what clients send, and with random packets.
"""

from __future__ import annotations

import random

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.dns.zone import LARGEST_UDP, Query, readQuery


def read(message: dns.message.Message | bytes) -> Query:
    """Messages, as the server reads them."""
    query = readQuery(message if isinstance(message, bytes) else message.to_wire())
    assert query is not None
    return query


def header(id: int = 1, flags: int = 0, *counts: int) -> bytes:
    """The beginning of a message."""
    return b"".join(number.to_bytes(2, "big") for number in (id, flags, *counts, *[0] * (4 - len(counts))))


class ReadQueryTests(SynchronousTestCase):
    """A query, as the server reads it."""

    def test_question(self) -> None:
        """The name is read in lower case; the question is kept as it came."""
        query = read(dns.message.make_query("WwW.Registry", "SRV"))
        self.assertEqual((query.name, query.type, query.klass), (b"\x03www\x08registry\x00", 33, 1))
        self.assertEqual(query.question, b"\x03WwW\x08Registry\x00\x00\x21\x00\x01")
        self.assertEqual((query.rcode, query.size), (dns.rcode.NOERROR, 512))

    def test_sizes(self) -> None:
        """A response over UDP has as many bytes as EDNS says, within bounds."""
        for given, size in ((0, 512), (511, 512), (1232, 1232), (65535, LARGEST_UDP)):
            self.assertEqual(read(dns.message.make_query("a", "A", use_edns=0, payload=given)).size, size)

    def test_edns(self) -> None:
        """A response has EDNS where the query has it: with the flag DO, without the options."""
        query = dns.message.make_query("a", "A", want_dnssec=True, options=[dns.edns.CookieOption(b"12345678", b"")])
        response = dns.message.from_wire(read(query).empty(dns.rcode.NOERROR))
        self.assertEqual((response.edns, response.payload, response.options), (0, 1232, ()))
        self.assertTrue(response.ednsflags & dns.flags.DO)
        self.assertEqual(dns.message.from_wire(read(dns.message.make_query("a", "A")).empty(0)).edns, -1)

    def test_otherVersion(self) -> None:
        """Another version of EDNS is BADVERS."""
        query = read(dns.message.make_query("a", "A", use_edns=1))
        self.assertEqual(dns.message.from_wire(query.empty(query.rcode)).rcode(), dns.rcode.BADVERS)

    def test_otherOpcode(self) -> None:
        """A message that is not a query is not implemented."""
        update = dns.message.make_query("a", "A")
        update.set_opcode(dns.opcode.UPDATE)
        self.assertEqual(read(update).rcode, dns.rcode.NOTIMP)

    def test_flags(self) -> None:
        """A response repeats id and RD, and says nothing else."""
        query = dns.message.make_query("a", "A")
        query.flags |= dns.flags.AD | dns.flags.CD
        response = dns.message.from_wire(read(query).empty(dns.rcode.NXDOMAIN, dns.flags.AA))
        self.assertEqual((response.id, response.flags), (query.id, dns.flags.QR | dns.flags.AA | dns.flags.RD | 3))

    def test_ignored(self) -> None:
        """Responses, and what has no header, are not answered."""
        for data in (
            b"",
            b"\0" * 11,
            header(1, dns.flags.QR, 1),
            dns.message.make_response(dns.message.make_query("a", "A")).to_wire(),
        ):
            self.assertIs(readQuery(data), None)

    def test_malformed(self) -> None:
        """A message that is not one whole question, with records that can be read, is FORMERR without a question."""
        question = b"\x01a\0\0\1\0\1"
        opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
        for data in (
            header(),
            header(1, 0, 2) + question * 2,
            header(1, 0, 1),
            header(1, 0, 1) + question[:-1],
            header(1, 0, 1) + question + b"x",
            header(1, 0, 1) + b"\xc0\x0c\0\1\0\1",
            header(1, 0, 1) + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
            header(1, 0, 1) + b"\x3f" + (b"a" * 63 + b"\x3f") * 4 + b"a" * 63 + b"\0\0\1\0\1",
            header(1, 0, 1, 0, 0, 1) + question,
            header(1, 0, 1, 0, 0, 2) + question + opt * 2,
            header(1, 0, 1, 0, 0, 1) + question + b"\x01a" + opt,
            header(1, 0, 1, 0, 0, 1) + question + opt[:-1] + b"\x05",
            header(1, 0, 1, 65535, 65535, 65535) + question,
        ):
            query = read(data)
            self.assertEqual(query.rcode, dns.rcode.FORMERR, data)
            self.assertEqual(len(query.empty(query.rcode)), 12)

    def test_truncated(self) -> None:
        """The response that sends a client to TCP is no larger than its query."""
        for use in (-1, 0):
            query = dns.message.make_query("www.registry", "A", use_edns=use)
            wire = read(query).truncated()
            self.assertTrue(dns.message.from_wire(wire).flags & dns.flags.TC)
            self.assertLessEqual(len(wire), len(query.to_wire()))


def strangePackets(count: int, seed: int) -> list[bytes]:
    """Queries of many kinds with bytes changed, cut off and added, and bytes that are nothing at all."""
    chance = random.Random(seed)
    names = ["www.service.registry", "_www._tcp.service.registry", "a" * 63 + ".id.registry", "registry", ".", "b.c"]
    cookie = dns.edns.CookieOption(b"12345678", b"")
    queries = [
        dns.message.make_query(
            chance.choice(names),
            chance.choice(["A", "AAAA", "SRV", "SOA", "ANY", "TXT"]),
            use_edns=chance.choice([-1, 0, 0, 1]),
            payload=chance.choice([0, 512, 1232, 8192, 65535]),
            options=[cookie] if chance.random() < 0.5 else [],
        ).to_wire()
        for _ in range(200)
    ]
    packets = []
    for _ in range(count):
        if chance.random() < 0.1:
            packets.append(chance.randbytes(chance.randrange(100)))
            continue
        data = bytearray(chance.choice(queries))
        for _ in range(chance.choice([0, 1, 1, 2, 5])):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 0x3F, 0xC0, 0xFF, chance.randrange(256)])
        cut = chance.choice([0, 0, 0, 1, 5, 20])
        packets.append(bytes(data[: len(data) - cut]) + chance.randbytes(chance.choice([0, 0, 0, 1, 20])))
    return packets


def isMalformed(packet: bytes) -> bool:
    """Whether dnspython can't read a packet as a query with one question, not for data of a type that is ignored."""
    if any(packet[6:12]) and b"\0\0\x29" not in packet:
        return False
    try:
        return len(dns.message.from_wire(packet).question) != 1
    except (dns.exception.DNSException, ValueError):
        return True
