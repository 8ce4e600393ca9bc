"""
etcd as a JSON API over HTTP, through its own v3 gateway (API reference of 3.4 and 3.5, ``rpc.proto``, ``kv.proto``).

Keys and values are text and bytes here, and a leader's failure or a dropped connection costs a second try that callers
do not notice.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import attrs
from twisted.internet.defer import TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ....errors import ServiceRegistryError
from ....http.bodies import ResponseTooLarge
from ....http.jsontransport import JSONTransport
from ....util.concurrency import PrioritySemaphore, SingleFlight
from ....util.deferred import returnsDeferred
from ....util.files import Reloaded
from ...statistics import StoreStatistics
from ..interfaces import StoreUnavailable

#: Seconds that each member has for a response: a leader's failure leaves requests hanging.
TRY = 1.0
#: Seconds that a request may take with all its tries, and those between two of them; clients wait for ten.
PATIENCE = 4.0
PAUSE = 0.1
#: Seconds that a request waits for its turn: what comes later is of no use to clients, and would keep others waiting.
QUEUE = 8.0
#: Keys in one read, and by how much fewer are read after a response that was too large.
PAGE = 1000
_FEWER = 8

# The codes of gRPC that mean "again, perhaps elsewhere": DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE. UNKNOWN is
# what a change of the leader looks like from a follower.
_UNAVAILABLE = 14
_PASSING = frozenset({2, 4, 8, _UNAVAILABLE})
# NOT_FOUND, FAILED_PRECONDITION, OUT_OF_RANGE: etcd is well, and can't do what was asked.
_OF_WHAT_WAS_ASKED = frozenset({5, 9, 11})
_UNAUTHENTICATED = 16
# INVALID_ARGUMENT, with which etcd answers a token from before a change of its users.
_INVALID = 3
_OLD_TOKEN = "revision of auth store is old"
_TXN = "kv/txn"


class Urgency(Enum):
    """Which request has the next turn."""

    #: Heartbeats, on which registrations depend; and what a node reads before it notices them again.
    vital = 0
    #: Requests that others wait for; there are few at a time.
    pressing = 1
    ordinary = 2
    #: Requests that may be left undone.
    idle = 3


def newLease() -> int:
    return secrets.randbits(62) | 1


class EtcdError(StoreUnavailable):
    """
    etcd refused, for a reason that may pass.

    :ivar code: a code of gRPC: 5 for what is not there, 9 for what can't be done as things are, 11 for a revision that
        has been compacted.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"etcd refuses: {message}")
        self.code = code
        self.message = message


class TooLarge(StoreUnavailable):
    """The result of a read has more bytes than a response may have."""


@attrs.frozen
class KeyValue:
    """A key with its value, the revisions that created it and changed it last, and its lease (0: none)."""

    key: str
    value: bytes
    created: int
    modified: int
    lease: int


class Revision(Enum):
    """Which of a key's revisions a condition is about."""

    modified = "MOD", "mod_revision"
    created = "CREATE", "create_revision"


@attrs.frozen
class Txn:
    """
    The outcome of a transaction: whether its conditions held, etcd's revision then, and the result of each read.
    """

    succeeded: bool
    revision: int
    found: Sequence[list[KeyValue]]


def encode(text: str | bytes) -> str:
    """A key or a value as it travels."""
    # A user may have any name, half of a surrogate pair included.
    return b64encode(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).decode("ascii")


def jsonBytes(value: object) -> bytes:
    """JSON without spaces, as values are kept."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def unchanged(key: str, revision: int, target: Revision = Revision.modified, end: str | None = None) -> dict[str, Any]:
    """
    A condition of a transaction: the key has this *revision* (0: it does not exist), and so has every key up to *end*,
    if that is given.
    """
    name, field = target.value
    # etcd parses JSON slowly, so fields with their default values are left out, such as the result EQUAL.
    condition = {"key": encode(key), "target": name, **({field: str(revision)} if revision else {})}
    return condition if end is None else {**condition, "range_end": encode(end)}


def endOf(prefix: str) -> str:
    """The end of the range of all keys that begin with *prefix*."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def after(found: KeyValue) -> str:
    """The first key that may follow this one."""
    return found.key + "\0"


