"""Requests to etcd, and the watch of changes: its v3 gateway for JSON over HTTP (``rpc.proto`` of 3.4 and 3.5)."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from ....errors import ServiceRegistryError
from ....http.jsontransport import JSONTransport
from ....http.messages import BytesProducer, Response, ResponseTooLarge
from ....util.deferred import PrioritySemaphore, SingleFlight, returnsDeferred
from ....util.files import Reloaded
from ...statistics import StoreStatistics
from ..interfaces import StoreUnavailable
from .keyvalues import Clause, KeyValue, Txn, encode, endOf, jsonBytes, logOnce, put, reading, unchanged

#: Seconds that each member has for a response: a leader's failure leaves requests hanging.
TRY = 1.0
#: Seconds that a request may take with all its tries, and those between two of them; clients wait for ten.
PATIENCE = 4.0
PAUSE = 0.1
#: Seconds that a request waits for its turn: what comes later is of no use to clients, and would keep others waiting.
QUEUE = 8.0
#: Keys in one read, and by how much fewer are read after a response that was too large, or too late.
PAGE = 1000
_FEWER = 8

# The codes of gRPC.
_CANCELED, _INVALID, NOT_FOUND, _FAILED_PRECONDITION, _OUT_OF_RANGE = 1, 3, 5, 9, 11
_UNAVAILABLE, _UNAUTHENTICATED = 14, 16
# Those that mean "again, perhaps elsewhere", such as DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED. UNKNOWN is what a change
# of the leader looks like from a follower.
_PASSING = frozenset({_CANCELED, 2, 4, 8, _UNAVAILABLE})
# etcd is well, and can't do what was asked.
_OF_WHAT_WAS_ASKED = frozenset({NOT_FOUND, _FAILED_PRECONDITION, _OUT_OF_RANGE})
# With _INVALID: etcd's answer to a token from before a change of its users, or to none.
_OLD_TOKEN = "revision of auth store is old", "user name is empty"
# Its response to a password while it allows everything, before authentication is enabled.
_OPEN = "authentication is not enabled"
_TXN = "kv/txn"
# No group of changes of one revision is this large; it bounds what a broken server can make us hold.
_LONGEST_LINE = 64 * 1024 * 1024


class EtcdError(StoreUnavailable):
    """etcd refused, for a reason that may pass; *code* is one of gRPC."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"etcd refuses: {message}")
        self.code = code
        self.message = message


class NoResponse(StoreUnavailable):
    """etcd gave no response in time, or none but refusals that pass."""


class TooLarge(EtcdError):
    """The result of a read has more bytes than a response may have."""


@attrs.define
class User:
    name: str
    password: Reloaded[str, str] = attrs.field(repr=False)
    token: str | None = attrs.field(default=None, repr=False)  # empty while etcd requires none

    @property
    def header(self) -> tuple[bytes, bytes] | None:
        return (b"Authorization", self.token.encode("utf-8")) if self.token else None


@attrs.define(eq=False)
class Cluster:
    """The cluster with the data, by its id in etcd, if it is known. Responses of others are failures."""

    id: str = ""

    def check(self, header: Mapping[str, Any], url: str) -> None:
        if self.id and header.get("cluster_id", self.id) != self.id:
            text = f"{url.partition('/v3/')[0]} belongs to another etcd cluster"
            logOnce(f"{text} and is not used: check --etcd, and the configuration of that member")
            raise ForeignMember(text)


class ForeignMember(ValueError):
    """A response came from a member of another cluster."""


