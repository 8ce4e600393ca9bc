"""
A cluster without sockets: several addresses of one registry in memory, each of which can fail on its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from tests.fakeagent import answer
from txserviceregistry import Client
from txserviceregistry.testing import FakeRegistry

#: The faults of a node. One that is DEAF acts on what it is asked, and its responses never arrive. One that is HIDDEN
#: has a gateway before it, which answers each request itself.
UP, REFUSES, HANGS, DEAF, CUT_OFF, HIDDEN = "up", "refuses", "hangs", "deaf", "cut off", "hidden"


@implementer(IAgent)
class Nodes:
    """
    The nodes of a registry, named ``a``, ``b`` and so on.

    :param fake: the registry.
    :ivar states: what each does: one of the words above.
    :ivar page: the status and the body with which the gateways answer.
    :ivar asked: ``METHOD /path`` of what each was asked, authentication left out.
    """

    def __init__(self, fake: FakeRegistry, names: str = "abc") -> None:
        self.states = dict.fromkeys(names, UP)
        self.page = (404, b"<html>")
        self.asked: dict[str, list[str]] = {name: [] for name in names}
        self.authentications: Counter[str] = Counter()
        self._fake = fake
        self._agent = fake.agent

    def url(self, name: str) -> str:
        """A node's URL."""
        return f"http://{name}.invalid:8880/v1.0"

    def client(self, **options: Any) -> Client:
        """A client of all of them, which begins with ``a`` and goes on in their order."""
        return Client(
            self._fake.username,
            self._fake.apiKey,
            baseUrl=[self.url(name) for name in self.states],
            agent=self,
            reactor=self._fake.clock,
            **{"random": lambda: 0.0, **options},
        )

    def request(self, method: bytes, uri: bytes, *rest: Any) -> Deferred[IResponse]:
        """See :class:`twisted.web.iweb.IAgent`."""
        name = uri.decode().partition("://")[2][0]
        path = "/" + uri.decode().partition("://")[2].partition("/")[2]
        if path.endswith("/tokens"):
            self.authentications[name] += 1
        else:
            self.asked[name].append(f"{method.decode()} /{path.split('/', 3)[-1]}")
        state = self.states[name]
        if state == REFUSES:
            return fail(ConnectionRefusedError())
        if state in (CUT_OFF, HIDDEN):
            fault = {"type": "systemFailureError", "code": 503, "message": "", "details": "", "txnId": "x"}
            response = answer(503, fault) if state == CUT_OFF else answer(*self.page)
            later: Deferred[IResponse] = Deferred()
            self._fake.clock.callLater(0, later.callback, response)
            return later
        if state == HANGS:
            return Deferred()
        answered = self._agent.request(method, uri, *rest)
        if state == DEAF:
            answered.addBoth(lambda _: None)
            return Deferred()
        return self._whileUp(name, answered)

    def _whileUp(self, name: str, answered: Deferred[IResponse]) -> Deferred[IResponse]:
        """A result that arrives only if the node is still there then."""
        relayed: Deferred[IResponse] = Deferred(lambda _: answered.cancel())

        def arrived(result: Any) -> None:
            if self.states[name] == UP and not relayed.called:
                relayed.callback(result)

        answered.addBoth(arrived)
        return relayed
