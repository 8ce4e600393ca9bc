"""
Tests for :mod:`txserviceregistry.dns.zone`.
"""

from __future__ import annotations

from collections import Counter

import dns.flags
import dns.rcode
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.dns.zone import encodeLabel

from .standin import additionalOf, ask, recordsOf, service, zoneOf


class RecordsTests(SynchronousTestCase):
    """The records that services have."""

    def test_addresses(self) -> None:
        """The name of a tag has the addresses of its services, by family, each of them once."""
        zone = zoneOf(
            service("web1", host="10.0.0.1"),
            service("web2", host="10.0.0.1", port="81"),
            service("web3", host="2001:db8::1"),
            service("db1", ["db"], host="10.0.0.9"),
        )
        self.assertEqual(recordsOf(ask(zone, "www.service.registry"), "A"), ["10.0.0.1"])
        self.assertEqual(recordsOf(ask(zone, "www.service.registry", "AAAA"), "AAAA"), ["2001:db8::1"])

    def test_srv(self) -> None:
        """An SRV record has the port and the weight; its target is a name in the zone whose address comes with it."""
        zone = zoneOf(service("web1", host="10.0.0.1", port="8000"), service("web2", host="::1", port="81"))
        response = ask(zone, "_www._tcp.service.registry", "SRV")
        six = "0" * 31 + "1.addr.registry."
        self.assertEqual(recordsOf(response, "SRV"), ["0 256 8000 0a000001.addr.registry.", f"0 256 81 {six}"])
        self.assertEqual(additionalOf(response), {"0a000001.addr.registry.": "10.0.0.1", six: "::1"})
        self.assertTrue(response.flags & dns.flags.AA)
        self.assertEqual(response.answer[0].ttl, 5)
        self.assertEqual(recordsOf(ask(zone, "0a000001.addr.registry"), "A"), ["10.0.0.1"])

    def test_hostName(self) -> None:
        """A host name is the target of the SRV record, an alias of the id, and no address of the tag."""
        zone = zoneOf(service("db1", ["db"], host="db.example.com"))
        response = ask(zone, "_db._tcp.service.registry", "SRV")
        self.assertEqual(recordsOf(response, "SRV"), ["0 256 80 db.example.com."])
        self.assertEqual(additionalOf(response), {})
        self.assertEqual(recordsOf(ask(zone, "db1.id.registry"), "CNAME"), ["db.example.com."])
        nothing = ask(zone, "db.service.registry")
        self.assertEqual((nothing.rcode(), nothing.answer), (dns.rcode.NOERROR, []))

    def test_weights(self) -> None:
        """A weight of 100 is 256, others are in proportion and at least 1; a weight that is not valid is 100."""
        weights = {"100": 256, "1": 3, "1000": 2560, "50": 128, "33": 85, "x": 256, "-1": 256, "1001": 256, "²": 256}
        zone = zoneOf(*[service(f"web{n}", weight=text, port=str(n + 1)) for n, text in enumerate(weights)])
        records = recordsOf(ask(zone, "_www._tcp.service.registry", "SRV"), "SRV")
        self.assertEqual([int(record.split()[1]) for record in records], [*weights.values()])

    def test_leftOut(self) -> None:
        """Services that take no new work, or have no valid address, are not among those of their tag."""
        zone = zoneOf(
            service("off", status="disabled"),
            service("zero", weight="0"),
            service("none", host=""),
            service("scoped", host="fe80::1%eth0"),
            service("long", host="a" * 64),
        )
        for name, type in (("www.service.registry", "A"), ("_www._tcp.service.registry", "SRV")):
            response = ask(zone, name, type)
            self.assertEqual((response.rcode(), response.answer), (dns.rcode.NOERROR, []), name)
        self.assertEqual(recordsOf(ask(zone, "zero.id.registry"), "A"), ["10.0.0.1"])

    def test_theOtherFamily(self) -> None:
        """A name without addresses of a family has them as soon as a service has one, whichever name was asked for."""
        zone = zoneOf(service("web1", ["Www"]))
        names = ("www.service.registry", "Www.service.registry")
        for _ in range(2):
            for name in names:
                empty = ask(zone, name, "AAAA")
                self.assertEqual((empty.rcode(), empty.answer), (dns.rcode.NOERROR, []))
            zone.put("web2", service("web2", ["Www"], host="2001:db8::1"))
            for name in names:
                self.assertEqual(recordsOf(ask(zone, name, "AAAA"), "AAAA"), ["2001:db8::1"])
            zone.put("web2", None)

    def test_changes(self) -> None:
        """A change of a service changes all names that it has, or had."""
        zone = zoneOf(service("web1", ["www", "eu"]))
        self.assertEqual(recordsOf(ask(zone, "eu.service.registry"), "A"), ["10.0.0.1"])
        zone.put("web1", service("web1", ["www"], host="10.0.0.2"))
        self.assertEqual(recordsOf(ask(zone, "www.service.registry"), "A"), ["10.0.0.2"])
        self.assertEqual(recordsOf(ask(zone, "web1.id.registry"), "A"), ["10.0.0.2"])
        for name in ("eu.service.registry", "0a000001.addr.registry"):
            self.assertEqual(ask(zone, name).rcode(), dns.rcode.NXDOMAIN, name)
        zone.put("web1", None)
        self.assertEqual(ask(zone, "www.service.registry").rcode(), dns.rcode.NXDOMAIN)


