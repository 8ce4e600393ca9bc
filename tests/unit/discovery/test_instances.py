"""
Addresses to connect to, from the metadata of services.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery.balancing import instanceOf, readInstance
from txserviceregistry.types import Service
from txserviceregistry.util.fields import Unusable


def withMetadata(**metadata: str) -> Service:
    """A service with these metadata; ``service_host`` and the like stand for ``service.host``."""
    given = {key.replace("_", "."): value for key, value in metadata.items()}
    return {"id": "web1", "heartbeat_timeout": 30, "tags": ["www"], "metadata": given, "last_seen": None}


class InstanceTests(SynchronousTestCase):
    """Addresses in metadata."""

    def address(self, **metadata: str) -> tuple[str, int]:
        found = instanceOf(withMetadata(**metadata))
        assert found is not None
        return found.host, found.port

    def test_theFirstKeyThatIsThereCounts(self) -> None:
        """Of host, address, ip and service.host the first counts, and of port and service.port."""
        given = {"service_host": "d", "service_port": "4"}
        self.assertEqual(self.address(**given), ("d", 4))
        given = {"ip": "c", **given}
        self.assertEqual(self.address(**given), ("c", 4))
        given = {"address": "b", **given}
        self.assertEqual(self.address(**given), ("b", 4))
        given = {"host": "a", "port": "1", **given}
        self.assertEqual(self.address(**given), ("a", 1))

    def test_emptyValuesAreNotThere(self) -> None:
        """A key without a value is ignored, and so are blanks around a value."""
        self.assertEqual(self.address(host=" ", ip=" 10.0.0.1 ", port="80 "), ("10.0.0.1", 80))

    def test_saysAllOfTheService(self) -> None:
        """The instance has the service's id, tags and metadata."""
        found = readInstance(withMetadata(host="a", port="1", zone="z"))
        self.assertEqual((found.id, found.tags, found.metadata["zone"]), ("web1", ("www",), "z"))
        self.assertEqual((str(found), found.key), ("web1 at a:1", ("web1", "a", 1)))

    def test_ipv6(self) -> None:
        """An IPv6 address may stand in brackets, and has them in a URL."""
        for host in ("::1", "[::1]"):
            found = readInstance(withMetadata(host=host, port="1"))
            self.assertEqual((found.host, found.netloc), ("::1", "[::1]:1"))

    def test_noAddress(self) -> None:
        """A service without a valid address is not an instance; the error has the reason."""
        for reason, metadata in (
            ("no 'host'", {"port": "80"}),
            ("no 'port'", {"host": "a"}),
            ("no 'port'", {"host": "a", "port": ""}),
            ("'http://a' in its metadata is not a host", {"host": "http://a", "port": "80"}),
            ("'a b' in its metadata is not a host", {"host": "a b", "port": "80"}),
            ("'a:b' in its metadata is not a host", {"host": "a:b", "port": "80"}),
            ("'bücher.example' in its metadata is not a host", {"host": "bücher.example", "port": "80"}),
            ("'0' in its metadata is not a port", {"host": "a", "port": "0"}),
            ("'65536' in its metadata is not a port", {"host": "a", "port": "65536"}),
            ("'8o' in its metadata is not a port", {"host": "a", "port": "8o"}),
            ("is not a port", {"host": "a", "port": "²"}),
        ):
            self.assertIsNone(instanceOf(withMetadata(**metadata)))
            self.assertIn(reason, str(self.assertRaises(Unusable, readInstance, withMetadata(**metadata))))

    def test_disabled(self) -> None:
        """``status=disabled``, and nothing else, takes an instance out."""
        for status, isEnabled in (("disabled", False), ("enabled", True), ("", True)):
            self.assertIs(readInstance(withMetadata(host="a", port="1", status=status)).isEnabled, isEnabled)
        self.assertTrue(readInstance(withMetadata(host="a", port="1")).isEnabled)

    def test_tlsName(self) -> None:
        """The certificate is for the host, unless the metadata have another name."""
        for name, expected in (("web.example", "web.example"), ("", "a"), ("not a name", "a")):
            self.assertEqual(readInstance(withMetadata(host="a", port="1", tls_name=name)).tlsName, expected)
        self.assertEqual(readInstance(withMetadata(host="a", port="1")).tlsName, "a")

    def test_takesWork(self) -> None:
        """The state, the weight and ``status=disabled`` decide whether an instance may be picked."""

        def isEnabled(state: str = "up", **metadata: str) -> bool:
            service = withMetadata(host="a", port="1", **metadata)
            if state != "up":
                service["state"] = state
            return readInstance(service).isEnabled

        self.assertTrue(isEnabled())
        self.assertTrue(isEnabled(weight="1", status="enabled"))
        self.assertEqual([isEnabled(state) for state in ("drain", "out", "something-else")], [False] * 3)
        self.assertFalse(isEnabled(status="disabled"))
        self.assertFalse(isEnabled(weight="0"))

    def test_weight(self) -> None:
        """The weight is a number from 0 to 1000; what is not counts as 100."""
        for text, weight in (("0", 0), ("7", 7), ("1000", 1000), ("1001", 100), ("-1", 100), ("x", 100), ("1.5", 100)):
            self.assertEqual(readInstance(withMetadata(host="a", port="1", weight=text)).weight, weight)
        self.assertEqual(readInstance(withMetadata(host="a", port="1")).weight, 100)
