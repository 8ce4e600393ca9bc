"""Tests for :mod:`txserviceregistry.registry.http.operations`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.http.operations import TOKENS, decodePath, match, resolve


class DecodePathTests(SynchronousTestCase):
    """The escapes in a path."""

    def test_decodes(self) -> None:
        """Every escape counts once, %2F is a slash, and no slash is merged."""
        for raw, path in [
            (b"/v1.0//1/services", "/v1.0//1/services"),
            (b"/a%2Fb%2fc", "/a/b/c"),
            (b"/%25zz", "/%zz"),
            (b"/%C3%A4", "/\xe4"),
            ("/\xe4".encode(), "/\xe4"),
            (b"/a%00b", "/a\0b"),
            (b"/a+b/../c", "/a+b/../c"),
        ]:
            self.assertEqual(decodePath(raw), path)

    def test_refusesWhatIsBroken(self) -> None:
        """Escapes that are none, and bytes that are no UTF-8, are the fault that the API names."""
        for raw in (b"/%", b"/%z", b"/%zz", b"/%4", b"/a%+4", b"/%80", b"/\x80", b"/%ED%A0%80", b"/%C3", b"/% 4"):
            fault = self.assertRaises(Fault, decodePath, raw)
            self.assertEqual((fault.code, fault.type, fault.message), (400, "badRequest", "URI malformed"), raw)


class MatchTests(SynchronousTestCase):
    """The table of routes."""

    def assertNoPage(self, method: str, path: str) -> None:
        self.assertIsNone(match(method, path)[0], (method, path))

    def assertMatches(self, method: str, path: str, name: str, argument: str = "") -> None:
        """A path is this operation with this argument."""
        operation, found = match(method, path)
        self.assertEqual((operation and operation.name, found), (name, argument), (method, path))

    def test_services(self) -> None:
        """The paths of services, whatever the ids look like."""
        for method, path, *found in [
            ("GET", "/services", "listServices"),
            ("POST", "/services", "createService"),
            ("GET", "/services/web1", "getService", "web1"),
            ("GET", "/services/..", "getService", ".."),
            ("GET", "/services/heartbeat", "getService", "heartbeat"),
            ("PUT", "/services/web1", "updateService", "web1"),
            ("DELETE", "/services/web1", "removeService", "web1"),
            ("POST", "/services/web1/heartbeat", "heartbeat", "web1"),
            ("GET", "/limits", "getLimits"),
            ("GET", "/events", "listEvents"),
        ]:
            self.assertMatches(method, path, *found)

    def test_aSlashTooMany(self) -> None:
        """Old clients end these paths with a slash."""
        for method, path in [
            ("GET", "/services"),
            ("POST", "/services"),
            ("GET", "/services/web1"),
            ("PUT", "/services/web1"),
            ("DELETE", "/services/web1"),
            ("POST", "/services/web1/heartbeat"),
            ("GET", "/events"),
            ("GET", "/limits"),
        ]:
            self.assertEqual(match(method, path + "/"), match(method, path))

    def test_head(self) -> None:
        """HEAD is the operation of GET."""
        for path in ("/services", "/services/web1", "/configuration", "/configuration/abc", "/configuration/abc/"):
            self.assertEqual(match("HEAD", path), match("GET", path))

    def test_noPage(self) -> None:
        """A path that is not in the table, two slashes too many and a wrong method are a page that can't be found."""
        for method, path in [
            ("GET", ""),
            ("GET", "/"),
            ("GET", "services"),
            ("GET", "//services"),
            ("GET", "/services//"),
            ("POST", "/services//heartbeat"),
            ("POST", "/services/a/b/heartbeat"),
            ("POST", "/services/web1/heartbeat/x"),
            ("GET", "/services/web1/heartbeat"),
            ("GET", "/services/{serviceId}/x"),
            ("PATCH", "/services/web1"),
            ("get", "/services"),
            ("PUT", "/services"),
            ("DELETE", "/services"),
            ("GET", "/limits//"),
            ("POST", "/services/web1/heartbeat//"),
            ("GET", "/services/web1//"),
            ("POST", "/heartbeats/"),
            ("HEAD", "/services/web1/heartbeat"),
            ("POST", "/limits"),
            ("POST", "/events"),
            ("GET", "/configurations"),
            ("PUT", "/configuration"),
            ("DELETE", "/configuration/"),
            ("POST", "/configuration/abc"),
            ("GET", "/account"),
        ]:
            self.assertNoPage(method, path)

    def test_configuration(self) -> None:
        """All spellings of collections, namespaces, simple and qualified keys."""
        for path, *found in [
            ("", "listValues"),
            ("/", "listValues"),
            ("//", "listNamespace", "/"),
            ("///", "listNamespace", "//"),
            ("/listen_ip", "getValue", "listen_ip"),
            ("//abc_def", "getValue", "/abc_def"),
            ("/production/x_y", "getValue", "/production/x_y"),
            ("//production/x_y", "getValue", "/production/x_y"),
            ("/production/cassandra/listen_ip", "getValue", "/production/cassandra/listen_ip"),
            ("//production/cassandra/listen_ip", "getValue", "/production/cassandra/listen_ip"),
            ("///production/x_y", "getValue", "//production/x_y"),
            ("/production/", "listNamespace", "/production"),
            ("//production/", "listNamespace", "/production"),
            ("/production/cassandra/", "listNamespace", "/production/cassandra"),
            ("//production/cassandra/", "listNamespace", "/production/cassandra"),
            ("/production//", "listNamespace", "/production/"),
            ("//production//", "listNamespace", "/production/"),
        ]:
            self.assertMatches("GET", "/configuration" + path, *found)

    def test_configurationThatIsChanged(self) -> None:
        """PUT and DELETE take a key, never a namespace, with any slash at the end."""
        for method, name in (("PUT", "setValue"), ("DELETE", "removeValue")):
            for path, key in [
                ("/listen_ip", "listen_ip"),
                ("//abc_def", "/abc_def"),
                ("/production/x_y", "/production/x_y"),
                ("//production/x_y", "/production/x_y"),
                ("//", "/"),
                ("/production/", "/production/"),
                ("//production/", "/production/"),
            ]:
                self.assertMatches(method, "/configuration" + path, name, key)


class PrefixTests(SynchronousTestCase):
    """The steps before the table."""

    def test_tenant(self) -> None:
        """The tenant comes first; a slash too many before it is tolerated, after it none is taken away."""
        for path, parts in [
            (b"/1/services", ("1", "/services")),
            (b"//1/services", ("1", "/services")),
            (b"/1//services", ("1", "")),
            (b"/1", ("1", "")),
            (b"/1/", ("1", "")),
            (b"", ("", "")),
            (b"/", ("", "")),
        ]:
            target = resolve(b"GET", b"/v1.0" + path)
            self.assertEqual((target.isApi, target.tenant, target.route), (True, *parts), path)

    def test_tokens(self) -> None:
        """``/tokens`` and ``/tokens/`` are the same, also below an auth URL with a slash too many."""
        for path, found in [
            (b"/tokens", True),
            (b"/tokens/", True),
            (b"//tokens", True),
            (b"tokens", False),
            (b"/tokens//", False),
            (b"/token", False),
            (b"/", False),
        ]:
            target = resolve(b"POST", b"/v2.0" + path)
            self.assertEqual((target.isApi, target.route), (False, TOKENS if found else ""), path)