class NamesTests(SynchronousTestCase):
    """Which names there are."""

    def test_case(self) -> None:
        """A name in any case finds an exact match, else all that are equal but for the case."""
        zone = zoneOf(service("a-1", ["Web"], host="10.0.0.1"), service("a-2", ["wEB"], host="10.0.0.2"))
        both = ["10.0.0.1", "10.0.0.2"]
        for name in ("web", "Web", "WEB"):
            self.assertEqual(sorted(recordsOf(ask(zone, f"{name}.service.REGISTRY"), "A")), both)
        self.assertEqual(recordsOf(ask(zone, "--57eb.service.registry"), "A"), ["10.0.0.1"])
        zone.put("a-3", service("a-3", ["web"], host="10.0.0.3"))
        self.assertEqual(recordsOf(ask(zone, "WEB.service.registry"), "A"), ["10.0.0.3"])
        zone.put("a-3", None)
        zone.put("a-2", None)
        self.assertEqual(recordsOf(ask(zone, "web.service.registry"), "A"), ["10.0.0.1"])

    def test_echo(self) -> None:
        """The question comes back in its own case."""
        response = ask(zoneOf(service("web1")), "wWw.SERVICE.registry")
        self.assertEqual(response.question[0].name.to_text(), "wWw.SERVICE.registry.")
        self.assertEqual(response.answer[0].name.to_text(), "wWw.SERVICE.registry.")

    def test_encoded(self) -> None:
        """Tags and ids with other characters, and long ones, are found by their labels."""
        tag, id = "v1.2 é", "a" * 65
        zone = zoneOf(service(id, [tag, "b" * 63]))
        for name in (
            f"{encodeLabel(tag).decode()}.service.registry",
            f"{encodeLabel(id).decode()}.id.registry",
            f"{'b' * 63}.service.registry",
        ):
            self.assertEqual(recordsOf(ask(zone, name), "A"), ["10.0.0.1"], name)
        for label in (encodeLabel("_" + tag), encodeLabel("_" + "b" * 63)):
            self.assertEqual(len(recordsOf(ask(zone, f"{label.decode()}._tcp.service.registry", "SRV"), "SRV")), 1)

    def test_missing(self) -> None:
        """A name that does not exist is NXDOMAIN, with the SOA record that says for how long."""
        response = ask(zoneOf(service("web1")), "db.service.registry")
        self.assertEqual((response.rcode(), response.answer), (dns.rcode.NXDOMAIN, []))
        (soa,) = response.authority
        self.assertEqual((soa.name.to_text(), soa.ttl, soa[0].minimum), ("registry.", 5, 5))

    def test_noSuchType(self) -> None:
        """A name without records of the type is an empty answer; so are the names above those of services."""
        zone = zoneOf(service("web1"))
        names = ["www.service", "_www._tcp.service", "web1.id", "service", "_tcp.service", "id", "addr"]
        for name in [*(f"{name}.registry" for name in names), "registry"]:
            response = ask(zone, name, "TXT")
            self.assertEqual((response.rcode(), response.answer), (dns.rcode.NOERROR, []), name)
            self.assertEqual(len(response.authority), 1)

    def test_soa(self) -> None:
        """The domain has an SOA record, whose serial grows with changes."""
        zone = zoneOf()
        before = ask(zone, "registry", "SOA").answer[0][0].serial
        zone.put("web1", service("web1"))
        self.assertGreater(ask(zone, "registry", "SOA").answer[0][0].serial, before)

    def test_refused(self) -> None:
        """Names outside the domain, other classes, ANY and transfers are refused."""
        zone = zoneOf(service("web1"), domain="sr.example.")
        names = [("www.service.registry", "A"), ("example", "A"), (".", "NS"), ("xsr.example", "A")]
        names += [("www.service.sr.example", type) for type in ("ANY", "AXFR", "IXFR")]
        # The domain's bytes are the end of one label.
        names.append((r"www\002sr.example", "A"))
        for name, type in names:
            self.assertEqual(ask(zone, name, type).rcode(), dns.rcode.REFUSED, name)
        self.assertEqual(recordsOf(ask(zone, "www.service.sr.example"), "A"), ["10.0.0.1"])


