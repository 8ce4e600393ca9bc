"""
Times, and the sessions in responses of the Auth API.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.api.auth import Credentials, Session, parseTime
from txserviceregistry.errors import MalformedResponse

from ...fakeagent import API_KEY, TOKEN, FakeAgent, access, answer
from .test_auth import AUTH, authenticatorOver


class ParseTimeTests(SynchronousTestCase):
    """Times in the forms of ISO 8601."""

    def test_forms(self) -> None:
        """One time, in the forms that all versions of Python read; the newer ones read all that are common."""
        common = [
            "2026-11-24T06:00:00.000-06:00",
            "2026-11-24T12:00:00Z",
            "2026-11-24t12:00:00z",
            "2026-11-24T12:00:00+00:00",
            "2026-11-24T12:00:00.000000000Z",
            "2026-11-24 12:00:00",
            "2026-11-24T12:00Z",
        ]
        more = [
            "2026-11-24T12:00:00,0+0000",
            "20261124T120000Z",
            "2026-11-24T13:30:00+0130",
            "2026-11-24T13:00:00+01",
        ]
        for text in [*common, *(more if sys.version_info >= (3, 11) else [])]:
            self.assertEqual(parseTime(text), datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc), text)

    def test_whatIsNoneOfThemIsUnknown(self) -> None:
        """Nonsense is None and no error."""
        for value in (None, 5, "", "tomorrow", "2026-13-01T00:00:00Z", "2026-11-24T12:00:00+99:00", "²026"):
            self.assertIsNone(parseTime(value), value)


class SessionTests(SynchronousTestCase):
    """The data in the Auth API's response."""

    def session(self, body: Any, status: int = 200) -> Deferred[Session]:
        return authenticatorOver(FakeAgent(lambda sent: answer(status, body)))[0].session()

    def test_asksForATokenWithTheKey(self) -> None:
        """The request is the one of API.md, to /tokens below the Auth API's URL."""
        agent = FakeAgent(lambda sent: answer(200, access()))
        authenticator, _ = authenticatorOver(agent)
        session = self.successResultOf(authenticator.session())
        self.assertEqual(agent.asked, [f"POST {AUTH}/tokens"])
        credentials = {"username": "joe", "apiKey": API_KEY}
        self.assertEqual(agent.sent[0].body, {"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})
        self.assertEqual((session.token, session.tenantId, session.expires), (TOKEN, "7", None))

    def test_takes203(self) -> None:
        """Some deployments answer 203."""
        self.assertEqual(self.successResultOf(self.session(access(), 203)).token, TOKEN)

    def test_findsTheTenantWhereverItStands(self) -> None:
        """Without token.tenant, the catalog says the tenant, in the order in which old clients looked."""
        found = {"publicURL": "http://registry/v1.0/42/"}
        catalogs = [
            [{"name": "cloudServersOpenStack", "endpoints": [{"tenantId": "42"}]}, {"name": "cloudServers"}],
            [{"name": "cloudServersOpenStack", "endpoints": [found]}],
            [
                {"name": "cloudServersOpenStack", "endpoints": [{}]},
                {"name": "cloudServers", "endpoints": [found]},
            ],
            ["?", {"name": "cloudMonitoring", "endpoints": [None, found]}],
            [{"name": "whatever", "type": "rax:service-registry", "endpoints": [found]}],
        ]
        for catalog in catalogs:
            body = access(tenant=None)
            body["access"]["serviceCatalog"] = catalog
            self.assertEqual(self.successResultOf(self.session(body)).tenantId, "42")
        self.assertEqual(self.successResultOf(self.session(access(tenant={"id": 43}))).tenantId, "43")

    def test_answersWithoutTheEssentialsAreMalformed(self) -> None:
        """A missing or empty token is a MalformedResponse."""
        nobody = access(tenant={})
        for body in ({}, {"access": []}, {"access": {}}, {"access": {"token": {"id": ""}}}, nobody):
            self.failureResultOf(self.session(body), MalformedResponse)

    def test_knowsTheRegistriesOfTheCatalog(self) -> None:
        """registryUrls() has the URL of each region's registry, without the tenant."""
        body = access()
        body["access"]["serviceCatalog"] = [
            {"type": "compute", "endpoints": [{"publicURL": "http://compute/7"}]},
            {
                "type": "rax:service-registry",
                "endpoints": [
                    {"region": "DFW", "publicURL": "http://dfw/v1.0/7"},
                    {"publicURL": "http://any/v1.0/7/"},
                    {"region": "LON"},
                ],
            },
        ]
        session = self.successResultOf(self.session(body))
        self.assertEqual(session.registryUrls(), {"DFW": "http://dfw/v1.0", "": "http://any/v1.0"})

    def test_secretsAreNotShown(self) -> None:
        """Neither the key nor the token is in the repr of what holds them."""
        session = self.successResultOf(self.session(access()))
        shown = f"{session!r} {Credentials('joe', API_KEY)!r}"
        self.assertNotIn(TOKEN, shown)
        self.assertNotIn(API_KEY, shown)