@attrs.frozen(eq=False, repr=False)
class Etcd:
    """
    A cluster of etcd.

    Every method may fail with :class:`StoreUnavailable`, when the cluster has not answered for :data:`PATIENCE`
    seconds, and with :class:`EtcdError` when it refuses. A request may be sent twice. A try's time begins with its
    turn, so that what is asked by many at once is never taken for a member that hangs. Urgent requests are next.

    :param gate: called before anything is asked; raises :class:`StoreUnavailable` if nothing may be.
    :param onContact: called with when a request was sent that a majority of the members has answered.
    :param turns: for as many requests at once as there are connections.
    """

    _transport: JSONTransport
    _clock: IReactorTime
    _user: User | None = attrs.field(default=None, kw_only=True)
    _gate: Callable[[], None] = attrs.field(default=lambda: None, kw_only=True)
    _onContact: Callable[[float], None] = attrs.field(default=lambda sent: None, kw_only=True)
    statistics: StoreStatistics = attrs.field(factory=StoreStatistics, kw_only=True)
    cluster: Cluster = attrs.field(factory=Cluster, kw_only=True)
    _turns: PrioritySemaphore = attrs.field(factory=lambda: PrioritySemaphore(sys.maxsize), kw_only=True)
    _authenticating: SingleFlight[None, None] = attrs.field(factory=SingleFlight, init=False)

    @returnsDeferred
    async def txn(
        self,
        compare: Sequence[Clause],
        success: Sequence[Clause],
        failure: Sequence[Clause] = (),
        *,
        patience: float = PATIENCE,
        isUrgent: bool = False,
    ) -> Txn:
        """A transaction. *compare* makes sure that a change fails if it is sent twice."""
        body = {"compare": compare, "success": success, "failure": failure}
        isWrite = any("request_range" not in each for each in (*success, *failure))
        asked = self._clock.seconds()
        try:
            done: Txn = await self._ask(_TXN, body, Txn.of, patience, isUrgent)
        except StoreUnavailable as error:
            self._count(isWrite, asked, isinstance(error, EtcdError) and error.code in _OF_WHAT_WAS_ASKED)
            raise
        self._count(isWrite, asked, True)
        return done

    def _count(self, isWrite: bool, asked: float, works: bool) -> None:
        seconds = max(0.0, self._clock.seconds() - asked)
        if isWrite:
            self.statistics.writes.add(seconds)
            self.statistics.isWritable = works
        else:
            self.statistics.reads.add(seconds)
            self.statistics.isReadable = works

    @returnsDeferred
    async def range(
        self, key: str, end: str | None = None, limit: int = 0, *, revision: int = 0
    ) -> tuple[list[KeyValue], int]:
        """Fires with the keys in their order, and the revision."""
        done = await self.txn((), [reading(key, end, limit, revision)])
        return done.found[0], done.revision

    @returnsDeferred
    async def all(self, begin: str, end: str | None = None, *, revision: int = 0) -> list[KeyValue]:
        """All keys that begin with *begin*, or those up to *end*, as they were at a *revision* (0: now)."""
        pages = self.pages(begin, endOf(begin) if end is None else end, revision=revision)
        return [each async for found, _ in pages for each in found]

    async def pages(
        self, begin: str, end: str, size: int = PAGE, revision: int = 0
    ) -> AsyncIterator[tuple[list[KeyValue], int]]:
        """The same, up to *size* keys at a time, with the revision, which is the same for all."""
        while True:
            try:
                found, now = await self.range(begin, end, size, revision=revision)
            except (TooLarge, NoResponse):
                if size == 1:
                    raise
                # It came too late if etcd responds to less.
                await self.txn((), [reading(begin, end, 1, revision)], patience=0)
                size = max(1, size // _FEWER)
                continue
            revision = revision or now
            yield found, revision
            if len(found) < size:
                return
            begin = found[-1].key + "\0"

    @returnsDeferred
    async def get(self, key: str) -> KeyValue | None:
        found, _ = await self.range(key)
        return found[0] if found else None

    @returnsDeferred
    async def create(self, key: str, value: bytes) -> KeyValue:
        """Set a key, if it is not there; fires with what it is then."""
        done = await self.txn([unchanged(key, 0)], [put(key, value), reading(key)], [reading(key)])
        return next(kept for kept in done.found if kept)[0]

    @returnsDeferred
    async def grant(self, seconds: int) -> tuple[int, int]:
        """Create a lease; fires with its id, and the seconds that etcd granted, which may be more."""
        lease, granted = secrets.randbits(62) | 1, seconds
        try:
            granted = await self._ask("lease/grant", {"ID": str(lease), "TTL": str(seconds)}, _readTTL)
        except EtcdError as error:
            # Ids are random: an existing one is the first attempt's.
            if "already exists" not in str(error):
                raise
        return lease, max(seconds, granted)

    @returnsDeferred
    async def revoke(self, lease: int, *, patience: float = PATIENCE) -> None:
        """End a lease, if it is there, and the keys that go with it."""
        await self._askOnce(NOT_FOUND, "lease/revoke", {"ID": str(lease)}, patience=patience)

    @returnsDeferred
    async def keepAlive(self, lease: int) -> bool:
        """Let a lease begin anew; fires with whether it exists. It is tried once."""
        body = {"ID": str(lease)}
        left: int = await self._ask("lease/keepalive", body, lambda answer: _readTTL(answer["result"]), patience=0)
        return left > 0

    @returnsDeferred
    async def compact(self, revision: int) -> None:
        await self._askOnce(_OUT_OF_RANGE, "kv/compaction", {"revision": str(revision)})

    @property
    def members(self) -> int:
        return len(self._transport.servers)

    def leave(self) -> None:
        """Ask another member next."""
        self._transport.servers.failed(self._transport.servers.current)

    # -- inside

    async def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], Any] = lambda answer: answer,
        patience: float = PATIENCE,
        isUrgent: bool = False,
    ) -> Any:
        """The result of *read* for the response. It may raise the errors of reading unexpected JSON."""
        end = self._clock.seconds() + patience
        while True:
            self._gate()
            await self._turn(isUrgent)
            try:
                self._gate()
                return await self._authorized(path, body, read)
            except EtcdError as error:
                if error.code not in _PASSING:
                    raise
                reason = error.message
            except ServiceRegistryError as error:
                reason = str(error)
                if isinstance(error.__cause__, ResponseTooLarge):
                    raise TooLarge(_OUT_OF_RANGE, reason) from None
            finally:
                self._turns.give()
            if self._clock.seconds() + PAUSE >= end:
                raise NoResponse(f"etcd: {reason}")
            await deferLater(self._clock, PAUSE)

    async def _askOnce(self, code: int, path: str, body: Mapping[str, Any], patience: float = PATIENCE) -> None:
        """As :meth:`_ask`; a refusal with this *code* says that it was done before."""
        try:
            await self._ask(path, body, patience=patience)
        except EtcdError as error:
            if error.code != code:
                raise

    async def _turn(self, isUrgent: bool) -> None:
        turn = self._turns.take(0.0 if isUrgent else 1.0)
        if not turn.called:
            turn.addTimeout(QUEUE, self._clock)
        try:
            await turn
        except TimeoutError:
            raise StoreUnavailable("etcd is overloaded: requests waited too long") from None

    async def _authorized(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        """Send a request in the user's name, again if the token has ended."""
        user = self._user
        if user is None:
            return await self._send(path, body, read)
        for isLast in (False, True):
            if user.token is None:
                await self._authenticating.do(None, self._authenticate)
            token = user.token
            try:
                return await self._send(path, body, read, user.header)
            except EtcdError as error:
                isOld = error.code == _INVALID and any(each in error.message for each in _OLD_TOKEN)
                if isLast or not (isOld or error.code == _UNAUTHENTICATED):
                    raise
            if user.token == token:
                # Else another request has found out before, and it is another one by now.
                user.token = None
        raise AssertionError("unreachable")

    async def _send(
        self, path: str, body: Any, read: Callable[[Any], Any], header: tuple[bytes, bytes] | None = None
    ) -> Any:
        sent = self._clock.seconds()
        response = await self._transport.request("POST", f"/v3/{path}", body=body, repeatable=True, header=header)
        answer = response.json
        if response.status != 200:
            raise _refusal(response)
        try:
            self.cluster.check(answer.get("header", {}), response.url)
            result = read(answer)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            response.leave()
            reason = str(error) if isinstance(error, ForeignMember) else f"unexpected response to {path}"
            raise EtcdError(_UNAVAILABLE, reason) from None
        if path == _TXN:
            # Leases belong to their leader alone, which may not know yet that it is no longer the leader.
            self._onContact(sent)
        return result

    @returnsDeferred
    async def _authenticate(self) -> None:
        user = self._user
        assert user is not None
        refused = None
        while (password := user.password.current()) != refused:
            body = {"name": user.name, "password": password}
            response = await self._transport.request("POST", "/v3/auth/authenticate", body=body, repeatable=True)
            if response.status == 200:
                user.token = response.read(_readToken)
                return
            if (refusal := _refusal(response)).code in _PASSING or response.status >= 500:
                raise EtcdError(_UNAVAILABLE, f"it can't authenticate users now ({refusal.message})")
            if _OPEN in refusal.message:
                user.token = ""
                return
            refused = password
            user.password.suspect()
        raise StoreUnavailable(f"etcd refuses the user {user.name!r}: check the user name and the password")


def _refusal(response: Response) -> EtcdError:
    answer = response.json
    fault = answer[0] if isinstance(answer, list) and answer else answer
    fault = fault if isinstance(fault, dict) else {}
    code, message = fault.get("code"), fault.get("message") or fault.get("error")
    if code == _CANCELED:
        response.leave()  # this member is being stopped, and may listen for some seconds still
    return EtcdError(code if isinstance(code, int) else _UNAVAILABLE, str(message or f"HTTP {response.status}"))


def _readTTL(answer: Any) -> int:
    return int(answer.get("TTL", 0))


def _readToken(value: Any) -> str:
    token = value.get("token") if isinstance(value, dict) else None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise ValueError("it holds no token")
    return token


class _Lines(Protocol):
    """The lines of a body that never ends. *ended* fails when it ends all the same; cancelling it ends the body."""

    def __init__(self, onLine: Callable[[bytes], None]) -> None:
        self._onLine = onLine
        self._line = bytearray()
        self.ended: Deferred[None] = Deferred(lambda _: self._close())

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        # Twisted's receivers of lines copy the line with each part of it, which takes a minute for tens of megabytes.
        *lines, rest = data.split(b"\n")
        try:
            for line in lines:
                whole, self._line = bytes(self._line + line), bytearray()
                if whole.strip() and not self.ended.called:
                    self._onLine(whole)
            self._line += rest
            if len(self._line) > _LONGEST_LINE:
                raise ValueError("a line has no end")
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.connectionLost(Failure(error))
        self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.errback(reason)


@returnsDeferred
async def watch(
    agent: IAgent,
    user: User | None,
    url: str,
    prefix: str,
    revision: int,
    onChange: Callable[[KeyValue, bool], None],
    cluster: Cluster,
) -> None:
    """
    Watch the changes below a prefix from a revision on, in their order, until that fails or is cancelled. It may go
    deaf silently. *onChange* is called with each changed key, and whether it was deleted: then it has no value.
    """
    create = {"key": encode(prefix), "range_end": encode(endOf(prefix)), "start_revision": str(revision)}
    headers = Headers({b"Content-Type": [b"application/json"]})
    if user is not None and user.header is not None:
        headers.addRawHeader(*user.header)
    body = BytesProducer(jsonBytes({"create_request": create}))
    response: IResponse = await agent.request(b"POST", f"{url}/v3/watch".encode("ascii"), headers, body)

    def read(line: bytes) -> None:
        result = json.loads(line)["result"]
        cluster.check(result.get("header", {}), url)
        if result.get("canceled"):
            # The response stays open all the same.
            raise ValueError(result.get("cancel_reason") or f"canceled or compacted: {result}")
        for event in result.get("events", ()):
            if not lines.ended.called:
                onChange(KeyValue.of(event["kv"]), event.get("type") == "DELETE")

    lines = _Lines(read)
    response.deliverBody(lines)
    if response.code != 200:
        lines.fail(ValueError(f"it was refused with {response.code}"))
    await lines.ended
