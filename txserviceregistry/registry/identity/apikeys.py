"""
API keys: how they are stored, and how they are checked.

Only the scrypt hash of a key is stored. Each key of a user, valid or wrong, is checked with scrypt once, a valid one
again after ten minutes; in between it is recognised in memory. A key of an unknown user is not checked, but the
response takes as long. The response to each further wrong key for one name is delayed longer. Checks run one at a time
for each user name, in an order that is fair to addresses, names and connections
(:mod:`~txserviceregistry.registry.fairness`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ...util.concurrency import BoundedCache, SingleFlight
from ...util.deferred import returnsDeferred
from ..fairness import FairQueue, Origin
from ..statistics import IdentityStatistics

_T = TypeVar("_T")

#: scrypt's cost (its *n*): 16 MiB and some 50 ms a hash. Keys are random, 160 bits, so that this is enough.
SCRYPT_COST = 2**14
_SCRYPT_BLOCK = 8
_SCRYPT_LANES = 1
_SALT_BYTES = 16
_HASH_BYTES = 32

#: How many checks may wait for their turn.
_CHECKS_WAITING = 500
#: The durations of so many checks are remembered: a response without a check takes as long as one of these.
_DURATIONS = 32
#: A key that was found to be right is checked again after so many seconds.
KNOWN_SECONDS = 600.0
#: A name's failures are forgotten when so many seconds have passed without another one.
_FAILURES_FORGOTTEN = 60.0
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 3.0


class Overloaded(Exception):
    """Too many keys wait to be checked."""


class Hasher(Protocol):
    """Runs a slow function without arguments outside the reactor's thread."""

    def __call__(self, work: Callable[[], _T], /) -> Deferred[_T]: ...


def newKey(randomBytes: Callable[[int], bytes] = os.urandom) -> str:
    """A new API key: 160 random bits in hexadecimal, which no file format or shell changes."""
    return randomBytes(20).hex()


def hashKey(key: str, *, cost: int = SCRYPT_COST, randomBytes: Callable[[int], bytes] = os.urandom) -> str:
    """The hash of an API key as it is stored: ``scrypt$<n>$<r>$<p>$<salt>$<hash>``. It takes long on purpose."""
    salt = randomBytes(_SALT_BYTES)
    return _keyHash(cost, salt, _scrypt(key, salt, cost, _SCRYPT_BLOCK, _SCRYPT_LANES))