class SizesTests(SynchronousTestCase):
    """Answers of many records."""

    def setUp(self) -> None:
        self.zone = zoneOf(*[service(f"web{n}", host=f"10.0.0.{n}", port="80") for n in range(24)])

    def test_rotation(self) -> None:
        """Answers begin with each of the services in turn, and have all of them."""
        firsts = Counter()
        for _ in range(48):
            records = recordsOf(ask(self.zone, "www.service.registry"), "A")
            self.assertEqual(len(set(records)), 24)
            firsts[records[0]] += 1
        self.assertEqual(set(firsts.values()), {2})

    def test_rotationAfterChanges(self) -> None:
        """Also where each answer follows a change, all services are at the beginning of some."""
        firsts = set()
        for number in range(24):
            self.zone.put("web-0", service("web-0", host="10.0.0.0", port=str(number + 1)))
            firsts.add(recordsOf(ask(self.zone, "www.service.registry"), "A")[0])
        self.assertGreater(len(firsts), 20)

    def test_truncated(self) -> None:
        """An answer that is too large has as many whole records as fit, and the flag."""
        for size in (512, 513, 1000, 1051, 1052, 4096):
            seen = set()
            for _ in range(24):
                response = ask(self.zone, "_www._tcp.service.registry", "SRV", size)
                wire = response.to_wire()
                records = recordsOf(response, "SRV")
                self.assertEqual(bool(response.flags & dns.flags.TC), len(records) < 24)
                self.assertTrue(size - 42 < 12 + 32 + 42 * len(records) <= size or len(records) == 24, len(wire))
                seen.update(records)
            self.assertEqual(len(seen), 24)

    def test_additional(self) -> None:
        """Addresses that do not fit are left out; that is no truncation."""
        response = ask(self.zone, "_www._tcp.service.registry", "SRV", 1400)
        self.assertFalse(response.flags & dns.flags.TC)
        self.assertEqual(len(recordsOf(response, "SRV")), 24)
        self.assertTrue(0 < len(response.additional) < 24)
        whole = ask(self.zone, "_www._tcp.service.registry", "SRV", 8192)
        self.assertEqual(len(whole.additional), 24)

    def test_tcp(self) -> None:
        """A message over TCP that can't have all records has a part of them, another one each time."""
        zone = zoneOf(*[service(f"web{n}", host=f"10.0.{n >> 8}.{n & 255}", port="80") for n in range(5000)])
        first, second = (recordsOf(ask(zone, "www.service.registry"), "A") for _ in range(2))
        self.assertTrue(4000 < len(first) < 5000)
        self.assertEqual(first[1], second[0])


class ChangesTests(SynchronousTestCase):
    """Answers after any changes."""

    TAGS = ("web", "Web", "WEB", "v1.2")
    HOSTS = ("10.0.0.1", "10.0.0.2", "::1", "db.example", "")

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["web1", "Web1", "db1"]),
                st.none() | st.tuples(st.sets(st.sampled_from(TAGS)), st.sampled_from(HOSTS), st.booleans()),
            ),
            max_size=12,
        )
    )
    def test_asIfNew(self, changes: list[tuple[str, tuple[set[str], str, bool] | None]]) -> None:
        """A zone that answered queries between changes answers as one that has had the last services from the start."""
        questions = [("web.service", "A"), ("web.service", "AAAA"), ("_web._tcp.service", "SRV"), ("web1.id", "A")]
        questions += [("--57eb.service", "A"), ("--57eb1.id", "A"), ("v1--2e2.service", "A"), ("0a000001.addr", "A")]
        zone, last = zoneOf(), {}
        for id, change in changes:
            found = None
            if change is not None:
                tags, host, isDisabled = change
                found = service(id, sorted(tags), host=host, status="disabled" if isDisabled else "on")
            last.pop(id, None)
            if found is not None:
                last[id] = found
            zone.put(id, found)
            for name, type in questions:
                ask(zone, f"{name}.registry", type)
        fresh = zoneOf(*last.values())
        for name, type in questions:
            answers = [ask(each, f"{name}.registry", type) for each in (zone, fresh)]
            shown = [
                (answer.rcode(), sorted(recordsOf(answer, type)), sorted(recordsOf(answer, "CNAME")))
                for answer in answers
            ]
            self.assertEqual(shown[0], shown[1], name)
