"""Tests for :mod:`txserviceregistry.registry.roles`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.roles import CONFIGURATION, KINDS, LOCKS, SERVICES, WRITE, Role, checkPrefix

KEYS = ("web-1", "/production/web", "")


class RoleTests(SynchronousTestCase):
    """The changes that a role permits."""

    def assertChanges(self, role: Role, kind: str, yes: str, no: str) -> None:
        """Of the keys in two texts, separated by spaces, it may change the first ones only."""
        self.assertEqual([key for key in f"{yes} {no}".split() if role.mayChange(kind, key)], yes.split())

    def test_write(self) -> None:
        """Without prefixes the role write changes everything."""
        for kind in KINDS:
            for key in KEYS:
                WRITE.check(kind, key)

    def test_read(self) -> None:
        """The role read changes nothing, and says so."""
        for kind in KINDS:
            for key in KEYS:
                fault = self.assertRaises(Fault, Role("read").check, kind, key)
                self.assertEqual((fault.code, fault.type), (403, "forbiddenError"))
                self.assertEqual(fault.details, "This user may only read (its role is read)")

    def test_servicesAndLocks(self) -> None:
        """These prefixes are plain text, in which case matters; one of them is enough."""
        self.assertChanges(Role(services=["web-", "db1"]), SERVICES, "web-1 web- db1 db10", "web WEB-1 xweb-1 db")
        self.assertChanges(Role(locks=["/billing"]), LOCKS, "/billing /billing/a /billing2", "/bill billing /a/billing")

    def test_configuration(self) -> None:
        """A prefix is a key, and everything below it in the tree."""
        below = "/production/web /production/web/port /production/web/a/b"
        for prefix in ("/production/web", "/production/web/"):
            role = Role(configuration=[prefix])
            self.assertChanges(role, CONFIGURATION, below, "/production/website /production /productionx listen_ip")
        self.assertChanges(Role(configuration=["/"]), CONFIGURATION, below, "listen_ip production")
        self.assertChanges(Role(configuration=["listen_ip"]), CONFIGURATION, "listen_ip", "listen_ip2 /listen_ip")

    def test_otherKinds(self) -> None:
        """Prefixes of one kind leave nothing of another kind to change; an empty prefix matches all of its kind."""
        for kind in KINDS:
            limited, all_ = Role(**{kind: ["/xyz"]}), Role(**{kind: [""]})
            self.assertTrue(limited.isLimited and all_.isLimited)
            for other in KINDS:
                for key in KEYS:
                    self.assertEqual(all_.mayChange(other, key), other == kind)
                    self.assertFalse(limited.mayChange(other, key))

    def test_refusal(self) -> None:
        """A refusal says what the user may change, and stays short."""
        role = Role(services=["web-"], configuration=["/production/web", "/a/b"], locks=[f"/l{n}" for n in range(20)])
        fault = self.assertRaises(Fault, role.check, SERVICES, "db1")
        self.assertEqual(
            fault.details,
            'This user may only change services that begin with "web-"; configuration below "/production/web", "/a/b"; '
            'locks that begin with "/l0", "/l1", "/l2" and 17 more',
        )

    def test_invalid(self) -> None:
        """There are two roles, read has no prefixes, and a prefix has only what an id or key can have."""
        self.assertIn("write", str(self.assertRaises(ValueError, Role, "admin")))
        self.assertIn("takes no prefixes", str(self.assertRaises(ValueError, Role, "read", ["web-"])))
        self.assertEqual(checkPrefix(LOCKS, "/billing"), "/billing")
        for kind, prefix in (
            (SERVICES, "/web"),
            (SERVICES, "x" * 66),
            (CONFIGURATION, "a b"),
            (LOCKS, "ä"),
            (LOCKS, "a\n"),
        ):
            error = str(self.assertRaises(ValueError, checkPrefix, kind, prefix))
            self.assertIn(kind, error)
            self.assertIn("letters, digits", error)

    def test_json(self) -> None:
        """A stored role is the same role again, and of the default a store keeps nothing."""
        self.assertEqual(WRITE.asJson(), {})
        for role in (WRITE, Role("read"), Role(services=["a"], configuration=["b", "c"], locks=[""])):
            self.assertEqual(Role(**role.asJson()), role)