def keyMatches(key: str, keyHash: str) -> bool:
    """Whether *keyHash*, in the form that :func:`hashKey` writes, is of *key*. It takes long on purpose."""
    _, cost, block, lanes, salt, digest = keyHash.split("$")
    found = _scrypt(key, base64.b64decode(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(found, base64.b64decode(digest))


def _keyHash(cost: int, salt: bytes, digest: bytes) -> str:
    parts = ["scrypt", str(cost), str(_SCRYPT_BLOCK), str(_SCRYPT_LANES)]
    return "$".join(parts + [base64.b64encode(part).decode("ascii") for part in (salt, digest)])


def _scrypt(key: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    # How much memory OpenSSL may take: 128 * n * r, and a little for itself.
    memory = 128 * block * (cost + lanes + 2) + 2**20
    return hashlib.scrypt(_encode(key), salt=salt, n=cost, r=block, p=lanes, maxmem=memory, dklen=_HASH_BYTES)


def _encode(text: str) -> bytes:
    # Clients may send lone surrogates.
    return text.encode("utf-8", "surrogatepass")


@attrs.define(eq=False)
class _Check(Generic[_T]):
    """A check that waits; see :meth:`_Lanes.run`."""

    name: str
    origin: Origin
    work: Callable[[], _T]
    isVain: bool
    hasBegun: bool = False
    done: Deferred[_T | None] = attrs.field(factory=Deferred)


class _Delays:
    """Delays of responses, which end early when they are stopped or cancelled."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._pending: set[Deferred[None]] = set()
        self._isStopped = False

    def wait(self, seconds: float) -> Deferred[None]:
        if not seconds or self._isStopped:
            return succeed(None)
        delay: Deferred[None] = deferLater(self._clock, seconds)
        self._pending.add(delay)
        return delay.addBoth(lambda _: self._pending.discard(delay))

    def stop(self) -> None:
        self._isStopped = True
        for delay in list(self._pending):
            delay.cancel()


@attrs.define(eq=False)
class _Lanes:
    """
    Runs checks in two lanes. One is for all addresses, unknown ones first; the other is for known addresses only. So a
    flood takes no more than one processor, and leaves a lane to clients at addresses that have authenticated before.

    :param delays: for responses without a check.
    """

    _clock: IReactorTime
    _hasher: Hasher
    _randomBytes: Callable[[int], bytes]
    _delays: _Delays
    _statistics: IdentityStatistics
    # The waiting checks, by whether their addresses are known, and the names of the running ones.
    _queues: dict[bool, FairQueue[_Check[Any]]] = attrs.field(init=False)
    _running: set[str] = attrs.field(init=False, factory=set)
    _isFree: dict[bool, bool] = attrs.field(init=False, factory=lambda: {False: True, True: True})
    _took: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=_DURATIONS))
    _isServing: bool = attrs.field(init=False, default=False)

    @_queues.default
    def _emptyQueues(self) -> dict[bool, FairQueue[_Check[Any]]]:
        return {False: FairQueue(), True: FairQueue()}

    def run(self, name: str, origin: Origin, work: Callable[[], _T], isVain: bool) -> Deferred[_T | None]:
        """
        :param name: the user name; checks of one name run one after the other.
        :param work: is run by the hasher.
        :param isVain: whether to wait for the duration of a check instead, once a duration is known.
        :return: fires with the result of *work*, or with ``None`` if it was not run; fails with :exc:`Overloaded` if
            too many checks wait and this is the one that would be served last.
        """
        check: _Check[_T] = _Check(name, origin, work, isVain)
        self._queues[origin.isKnown].add((origin.peer, name, origin.connection), check)
        self._serve()
        if not check.hasBegun:
            self._statistics.waited += 1
        if sum(map(len, self._queues.values())) > _CHECKS_WAITING:
            last = self._queues[False].dropLast() or self._queues[True].dropLast()
            assert last is not None
            self._statistics.overloaded += 1
            last[1].done.errback(Overloaded())
        return check.done

    def _mayGo(self, path: Sequence[Hashable]) -> bool:
        return len(path) != 2 or path[1] not in self._running

    def _serve(self) -> None:
        # A check that ends at once calls this again. A loop, because hundreds of such checks would overflow the stack.
        if self._isServing:
            return
        self._isServing = True
        try:
            while (found := self._next()) is not None:
                self._begin(*found)
        finally:
            self._isServing = False

    def _next(self) -> tuple[bool, _Check[Any]] | None:
        """The lane and the check that are next."""
        for lane, isKnown in ((False, False), (False, True), (True, True)):
            found = self._queues[isKnown].pop(self._mayGo) if self._isFree[lane] else None
            if found is not None:
                path, check = found
                self._queues[isKnown].charge(path, 1)
                return lane, check
        return None

    def _begin(self, lane: bool, check: _Check[Any]) -> None:
        check.hasBegun = True
        self._running.add(check.name)
        began = self._clock.seconds()
        isRun = not (check.isVain and self._took)
        if isRun:
            self._isFree[lane] = False
            work = self._hasher(check.work)
        else:
            work = self._delays.wait(self._took[self._randomBytes(1)[0] % len(self._took)])

        def ended(outcome: Any) -> None:
            if isRun:
                self._took.append(self._clock.seconds() - began)
                self._isFree[lane] = True
            self._running.discard(check.name)
            check.done.callback(outcome)
            self._serve()

        work.addBoth(ended)


@attrs.define(eq=False, repr=False, slots=False)
class KeyChecks:
    """Hashes API keys and checks them, a few at a time. See :class:`Identity` for the parameters."""

    _clock: IReactorTime
    _hasher: Hasher
    _cost: int
    _randomBytes: Callable[[int], bytes]
    _statistics: IdentityStatistics
    # Which stored hash a name and key were found to match, and when, and which not to match, by a digest that means
    # nothing outside this process. In two tables, so that no number of wrong keys drives a right one out.
    _known: BoundedCache[bytes, tuple[str, float]] = attrs.field(init=False, factory=BoundedCache)
    _wrong: BoundedCache[bytes, str] = attrs.field(init=False, factory=BoundedCache)
    _checking: SingleFlight[tuple[bytes, str], bool] = attrs.field(init=False, factory=SingleFlight)
    _failures: BoundedCache[bytes, tuple[int, float]] = attrs.field(init=False, factory=BoundedCache)

    def __attrs_post_init__(self) -> None:
        self._digestKey = self._randomBytes(32)
        self._delays = _Delays(self._clock)
        self._lanes = _Lanes(self._clock, self._hasher, self._randomBytes, self._delays, self._statistics)
        # The key of an unknown user is checked against this until the duration of a check is known.
        self._decoy = _keyHash(self._cost, self._randomBytes(_SALT_BYTES), self._randomBytes(_HASH_BYTES))

    def stop(self) -> None:
        """End the delays of responses to wrong keys, and leave nothing on the reactor."""
        self._delays.stop()

    def hash(self, key: str) -> Deferred[str]:
        """:return: fires with the hash of a key, for :meth:`check`."""
        return self._hasher(partial(hashKey, key, cost=self._cost, randomBytes=self._randomBytes))

    def knows(self, username: str, apiKey: str, keyHash: str) -> bool:
        """Whether a key was found to be right before, so that :meth:`check` takes no time."""
        return self._isKnown(self._digest(username, apiKey), keyHash)

    def _isKnown(self, digest: bytes, keyHash: str | None) -> bool:
        known, checked = self._known.get(digest, (None, 0.0))
        return known is not None and known == keyHash and self._clock.seconds() - checked < KNOWN_SECONDS

    async def check(self, username: str, apiKey: str, keyHash: str | None, origin: Origin) -> bool:
        """
        Whether a key is right. If it is wrong, the result is delayed, longer with each wrong key for the name.

        :param username: the claimed owner of the key; any text.
        :param keyHash: the hash of the user's key; ``None`` if there is no such user, whose keys are all wrong.
        :param origin: the origin of the request.
        :raises Overloaded: if too many keys wait to be checked already.
        """
        digest = self._digest(username, apiKey)
        if self._isKnown(digest, keyHash):
            return True
        # A thousand clients that come back after a restart of the registry have one key to check.
        key = digest, keyHash or self._decoy
        if await self._checking.do(key, lambda: self._check(username, apiKey, keyHash, digest, origin)):
            return True
        await self._penalty(username)
        return False

    @returnsDeferred
    async def _check(self, username: str, apiKey: str, keyHash: str | None, digest: bytes, origin: Origin) -> bool:
        """Check a key. How long this takes does not disclose why a key is wrong."""
        isWrong = keyHash is None or self._wrong.get(digest) == keyHash
        work = partial(keyMatches, apiKey, keyHash or self._decoy)
        right = bool(await self._lanes.run(username, origin, work, isWrong)) and not isWrong
        if keyHash is not None and right:
            self._known.put(digest, (keyHash, self._clock.seconds()))
        elif keyHash is not None:
            self._wrong.put(digest, keyHash)
        return right

    def _digest(self, username: str, apiKey: str) -> bytes:
        name = _encode(username)
        digest = hashlib.blake2b(len(name).to_bytes(8, "big") + name, key=self._digestKey, digest_size=32)
        digest.update(_encode(apiKey))
        return digest.digest()

    async def _penalty(self, username: str) -> None:
        name = self._digest(username, "")
        now = self._clock.seconds()
        count, last = self._failures.get(name) or (0, now)
        count = count + 1 if now - last < _FAILURES_FORGOTTEN else 1
        self._failures.put(name, (count, now))
        if count > 1:
            await self._delays.wait(min(_FIRST_WAIT * 2.0 ** min(count - 2, 10), _LONGEST_WAIT))
