"""
API keys: how they are stored, and how they are checked.

A valid key is checked with scrypt once in ten minutes. A key of an unknown user is not checked, but the response takes
as long. The response to each further wrong key for one name is delayed longer. Checks run one at a time, so that a
flood takes no more than one processor, in a fair order.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from ...util.deferred import BoundedCache, SingleFlight, Waiters, returnsDeferred
from ..fairness import FairQueue, Origin
from ..statistics import IdentityStatistics

#: scrypt's cost (its *n*): 16 MiB and some 50 ms a hash. Keys are random, 160 bits, so that this is enough.
SCRYPT_COST = 2**14
_SCRYPT_BLOCK, _SCRYPT_LANES = 8, 1

#: How many checks may wait for their turn.
_CHECKS_WAITING = 500
#: The durations of so many checks are remembered: a response without a check takes as long as one of these.
_DURATIONS = 32
#: A key that was found to be right is checked again after so many seconds.
KNOWN_SECONDS = 600.0
#: A name's failures are forgotten when so many seconds have passed without another one.
_FAILURES_FORGOTTEN = 60.0
#: The shortest and the longest delay of the response to a wrong key, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 3.0


#: Runs a slow function without arguments outside the reactor's thread.
Hasher: TypeAlias = Callable[[Callable[[], Any]], Deferred[Any]]


class Overloaded(Exception):
    """Too many keys wait to be checked."""


def newKey() -> str:
    """A new API key: 160 random bits in hexadecimal, which no file format or shell changes."""
    return secrets.token_hex(20)


def hashKey(key: str, *, cost: int = SCRYPT_COST) -> str:
    """The hash of an API key as it is stored: ``scrypt$<n>$<r>$<p>$<salt>$<hash>``. It takes long on purpose."""
    salt = secrets.token_bytes(16)
    digest = _scrypt(key, salt, cost, _SCRYPT_BLOCK, _SCRYPT_LANES)
    encoded = [base64.b64encode(part).decode("ascii") for part in (salt, digest)]
    return "$".join(["scrypt", str(cost), str(_SCRYPT_BLOCK), str(_SCRYPT_LANES), *encoded])


def keyMatches(key: str, keyHash: str) -> bool:
    """Whether *keyHash*, in the form that :func:`hashKey` writes, is of *key*. It takes long on purpose."""
    _, cost, block, lanes, salt, digest = keyHash.split("$")
    found = _scrypt(key, base64.b64decode(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(found, base64.b64decode(digest))


def _scrypt(key: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    # How much memory OpenSSL may take: 128 * n * r, and a little for itself.
    memory = 128 * block * (cost + lanes + 2) + 2**20
    return hashlib.scrypt(_encode(key), salt=salt, n=cost, r=block, p=lanes, maxmem=memory, dklen=32)


def _encode(text: str) -> bytes:
    # Clients may send lone surrogates.
    return text.encode("utf-8", "surrogatepass")


@attrs.frozen(eq=False)
class _Check:
    """A check that waits; if *isVain*, its result is known to be false, and only its duration matters."""

    work: Callable[[], object]
    isVain: bool
    done: Deferred[bool] = attrs.field(factory=Deferred)


@attrs.define(eq=False, repr=False, slots=False)
class KeyChecks:
    """Hashes API keys and checks them. See :class:`Identity` for the parameters."""

    _clock: IReactorTime
    _hasher: Hasher
    _cost: int
    _statistics: IdentityStatistics
    # Which stored hash a name and key matched, and when, by a digest that means nothing outside this process.
    _right: BoundedCache[bytes, tuple[str, float]] = attrs.field(init=False, factory=BoundedCache)
    # How many wrong keys there were for a name, and when the last one came.
    _failures: BoundedCache[bytes, tuple[int, float]] = attrs.field(init=False, factory=BoundedCache)
    _checking: SingleFlight[tuple[bytes, str | None], bool] = attrs.field(init=False, factory=SingleFlight)
    _queue: FairQueue[_Check] = attrs.field(init=False, factory=FairQueue)
    _isBusy: bool = attrs.field(init=False, default=False)
    _durations: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=_DURATIONS))
    _delays: Waiters[None] = attrs.field(init=False, factory=Waiters)
    _isStopped: bool = attrs.field(init=False, default=False)
    _digestKey: bytes = attrs.field(init=False, factory=partial(secrets.token_bytes, 32))

    def stop(self) -> None:
        self._isStopped = True
        self._delays.fire(None)

    def hash(self, key: str) -> Deferred[str]:
        return self._hasher(partial(hashKey, key, cost=self._cost))

    def knows(self, username: str, apiKey: str, keyHash: str) -> bool:
        """Whether a key was found to be right before, so that :meth:`check` takes no time."""
        known, checked = self._right.get(self._digest(username, apiKey), (None, 0.0))
        return known == keyHash and self._clock.seconds() - checked < KNOWN_SECONDS

    async def check(self, username: str, apiKey: str, keyHash: str | None, origin: Origin) -> bool:
        """
        Whether a key is right; *keyHash* is ``None`` if there is no such user. If it is wrong, the result is delayed,
        longer with each wrong key for the name. May raise :exc:`Overloaded`.
        """
        if keyHash is not None and self.knows(username, apiKey, keyHash):
            return True
        # A thousand clients that come back after a restart of the registry have one key to check.
        key = self._digest(username, apiKey), keyHash
        isRight = await self._checking.do(key, lambda: self._check(username, apiKey, keyHash, origin))
        if not isRight:
            await self._penalty(username)
        return isRight

    @returnsDeferred
    async def _check(self, username: str, apiKey: str, keyHash: str | None, origin: Origin) -> bool:
        """Check a key. How long this takes does not disclose why a key is wrong."""
        work = partial(keyMatches, apiKey, keyHash) if keyHash else partial(hashKey, apiKey, cost=self._cost)
        path = origin.isKnown, origin.peer, username, origin.connection
        isRight = await self._inTurn(path, _Check(work, isVain=keyHash is None))
        if keyHash is not None and isRight:
            self._right.put(self._digest(username, apiKey), (keyHash, self._clock.seconds()))
        return isRight

    def _digest(self, username: str, apiKey: str) -> bytes:
        name = _encode(username)
        digest = hashlib.blake2b(len(name).to_bytes(8, "big") + name, key=self._digestKey, digest_size=32)
        digest.update(_encode(apiKey))
        return digest.digest()

    def _inTurn(self, path: tuple[bool, str, str, int], check: _Check) -> Deferred[bool]:
        self._queue.add(path, check)
        if not self._isBusy:
            Deferred.fromCoroutine(self._workThrough())
            return check.done
        self._statistics.waited += 1
        if len(self._queue) > _CHECKS_WAITING:
            self._statistics.overloaded += 1
            self._queue.dropLast().done.errback(Overloaded())
        return check.done

    async def _workThrough(self) -> None:
        self._isBusy = True
        while self._queue:
            check = self._queue.pop()
            if check.isVain and self._durations:
                self._delay(secrets.choice(self._durations)).addCallback(lambda _: False).chainDeferred(check.done)
                continue
            began = self._clock.seconds()
            try:
                isRight = await self._hasher(check.work) is True
            except Exception:
                check.done.errback()
            else:
                self._durations.append(self._clock.seconds() - began)
                check.done.callback(isRight)
        self._isBusy = False

    async def _penalty(self, username: str) -> None:
        name = self._digest(username, "")
        now = self._clock.seconds()
        count, last = self._failures.get(name) or (0, now)
        count = count + 1 if now - last < _FAILURES_FORGOTTEN else 1
        self._failures.put(name, (count, now))
        if count > 1:
            await self._delay(min(_FIRST_WAIT * 2.0 ** min(count - 2, 10), _LONGEST_WAIT))

    def _delay(self, seconds: float) -> Deferred[None]:
        """Fires after some time, or when this is stopped."""
        if self._isStopped or not seconds:
            return succeed(None)
        return self._delays.wait().addTimeout(seconds, self._clock, lambda *_: None)