def put(key: str, value: bytes, lease: int = 0) -> dict[str, Any]:
    """An operation of a transaction: set a key."""
    kept = {"key": encode(key), "value": encode(value)}
    return {"request_put": {**kept, "lease": str(lease)} if lease else kept}


def putGreater(key: str, value: bytes) -> dict[str, Any]:
    """An operation of a transaction: set a key, unless its value is greater, which is written again then."""
    isGreater = {"key": encode(key), "target": "VALUE", "result": "GREATER", "value": encode(value)}
    again = {"request_put": {"key": encode(key), "ignore_value": True}}
    return {"request_txn": {"compare": [isGreater], "success": [again], "failure": [put(key, value)]}}


def deletion(key: str, end: str | None = None) -> dict[str, Any]:
    """An operation of a transaction: delete a key, or all from it up to *end*."""
    bounds = {"key": encode(key)} if end is None else {"key": encode(key), "range_end": encode(end)}
    return {"request_delete_range": bounds}


def reading(key: str, end: str | None = None, limit: int = 0, revision: int = 0) -> dict[str, Any]:
    """
    An operation of a transaction: read a key, or up to *limit* of those from it up to *end* (0: all), as they were at a
    *revision* (0: now).
    """
    query = {"key": encode(key)}
    if end is not None:
        query["range_end"] = encode(end)
    if limit:
        query["limit"] = str(limit)
    if revision:
        query["revision"] = str(revision)
    return {"request_range": query}


def keyValue(found: Mapping[str, Any]) -> KeyValue:
    """A key as etcd writes it, without fields that are zero or empty."""
    return KeyValue(
        b64decode(found["key"]).decode("utf-8", "surrogatepass"),
        b64decode(found.get("value", "")),
        int(found.get("create_revision", 0)),
        int(found.get("mod_revision", 0)),
        int(found.get("lease", 0)),
    )


@attrs.define
class User:
    """
    A user of etcd's. The password may be a file, which is read again when it has changed; *token* is what etcd has
    given for name and password.
    """

    name: str
    _password: str | Reloaded[str, str] = attrs.field(repr=False)
    token: str | None = attrs.field(default=None, repr=False)

    def passwords(self) -> Iterator[str]:
        """The password, and after it was refused the one that has taken its place, if there is one."""
        if isinstance(self._password, str):
            yield self._password
            return
        yield (refused := self._password.current())
        self._password.suspect()
        if self._password.current() != refused:
            yield self._password.current()

    @property
    def header(self) -> tuple[bytes, bytes] | None:
        """The name and value of the authorization header; ``None`` until etcd has issued a token."""
        return None if self.token is None else (b"Authorization", self.token.encode("utf-8"))


