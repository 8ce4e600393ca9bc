"""
Two nodes over one etcd, on a clock that a program moves.

The etcd is a real one, and keys, transactions and watches are its own. Only its leases follow the program's clock:
the agent through which the nodes reach it keeps account of them, and ends one in etcd when its time has come.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from tests.fakeagent import answer
from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.fuzz.nodes import Backing, Turns
from txserviceregistry.http.messages import BytesProducer
from txserviceregistry.registry.stores.etcd.keyvalues import endOf
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import IStore

__all__ = ["TwoNodes"]

#: Seconds of the real clock within which etcd has to report a change.
_PATIENCE = 30.0
#: The statuses with which etcd refuses what it may do soon.
_PASSING = frozenset({429, 500, 503, 504})
#: Seconds that a lease has in etcd itself: it is never to end there by itself.
_FOR_EVER = 1_000_000
#: A lease ends, in etcd, when it is found at one of its rounds: so many seconds apart.
_ROUND = 0.5
#: Seconds that the writes of statuses are delayed, one after the other.
_DELAYS = (0.0, 0.0, 0.1, 0.0, 0.4, 0.2, 0.0, 0.7)


@attrs.define
class _Lease:
    """:ivar end: when it runs out, by the program's clock."""

    granted: int
    end: float


@implementer(IAgent)
class Gateway:
    """
    An agent that asks etcd there and then, but for the statuses of nodes, and answers in a turn of the program's clock.

    :param url: etcd's.
    :param turns: the clock.
    """

    def __init__(self, url: str, turns: Turns) -> None:
        self._host = url.removeprefix("http://")
        self._turns = turns
        self._connection = http.client.HTTPConnection(self._host, timeout=_PATIENCE)
        self._leases: dict[int, _Lease] = {}
        self._watches: set[_Watching] = set()
        self._delays = itertools.cycle(_DELAYS)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        assert isinstance(bodyProducer, BytesProducer)
        path = uri.decode("ascii").partition("/v3/")[2]
        answered: Deferred[IResponse] = Deferred()
        delay = next(self._delays) if _isStatus(bodyProducer.body) else 0.0
        if delay:
            self._turns.callLater(delay, self._pass, path, bodyProducer.body, answered)
        else:
            self._pass(path, bodyProducer.body, answered)
        return answered

    def _pass(self, path: str, body: bytes, answered: Deferred[IResponse]) -> None:
        """Ask etcd."""
        response: Any
        revision = 0
        if path == "watch":
            response = _Watching(self._host, body, self._turns.callFromThread, self._watches)
        elif path.startswith("lease/"):
            response, revision = self._leased(path.removeprefix("lease/"), body)
        else:
            code, said = self._ask(path, body)
            response, revision = answer(code, said), _changed(said)
        self._turns.callFromThread(self._deliver, answered, response)
        self._tell(revision)

    def _deliver(self, answered: Deferred[IResponse], response: IResponse) -> None:
        if not answered.called:
            answered.callback(response)

    def close(self, prefix: str) -> None:
        """Leave nothing of a program behind."""
        for watch in list(self._watches):
            watch.end()
        key, end = (b64encode(text.encode()).decode() for text in (prefix, endOf(prefix)))
        self._ask("kv/deleterange", json.dumps({"key": key, "range_end": end}).encode())
        for id in self._leases:
            self._ask("lease/revoke", _id(id))
        self._connection.close()

    # -- etcd

    def _ask(self, path: str, body: bytes) -> tuple[int, Any]:
        end = time.monotonic() + _PATIENCE
        while True:
            self._connection.request("POST", f"/v3/{path}", body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            said = json.loads(response.read())
            # An etcd on a busy machine refuses for a moment. The node would pause and try again, but it may have been
            # asked to stop, or for a response, while the program's clock stands still.
            if response.status not in _PASSING or time.monotonic() > end:
                return response.status, said

    def _tell(self, revision: int) -> None:
        """Let the watches receive all changes up to a revision."""
        for watch in list(self._watches):
            watch.readUntil(revision)

    # -- leases

    def _leased(self, what: str, body: bytes) -> tuple[Any, int]:
        """The answer to a request about leases, and the revision that it made; 0 if it made none."""
        asked = json.loads(body)
        id = int(asked["ID"])
        if what == "keepalive":
            return answer(200, {"result": self._kept(id)}), 0
        if what == "revoke":
            return self._revoked(id)
        seconds, now = int(asked["TTL"]), self._turns.seconds()
        code, said = self._ask("lease/grant", json.dumps({"ID": str(id), "TTL": str(_FOR_EVER)}).encode())
        if code == 200:
            self._leases[id] = _Lease(seconds, now + seconds)
            self._turns.callLater(seconds, self._lapse, id)
        return answer(code, said), 0

    def _kept(self, id: int) -> dict[str, str]:
        lease = self._leases.get(id)
        if lease is None:
            return {"ID": str(id)}
        lease.end = self._turns.seconds() + lease.granted
        return {"ID": str(id), "TTL": str(lease.granted)}

    def _lapse(self, id: int) -> None:
        lease = self._leases.get(id)
        if lease is None:
            return
        now = self._turns.seconds()
        found = math.ceil(lease.end / _ROUND) * _ROUND
        if found > now:
            self._turns.callLater(found - now, self._lapse, id)
            return
        _, revision = self._revoked(id)
        self._tell(revision)

    def _revoked(self, id: int) -> tuple[Any, int]:
        self._leases.pop(id, None)
        _, lease = self._ask("lease/timetolive", json.dumps({"ID": str(id), "keys": True}).encode())
        code, said = self._ask("lease/revoke", _id(id))
        hadKeys = code == 200 and bool(lease.get("keys"))
        return answer(code, said), int(said["header"]["revision"]) if hadKeys else 0


def _id(id: int) -> bytes:
    return json.dumps({"ID": str(id)}).encode()


def _isStatus(body: bytes) -> bool:
    """Whether a request writes the status of a node that is a member."""
    conditions = json.loads(body).get("compare", ())
    return (
        len(conditions) == 1
        and b"/nodes/" in b64decode(conditions[0]["key"])
        and conditions[0].get("create_revision", "0") != "0"
    )


def _changed(said: Mapping[str, Any]) -> int:
    """The revision that a transaction made; 0 if it made none."""
    return int(said["header"]["revision"]) if _changes(said) else 0


def _changes(said: Mapping[str, Any]) -> bool:
    return any(
        "response_put" in each
        or int(each.get("response_delete_range", {}).get("deleted", 0))
        or _changes(each.get("response_txn", {}))
        for each in said.get("responses", ())
    )


@implementer(IResponse)
class _Watching:
    """
    The answer of a watch, which has no end.

    :param report: does something in a turn of the program's clock.
    :param all_: those that are open.
    """

    version = (b"HTTP", 1, 1)
    phrase = b"OK"
    request = previousResponse = None
    length = UNKNOWN_LENGTH

    def __init__(self, host: str, body: bytes, report: Callable[..., None], all_: set[_Watching]) -> None:
        self.headers = Headers()
        self._report = report
        self._all = all_
        self._connection = http.client.HTTPConnection(host, timeout=_PATIENCE)
        self._connection.request("POST", "/v3/watch", body, {"Content-Type": "application/json"})
        self._response = self._connection.getresponse()
        self.code = self._response.status
        # Until it has begun to watch, nothing that happens is sure to be told.
        self._early = [self._response.readline()]
        self._protocol: Protocol | None = None
        self._revision = 0
        all_.add(self)

    def setPreviousResponse(self, response: IResponse) -> None:
        """See IResponse. There is none."""

    def deliverBody(self, protocol: Any) -> None:
        """See IResponse."""
        protocol.makeConnection(self)
        self._protocol = protocol
        for line in self._early:
            protocol.dataReceived(line)

    def readUntil(self, revision: int) -> None:
        """Receive all changes up to a revision from etcd, and report them."""
        while self._revision < revision and self in self._all:
            line = self._response.readline()
            if not line:
                raise AssertionError("a watch has ended by itself")
            result = json.loads(line)["result"]
            for event in result.get("events", ()):
                self._revision = max(self._revision, int(event["kv"]["mod_revision"]))
            if result.get("canceled"):
                self._revision = revision
            self._report(self._hand, line)

    def _hand(self, line: bytes) -> None:
        if self._protocol is None:
            self._early.append(line)
        elif self in self._all:
            self._protocol.dataReceived(line)

    def loseConnection(self) -> None:
        """The protocol wants no more."""
        self.end()
        self._report(self._lost)

    def _lost(self, reason: Failure = connectionDone) -> None:
        if self._protocol is not None:
            self._protocol.connectionLost(Failure(ResponseDone()))

    def end(self) -> None:
        """Close it."""
        self._all.discard(self)
        self._connection.close()
        self._response.close()


class TwoNodes(Backing):
    """
    One etcd for two nodes.

    The writes of the nodes' statuses are delayed, so that the nodes see what the other one publishes at different
    moments. A service that expires does so after a vote: a second late at most, and two such delays.
    """

    nodes = 2
    late = 1.0 + 2 * max(_DELAYS)

    def __init__(self, turns: Turns, wallClock: Callable[[], float]) -> None:
        super().__init__(turns, wallClock)
        self._url = sharedEtcd()
        self._prefix = newPrefix()
        self._gateway = Gateway(self._url, turns)

    def store(self) -> IStore:
        """See :meth:`Backing.store`."""
        return EtcdStore(
            self.turns,
            [self._url],
            prefix=self._prefix,
            agent=self._gateway,
            wallClock=self.wallClock,
            seconds=self.turns.seconds,
        )

    def close(self) -> None:
        """See :meth:`Backing.close`."""
        self._gateway.close(self._prefix)
