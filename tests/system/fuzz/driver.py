"""
How random programs take their steps: with a registry and its model alike.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.system.fuzz.expectations import difference
from tests.system.fuzz.inputs import BEGINNING, IDS, TENANTS
from tests.system.fuzz.model import SWEEP, Model
from tests.system.fuzz.nodes import Backing, Memory, Nodes
from tests.system.fuzz.records import Request, timeUUID
from tests.unit.registry.wire import Reply


class Driver(RuleBasedStateMachine):
    """
    Takes steps with a registry and its model alike.

    :cvar make: what the registry keeps its data in.
    :cvar counts: how often each outcome was met.
    :cvar programs: how many programs have begun.
    :cvar onProgram: is told their number each time.
    """

    make: ClassVar[type[Backing]] = Memory
    counts: ClassVar[Counter[str]] = Counter()
    programs: ClassVar[int] = 0
    onProgram: ClassVar[Callable[[int], None]] = staticmethod(lambda number: None)

    def __init__(self) -> None:
        super().__init__()
        self.nodes: Nodes | None = None

    @initialize(
        limits=st.sampled_from([(200, 1000), (200, 1000), (2, 3), (3, 2)]),
        gets=st.sampled_from([500_000, 500_000, 500_000, 500_000, 12]),
    )
    def begin(self, limits: tuple[int, int], gets: int) -> None:
        """A registry with small limits or large, and two accounts of different age."""
        type(self).programs += 1
        self.onProgram(self.programs)
        self.nodes = Nodes(self.make, TENANTS, limits, gets, BEGINNING)
        self.model = Model(limits, gets, BEGINNING, self.make.late)
        self.txnIds: set[str] = set()
        for tenant in TENANTS:
            self.ask("GET", "/limits", tenant=tenant)
            self.letPass(1.0)

    def token(self, tenant: str, pick: int, id: str) -> str | None:
        """A token of some service, most often the last one of this one."""
        tokens = self.model.accounts[tenant].tokens
        own = [token for token, owner in tokens if owner == id]
        if own and pick % 8:
            return own[-1] if pick % 8 > 1 else own[pick // 8 % len(own)]
        return tokens[pick % len(tokens)][0] if tokens else None

    def registered(self, tenant: str, pick: int) -> str:
        """The id of a registered service, if there is one."""
        ids = [*self.model.accounts[tenant].services]
        return ids[pick % len(ids)] if ids else IDS[pick % len(IDS)]

    @rule(down=st.sampled_from([0.0, 1.0, 40.0]))
    def restart(self, down: float) -> None:
        """The registry is stopped, and started again."""
        self.settleExpirations()
        assert self.nodes is not None
        self.nodes.restart(down)
        self.model.time += down
        self.model.restart()

    def settle(self) -> None:
        """Deliver what the watches show to all nodes."""
        assert self.nodes is not None
        self.nodes.settle()

    def node(self) -> int:
        """The number of the node that has its turn: dealt by what has been asked before, as good as at random."""
        assert self.nodes is not None
        return (len(self.txnIds) * 2654435761 >> 7) % len(self.nodes.nodes)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        tenant: str = "1",
        user: str | None = "",
        contentType: str | None = None,
        conditions: tuple[tuple[str, str], ...] = (),
        role: str = "",
        **query: str | None,
    ) -> Request:
        """A request; the user is the tenant's own if none is given."""
        pairs = tuple((name, value) for name, value in query.items() if value is not None)
        return Request(method, path, body, pairs, tenant, tenant if user == "" else user, contentType, conditions, role)

    def ask(self, *arguments: Any, **more: Any) -> Reply:
        """Ask registry and model alike."""
        assert self.nodes is not None
        request = self.request(*arguments, **more)
        node = self.node()
        self.nodes.turns.hear()
        asked = self.nodes.send(request, node)
        waited = self.nodes.answered(asked)
        reply = asked.reply
        assert reply is not None
        later = deepcopy(self.model) if waited else self.model
        expected = self.model.answer(request, node)
        if waited:
            # Whether the wait was over before a deadline or after it: either is right.
            self.model.advance(waited)
            later.advance(waited)
            if self.wrong(reply, expected) is not None:
                self.model, expected = later, later.answer(request, node)
        self.check(request, reply, expected)
        if waited:
            self.clear()
        return reply

    def check(self, request: Request, reply: Reply, expected: Any) -> None:
        """See that an answer is as expected."""
        found = self.wrong(reply, expected)
        self.count(request, reply)
        assert found is None, f"{request}: {found}\n{reply}"

    def wrong(self, reply: Reply, expected: Any) -> str | None:
        """The differences of a response from the expected one, in words."""
        found = difference(expected.status, reply.code, "status")
        found = found or difference(expected.body, reply.json if reply.raw else None)
        for name, value in expected.headers.items():
            found = found or difference(value, reply.header(name), name)
        return found

    def count(self, request: Request, reply: Reply) -> None:
        """Count an answer, and see to its transaction id."""
        actual = reply.json if reply.raw else None
        self.counts[_outcome(request, reply.code, actual)] += 1
        txnId = reply.header("X-Response-Id")
        assert txnId is not None and txnId not in self.txnIds, reply
        self.txnIds.add(txnId)
        if reply.code >= 400:
            assert actual["txnId"] == txnId, reply

    def letPass(self, seconds: float) -> None:
        """Time goes by for registry and model alike."""
        assert self.nodes is not None
        self.nodes.pass_(seconds)
        self.model.advance(seconds)
        self.clear()

    def clear(self) -> None:
        """If it takes some time until all nodes know that a service has expired, let it go by."""
        assert self.nodes is not None
        while self.model.late and self.model.isUntold:
            self.nodes.pass_(SWEEP)
            self.model.advance(SWEEP)

    def settleExpirations(self) -> None:
        """Let the feed have all expirations: after a registry that stops before, the services may be there again."""
        if self.model.isUntold:
            self.letPass(SWEEP)

    def learn(self, tenant: str) -> None:
        """Look at the whole feed, unless all is known of it."""
        account = self.model.accounts[tenant]
        if all(event.id for event in account.events):
            return
        assert self.nodes is not None
        request = self.feed(tenant)
        first = self.node()
        for node in (first, *(each for each in range(len(self.nodes.nodes)) if each != first)):
            reply = self.nodes.ask(request, node)
            expected = self.model.answer(request, node)
            if expected.status == 200:
                assert reply.code == 200, f"{request}: {reply}"
                wrong = self.model.learn(tenant, reply.json["values"])
                assert wrong is None, f"the feed of {tenant} has {wrong}\n{reply.json['values']}"
                return
            # Each node has a limit of its own.
            self.check(request, reply, expected)

    def feed(self, tenant: str) -> Request:
        """A request for the whole feed."""
        account = self.model.accounts[tenant]
        first = account.events[0].id if account.events else None
        if first is None and self.model.wall > account.created:
            first = timeUUID(account.created)
        return self.request("GET", "/events", tenant=tenant, marker=first, limit="1000", types="all")

    def teardown(self) -> None:
        """At the end everything is as the model has it."""
        if self.nodes is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self.settleExpirations()
                self.restart(0.0)
                for tenant in TENANTS:
                    for path in ("/services", "/configuration", "/limits", "/states", "/locks"):
                        self.ask("GET", path, tenant=tenant)
                    self.learn(tenant)
        finally:
            self.nodes.close()


def _outcome(request: Request, code: int, actual: Any) -> str:
    """The kind of a response: without the names and numbers in it."""
    collection = request.path.split("/")[1] if request.path.count("/") else ""
    words = ""
    if code >= 400:
        words = " ".join(dict.fromkeys(str(actual[name]) for name in ("type", "message", "details")))
        words = re.sub(
            r"'[^']{12,}'|the tag .*",
            "'…'",
            re.sub(r'key "[^"]*"|Service with id \S*|Key .*:|for key \'k+\':', "…", words),
        )[:150]
    elif request.method == "GET" and isinstance(actual, dict) and "values" in actual:
        words = f"{'more' if actual['metadata']['next_href'] else 'last' if actual['values'] else 'empty'} page"
    what = "heartbeat" if request.path.endswith("/heartbeat") else collection
    return f"{code} {request.method} {what} {words}".rstrip()