@attrs.frozen(eq=False)
class Etcd:
    """
    A cluster of etcd.

    Every method may fail with :class:`StoreUnavailable`, when the cluster has given no answer for :data:`PATIENCE`
    seconds, and with :class:`EtcdError` when it refuses. A request may be sent twice; each method says why that
    does no harm.

    :param transport: JSON over HTTP to the members.
    :param user: in whose name requests are sent; ``None`` where etcd asks for no user.
    :param gate: is called before anything is asked; raises :class:`StoreUnavailable` if nothing may be.
    :param onContact: is called with the time (the clock's) at which a request was sent that has been answered by a
        majority of the members.
    :param turns: for as many requests at once as there are connections; ``None`` for no such bound. A try's time begins
        with its turn, so that what is asked by many at once is never taken for a member that hangs.
    :ivar statistics: counts the transactions: those that change something as writes, the others as reads.
    """

    _transport: JSONTransport
    _clock: IReactorTime
    _user: User | None = attrs.field(default=None, kw_only=True)
    _gate: Callable[[], None] = attrs.field(default=lambda: None, kw_only=True)
    _onContact: Callable[[float], None] = attrs.field(default=lambda sent: None, kw_only=True)
    statistics: StoreStatistics = attrs.field(factory=StoreStatistics, kw_only=True)
    _turns: PrioritySemaphore | None = attrs.field(default=None, kw_only=True)
    _authenticating: SingleFlight[None, None] = attrs.field(factory=SingleFlight, init=False)

    @returnsDeferred
    async def txn(
        self,
        compare: Sequence[Mapping[str, Any]],
        success: Sequence[Mapping[str, Any]],
        failure: Sequence[Mapping[str, Any]] = (),
        *,
        patience: float = PATIENCE,
        urgency: Urgency = Urgency.ordinary,
    ) -> Txn:
        """
        A transaction. It may be done twice: a change makes sure, with *compare*, that the second time fails, and takes
        a failure for what it may be: the first time's success.
        """
        body = {"compare": compare, "success": success, "failure": failure}
        isWrite = any("request_range" not in each for each in (*success, *failure))
        asked = self._clock.seconds()
        try:
            done: Txn = await self._ask(_TXN, body, _readTxn, patience, urgency)
        except StoreUnavailable as error:
            isRefused = isinstance(error, EtcdError) and error.code in _OF_WHAT_WAS_ASKED
            self._count(isWrite, asked, isRefused or isinstance(error, TooLarge))
            raise
        self._count(isWrite, asked, True)
        return done

    @returnsDeferred
    async def range(
        self,
        key: str,
        end: str | None = None,
        limit: int = 0,
        *,
        revision: int = 0,
        urgency: Urgency = Urgency.ordinary,
    ) -> tuple[list[KeyValue], int]:
        """See :func:`reading`. Fires with the keys in their order and the revision at which they were so."""
        done = await self.txn((), [reading(key, end, limit, revision)], urgency=urgency)
        return done.found[0], done.revision

    @returnsDeferred
    async def all(
        self, begin: str, end: str | None = None, *, revision: int = 0, urgency: Urgency = Urgency.ordinary
    ) -> list[KeyValue]:
        """All keys that begin with *begin* (or up to *end*), as they were at *revision* (0: each page now)."""
        pages = self.pages(begin, endOf(begin) if end is None else end, revision=revision, urgency=urgency)
        return [each async for found in pages for each in found]

    async def pages(
        self, begin: str, end: str, *, revision: int = 0, urgency: Urgency = Urgency.ordinary
    ) -> AsyncIterator[list[KeyValue]]:
        """The same, up to :data:`PAGE` keys at a time."""
        size = PAGE
        while True:
            try:
                found, _ = await self.range(begin, end, size, revision=revision, urgency=urgency)
            except TooLarge:
                if size == 1:
                    raise
                size = max(1, size // _FEWER)
                continue
            yield found
            if len(found) < size:
                return
            begin = after(found[-1])

    @returnsDeferred
    async def get(self, key: str) -> KeyValue | None:
        """One key; ``None`` if it is not there."""
        found, _ = await self.range(key)
        return found[0] if found else None

    @returnsDeferred
    async def grant(self, lease: int, seconds: int) -> int:
        """
        Create a lease; fires with the seconds that etcd granted, which may be more. An existing one with this id causes
        no error: ids are random, and it is the first attempt's.
        """
        try:
            granted: int = await self._ask("lease/grant", {"ID": str(lease), "TTL": str(seconds)}, _readTTL)
        except EtcdError as error:
            if "already exists" not in str(error):
                raise
            return seconds
        return max(seconds, granted)

    @returnsDeferred
    async def revoke(self, lease: int, *, patience: float = PATIENCE) -> None:
        """End a lease, and the keys that go with it. One that is not there is no error."""
        try:
            # One that is not revoked runs out.
            await self._ask("lease/revoke", {"ID": str(lease)}, patience=patience, urgency=Urgency.idle)
        except EtcdError as error:
            if error.code != 5:
                raise

    @returnsDeferred
    async def keepAlive(self, lease: int) -> bool:
        """Let a lease begin anew; fires with whether it exists."""
        left: int = await self._ask(
            "lease/keepalive", {"ID": str(lease)}, lambda answer: _readTTL(answer["result"]), patience=0
        )
        return left > 0

    @returnsDeferred
    async def compact(self, revision: int) -> None:
        """Forget how things were before *revision*. Doing it twice causes no error."""
        try:
            await self._ask("kv/compaction", {"revision": str(revision)})
        except EtcdError as error:
            if error.code != 11:
                raise

    # -- inside

    def _count(self, isWrite: bool, asked: float, works: bool) -> None:
        seconds = max(0.0, self._clock.seconds() - asked)
        if isWrite:
            self.statistics.writes.add(seconds)
            self.statistics.isWritable = works
        else:
            self.statistics.reads.add(seconds)
            self.statistics.isReadable = works

    async def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], Any] = lambda answer: answer,
        patience: float = PATIENCE,
        urgency: Urgency = Urgency.ordinary,
    ) -> Any:
        """The result of *read* for the response. It may raise the errors of reading unexpected JSON."""
        end = self._clock.seconds() + patience
        while True:
            self._gate()
            try:
                return await self._inTurn(path, body, read, urgency)
            except EtcdError as error:
                if error.code not in _PASSING:
                    raise
                reason = error.message
            except ServiceRegistryError as error:
                reason = str(error)
                if isinstance(error.__cause__, ResponseTooLarge):
                    raise TooLarge(f"etcd: {reason}") from None
            if self._clock.seconds() + PAUSE >= end:
                raise StoreUnavailable(f"etcd: {reason}")
            await deferLater(self._clock, PAUSE)

    async def _inTurn(self, path: str, body: Any, read: Callable[[Any], Any], urgency: Urgency) -> Any:
        if self._turns is None:
            return await self._askOnce(path, body, read)
        turn = self._turns.take(urgency.value)
        if not turn.called:
            turn.addTimeout(QUEUE, self._clock)
        try:
            await turn
        except TimeoutError:
            raise StoreUnavailable("etcd is overloaded: requests waited too long") from None
        try:
            self._gate()
            return await self._askOnce(path, body, read)
        finally:
            self._turns.give()

    async def _askOnce(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        for isSecond in (False, True):
            if self._user is not None and self._user.token is None:
                await self._authenticating.do(None, self._authenticate)
            token, header = (None, None) if self._user is None else (self._user.token, self._user.header)
            sent = self._clock.seconds()
            response = await self._transport.request("POST", f"/v3/{path}", body=body, repeatable=True, header=header)
            answer = response.json
            if response.status == 200:
                try:
                    result = read(answer)
                except (ValueError, TypeError, LookupError, AttributeError):
                    response.leave()
                    raise EtcdError(_UNAVAILABLE, f"unexpected response to {path}") from None
                if path == _TXN:
                    # Leases belong to their leader alone, which may not know yet that it is no longer the leader.
                    self._onContact(sent)
                return result
            fault = answer[0] if isinstance(answer, list) and answer else answer
            fault = fault if isinstance(fault, dict) else {}
            code = fault.get("code")
            error = EtcdError(
                code if isinstance(code, int) else _UNAVAILABLE,
                str(fault.get("message") or fault.get("error") or f"HTTP {response.status}"),
            )
            isOld = error.code == _INVALID and _OLD_TOKEN in error.message
            if not (isOld or error.code == _UNAUTHENTICATED) or self._user is None or isSecond:
                raise error
            if self._user.token == token:
                # Else another request has found out before, and it is another one by now.
                self._user.token = None
        raise AssertionError("unreachable")

    @returnsDeferred
    async def _authenticate(self) -> None:
        user = self._user
        assert user is not None
        for password in user.passwords():
            body = {"name": user.name, "password": password}
            response = await self._transport.request("POST", "/v3/auth/authenticate", body=body, repeatable=True)
            if response.status >= 500:
                raise EtcdError(_UNAVAILABLE, f"it can't authenticate users now ({response.status})")
            if response.status == 200:
                user.token = response.read(_readToken)
                return
        raise StoreUnavailable(f"etcd refuses the user {user.name!r}: check the user name and the password")


def _readTxn(answer: Any) -> Txn:
    reads = (response.get("response_range", {}) for response in answer.get("responses", ()))
    found = [[keyValue(each) for each in read.get("kvs", ())] for read in reads]
    return Txn(bool(answer.get("succeeded")), int(answer["header"]["revision"]), found)


def _readTTL(answer: Any) -> int:
    return int(answer.get("TTL", 0))


def _readToken(value: Any) -> str:
    token = value.get("token") if isinstance(value, dict) else None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise ValueError("it holds no token")
    return token
