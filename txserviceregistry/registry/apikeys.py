"""
API keys: how they are kept, and what checking one costs.

Of a key only its scrypt hash is kept. A wrong key costs whoever tries it an scrypt and, again and again with one name,
a growing wait. A right one costs an scrypt the first time; after that it is recognised in memory.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from .remembered import Memory, Shared

__all__ = ["SCRYPT_COST", "Hasher", "KeyChecks", "Overloaded", "hashKey", "keyMatches", "newKey"]

_T = TypeVar("_T")

#: scrypt's cost (its *n*): 16 MiB and some 50 ms a hash. Keys are random, 160 bits, so this need not be more.
SCRYPT_COST = 2**14
_SCRYPT_BLOCK = 8
_SCRYPT_LANES = 1
_SALT_BYTES = 16
_HASH_BYTES = 32

#: How many checks of a key run at the same time, and how many may wait for their turn.
_CHECKS_AT_ONCE = 2
_CHECKS_WAITING = 200
#: A name's failures are forgotten when so many seconds have passed without another one.
_FAILURES_FORGOTTEN = 60.0
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 3.0


class Overloaded(Exception):
    """Too many keys wait to be checked."""


class Hasher(Protocol):
    """Runs a function of no arguments that takes long, away from the reactor's thread."""

    def __call__(self, work: Callable[[], _T], /) -> Deferred[_T]: ...


def newKey(randomBytes: Callable[[int], bytes] = os.urandom) -> str:
    """
    A fresh API key: 160 random bits in hexadecimal, which every file format and shell leaves as it is.
    """
    return randomBytes(20).hex()


def hashKey(key: str, *, cost: int = SCRYPT_COST, randomBytes: Callable[[int], bytes] = os.urandom) -> str:
    """
    The hash of an API key as it is stored: ``scrypt$<n>$<r>$<p>$<salt>$<hash>``. It takes long on purpose.
    """
    salt = randomBytes(_SALT_BYTES)
    return _keyHash(cost, salt, _scrypt(key, salt, cost, _SCRYPT_BLOCK, _SCRYPT_LANES))


def keyMatches(key: str, keyHash: str) -> bool:
    """
    Whether *keyHash*, in the form that :func:`hashKey` writes, is of *key*. It takes long on purpose.
    """
    _, cost, block, lanes, salt, digest = keyHash.split("$")
    found = _scrypt(key, base64.b64decode(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(found, base64.b64decode(digest))


def _keyHash(cost: int, salt: bytes, digest: bytes) -> str:
    parts = ["scrypt", str(cost), str(_SCRYPT_BLOCK), str(_SCRYPT_LANES)]
    return "$".join(parts + [base64.b64encode(part).decode("ascii") for part in (salt, digest)])


def _scrypt(key: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    # OpenSSL wants to be told how much memory it may take: 128 * n * r, and a little for itself.
    memory = 128 * block * (cost + lanes + 2) + 2**20
    return hashlib.scrypt(_encode(key), salt=salt, n=cost, r=block, p=lanes, maxmem=memory, dklen=_HASH_BYTES)


def _encode(text: str) -> bytes:
    # What clients send may be anything that JSON can write, lone surrogates included.
    return text.encode("utf-8", "surrogatepass")


class KeyChecks:
    """
    Hashes API keys and checks them, a few at a time.

    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param hasher: where hashes are made.
    :param cost: scrypt's *n* for keys that are hashed from now on: a power of two.
    :param randomBytes: a source of so many random bytes, good enough for secrets.
    """

    def __init__(self, clock: IReactorTime, hasher: Hasher, cost: int, randomBytes: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._hasher = hasher
        self._cost = cost
        self._randomBytes = randomBytes
        # Which stored hash a name and key were found to match, by a digest that means nothing outside this process.
        self._digestKey = randomBytes(32)
        self._known: Memory[bytes, str] = Memory()
        self._checking: Shared[tuple[bytes, str], bool] = Shared()
        self._turns = DeferredSemaphore(_CHECKS_AT_ONCE)
        self._failures: Memory[bytes, tuple[int, float]] = Memory()
        self._penalties: set[Deferred[None]] = set()
        self._isStopped = False
        # What the keys of unknown users are checked against, so that they take as long as wrong ones.
        self._decoy = _keyHash(cost, randomBytes(_SALT_BYTES), randomBytes(_HASH_BYTES))

    def stop(self) -> None:
        """Let those go at once who wait for the answer that their key is wrong, and leave nothing on the reactor."""
        self._isStopped = True
        for penalty in list(self._penalties):
            penalty.cancel()

    def hash(self, key: str) -> Deferred[str]:
        """
        :return: fires with the hash of a key, for :meth:`check`.
        """
        return self._turns.run(self._hasher, partial(hashKey, key, cost=self._cost, randomBytes=self._randomBytes))

    def knows(self, username: str, apiKey: str, keyHash: str) -> bool:
        """Whether it has been found out before that a key is right, so that :meth:`check` takes no time."""
        return self._known.get(self._digest(username, apiKey)) == keyHash

    async def check(self, username: str, apiKey: str, keyHash: str | None) -> bool:
        """
        Whether a key is right. That it is not is told after a while, and after a longer one with each time.

        :param username: whose key it is said to be; any text.
        :param keyHash: the hash of the user's key; ``None`` if there is no such user, whose keys are all wrong.
        :raises Overloaded: if too many keys wait to be checked already.
        """
        right = await self._matches(self._digest(username, apiKey), apiKey, keyHash or self._decoy)
        if right and keyHash is not None:
            return True
        await self._penalty(username)
        return False

    async def _matches(self, digest: bytes, apiKey: str, keyHash: str) -> bool:
        if self._known.get(digest) == keyHash:
            return True
        # A fleet that comes back after a restart of the registry has one key to check, not a thousand.
        right = await self._checking.do((digest, keyHash), lambda: self._scrypt(apiKey, keyHash))
        if right:
            self._known.put(digest, keyHash)
        return right

    def _scrypt(self, apiKey: str, keyHash: str) -> Deferred[bool]:
        if len(self._checking) > _CHECKS_AT_ONCE + _CHECKS_WAITING:
            return fail(Overloaded())
        return self._turns.run(self._hasher, partial(keyMatches, apiKey, keyHash))

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
        if count == 1 or self._isStopped:
            return
        penalty: Deferred[None] = deferLater(self._clock, min(_FIRST_WAIT * 2.0 ** min(count - 2, 10), _LONGEST_WAIT))
        self._penalties.add(penalty)
        try:
            await penalty
        except CancelledError:
            pass
        finally:
            self._penalties.discard(penalty)
