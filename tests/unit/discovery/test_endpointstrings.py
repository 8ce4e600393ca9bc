r"""
Endpoint strings: what they mean, and what is said of those that are wrong.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site
from twisted.web.static import Data

from txserviceregistry.discovery.endpoints import RegisteredPort

from .sharedcase import SharedTestCase


class ClientStringTests(SynchronousTestCase):
    """``registry:TAG``."""

    def refusal(self, text: str) -> str:
        return str(self.assertRaises(ValueError, clientFromString, MemoryReactorClock(), text))

    def test_nothingIsOpenedByReading(self) -> None:
        """Reading such a string needs neither a registry nor credentials, and schedules nothing."""
        reactor = MemoryReactorClock()
        for text in ("registry:web", "registry:tag=web:strategy=random:timeout=2.5:region=eu:zone=a", r"registry:a\:b"):
            clientFromString(reactor, text)
        self.assertEqual((reactor.getDelayedCalls(), reactor.tcpClients), ([], []))

    def test_mistakes(self) -> None:
        """A mistake is a ValueError that says what there is."""
        self.assertIn(
            "registry: unknown strategy 'best' (known: round-robin", self.refusal("registry:web:strategy=best")
        )
        for timeout in ("soon", "0", "-1", "nan", "inf"):
            self.assertIn(f"timeout: '{timeout}' is not a number", self.refusal(f"registry:web:timeout={timeout}"))
        self.assertIn("unknown parameter 'colour' (known: tag, strategy", self.refusal("registry:web:colour=red"))
        for text in ("registry", "registry:", "registry:a:b", "registry:a:tag=b"):
            self.assertIn("one tag is required", self.refusal(text))


class ServerStringTests(SynchronousTestCase):
    """``registered:…``."""

    def refusal(self, text: str) -> str:
        return str(self.assertRaises(ValueError, serverFromString, MemoryReactorClock(), text))

    def test_nothingIsOpenedByReading(self) -> None:
        """Reading such a string needs neither a registry nor credentials, and opens nothing."""
        reactor = MemoryReactorClock()
        serverFromString(reactor, r"registered:id=web1:endpoint=tcp\:80")
        self.assertEqual((reactor.getDelayedCalls(), reactor.tcpServers), ([], []))

    def test_unquotedEndpoints(self) -> None:
        """A wrapped endpoint whose colons were not escaped is refused, with the right spelling."""
        for wrong, right in (
            ("registered:id=web1:endpoint=tcp:8080", r"registered:id=web1:endpoint=tcp\:8080"),
            (
                "registered:endpoint=tcp:80:interface=127.0.0.1:tags=a,b:id=web1",
                r"registered:id=web1:tags=a,b:endpoint=tcp\:80\:interface=127.0.0.1",
            ),
            (
                "registered:id=web1:endpoint=tcp:443:backlog=5",
                r"registered:id=web1:endpoint=tcp\:443\:backlog=5",
            ),
            ("registered:tcp:8080", r"registered:id=web1:endpoint=tcp\:8080"),
            (r"registered:tags=www:tcp:8080", r"registered:id=web1:tags=www:endpoint=tcp\:8080"),
            (
                r"registered:id=web1:metadata=url=http\://x:endpoint=tcp:1",
                r"registered:id=web1:metadata=url=http\://x:endpoint=tcp\:1",
            ),
        ):
            self.assertTrue(self.refusal(wrong).endswith(f" Write {right}"), self.refusal(wrong))
            serverFromString(MemoryReactorClock(), right)

    def test_otherColons(self) -> None:
        """When it is not the endpoint that has a colon too many, that is what is said."""
        said = self.refusal(r"registered:id=web1:metadata=url=http://x:endpoint=tcp\:1")
        self.assertIn(r"unknown parameter '//x'", said)
        self.assertIn(r"A colon within a value is written \:", said)
        self.assertIn("unknown parameter 'tag=a'", self.refusal(r"registered:id=web1:tag=a:endpoint=tcp\:1"))
        for text in (r"registered:id=web1:tags=a:tcp\:8080", r"registered:tcp\:8080"):
            self.assertIn("unknown parameter 'tcp:8080' (known: id, tags, ", self.refusal(text))

    def test_mistakes(self) -> None:
        """Each mistake is a ValueError that names it."""
        good = r"endpoint=tcp\:80"
        for text, said in (
            (f"registered:{good}", "id= is missing"),
            ("registered:id=web1", "endpoint= is missing"),
            ("registered:id=web1:endpoint=", "endpoint= is missing"),
            (f"registered:id=w:{good}", "id=w is not valid: it has 3 to 65"),
            (f"registered:id=web 1:{good}", "id=web 1 is not valid"),
            (f"registered:id=web1:heartbeatTimeout=2:{good}", "heartbeatTimeout=2 is not a whole number"),
            (f"registered:id=web1:heartbeatTimeout=121:{good}", "from 3 to 120"),
            (f"registered:id=web1:heartbeatTimeout=x:{good}", "heartbeatTimeout=x is no"),
            (f"registered:id=web1:metadata=a=b,c:{good}", "metadata: 'c' is not a key=value pair"),
            ("registered:id=web1:endpoint=tcp", "endpoint=tcp is not a server endpoint"),
            (r"registered:id=web1:endpoint=nonsense\:1", r"endpoint=nonsense:1 is not a server endpoint"),
            (r"registered:id=web1:endpoint=tcp\:x", "endpoint=tcp:x is not a server endpoint"),
            (r"registered:id=web1:endpoint=ssl\:443\:privateKey=k.pem", "No such file or directory: "),
            (r"registered:id=web1:endpoint=tcp\:80\\", "ends in a backslash"),
        ):
            self.assertIn(said, self.refusal(text))


class MeaningTests(SharedTestCase):
    """The endpoint of a server's string."""

    def listen(self, text: str) -> RegisteredPort:
        site: Any = Site(Data(b"", "text/plain"))
        port = self.successResultOf(serverFromString(self.reactor, text).listen(site))
        assert isinstance(port, RegisteredPort)
        self.fake.advance(1)
        return port

    def test_everything(self) -> None:
        """All that can be said is registered, commas and colons in tags and metadata included."""
        port = self.listen(
            r"registered:id=web1:tags=www,a\\,b,c\:d:metadata=zone=a,note=x\\, y,url=http\://x/?a=b"
            r":heartbeatTimeout=10:endpoint=tcp\:8080\:interface=127.0.0.1"
        )
        [found] = self.services()
        self.assertEqual(found["tags"], ["www", "a,b", "c:d"])
        expected = {"zone": "a", "note": "x, y", "url": "http://x/?a=b"}
        self.assertEqual(found["metadata"], {**expected, "host": "127.0.0.1", "port": "8080"})
        self.assertEqual((found["id"], found["heartbeat_timeout"]), ("web1", 10))
        self.stop(port)
        self.assertEqual(self.services(), [])

    def test_withNothingElse(self) -> None:
        """An id and an endpoint are enough."""
        port = self.listen(r"registered:id=web1:endpoint=tcp\:8080")
        [found] = self.services()
        self.assertEqual((found["tags"], found["heartbeat_timeout"]), ([], 30))
        self.stop(port)

    def test_ipv6(self) -> None:
        """An IPv6 interface has three backslashes before each colon."""
        port = self.listen(r"registered:id=web1:endpoint=tcp6\:8080\:interface=\\\:\\\:1")
        self.assertEqual(self.services()[0]["metadata"], {"host": "::1", "port": "8080"})
        self.stop(port)
