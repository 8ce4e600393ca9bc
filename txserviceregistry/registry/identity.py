"""
Who may use the registry: users with their API keys, and the auth tokens that they get for them.

Of an API key only its scrypt hash is kept, of an auth token only its BLAKE2b hash: neither can be read out of the
store. Tokens are opaque random texts, so that they can be ended one by one, and live in the store, so that they
survive a restart and work on every node. What the store said of a user or a token is believed for a second: a key
that is rotated, or a token that is ended, by another process is refused within that second. While the store can't be
reached, those that were seen before go on to be accepted.

A wrong key costs whoever tries it an scrypt and, again and again with one name, a growing wait. A right one costs an
scrypt the first time; after that it is recognised in memory.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import attrs
from twisted.internet import threads
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ..deferred import returnsDeferred
from .remembered import Believed, Memory, Shared
from .stores.interfaces import IStore, NoSuchObject, TokenRecord, UserRecord

__all__ = [
    "Identity",
    "InvalidCredentials",
    "InvalidToken",
    "InvalidUser",
    "IssuedToken",
    "Overloaded",
    "hashKey",
    "keyMatches",
]

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
#: A user who asks for a token gets the same one again as long as this part of its life is left.
_YOUNG = 0.9
#: A name's failures are forgotten when so many seconds have passed without another one.
_FAILURES_FORGOTTEN = 60.0
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 3.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_TENANT = re.compile(r"[1-9][0-9]{0,9}")
_LARGEST_TENANT = 2**31 - 1


class InvalidCredentials(Exception):
    """No user has this name and this API key; which of the two is wrong is not told."""


class InvalidToken(Exception):
    """The auth token is unknown, ended or expired."""


class InvalidUser(ValueError):
    """A user's name, tenant or key breaks a rule; the text says which."""


class Overloaded(Exception):
    """Too many keys wait to be checked."""


@attrs.frozen
class IssuedToken:
    """
    An auth token, as its user gets it.

    :ivar id: the token itself.
    :ivar expires: when it ends at the latest, in whole seconds since the epoch.
    :ivar tenant: the tenant whose objects it opens.
    :ivar user: the name of the user whose it is.
    """

    id: str = attrs.field(repr=False)
    expires: float
    tenant: str
    user: str


class _Hasher(Protocol):
    def __call__(self, work: Callable[[], _T], /) -> Deferred[_T]: ...


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


def _tokenHash(token: str) -> str:
    # The token is random enough to need neither salt nor key, and every node has to find the same hash.
    return hashlib.blake2b(_encode(token), digest_size=32).hexdigest()


class Identity:
    """
    Users, API keys and auth tokens.

    A user who asks again for a token gets the same one, as long as more than nine tenths of its life are left and
    nobody has ended it: one old client authenticates before every request, and neither tokens nor writes may pile up.

    :param store: keeps users and tokens; it is open.
    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param wallClock: seconds since the epoch, for the end of tokens.
    :param tokenLifetime: how long a token counts, in seconds.
    :param hasher: runs a function of no arguments that takes long, away from the reactor's thread.
    :param cost: scrypt's *n* for keys that are hashed from now on: a power of two.
    :param randomBytes: a source of so many random bytes, good enough for secrets.
    """

    def __init__(
        self,
        store: IStore,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float] = time.time,
        tokenLifetime: float = 86_400.0,
        hasher: _Hasher = threads.deferToThread,
        cost: int = SCRYPT_COST,
        randomBytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wallClock = wallClock
        self._lifetime = tokenLifetime
        self._hasher = hasher
        self._cost = cost
        self._randomBytes = randomBytes
        self._users: Believed[UserRecord] = Believed(store.getUser, clock)
        self._tokens: Believed[TokenRecord] = Believed(store.getToken, clock)
        self._issued: Memory[str, IssuedToken] = Memory()
        self._issuing: Shared[str, IssuedToken] = Shared()
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

    # -- users

    def newKey(self) -> str:
        """
        A fresh API key: 160 random bits in hexadecimal, which every file format and shell leaves as it is.
        """
        return self._randomBytes(20).hex()

    @returnsDeferred
    async def addUser(self, name: str, tenant: str | None = None, key: str | None = None) -> tuple[UserRecord, str]:
        """
        Add a user.

        :param name: 1 to 64 letters, digits and ``_.@+-``, the first a letter or digit.
        :param tenant: the number of the tenant as a text, 1..2147483647; the first that is free if not given.
        :param key: the API key; a random one if not given.
        :return: fires with the user and the API key, which is kept nowhere.
        :raises InvalidUser: if the name, the tenant or the key can't be used.
        :raises ObjectExists: if there is a user of this name.
        """
        if not _NAME.fullmatch(name):
            raise InvalidUser(
                f"{name!r} can't be a user's name: it is 1 to 64 letters, digits and _.@+-, a letter or digit first"
            )
        if tenant is not None and not (_TENANT.fullmatch(tenant) and int(tenant) <= _LARGEST_TENANT):
            raise InvalidUser(f"{tenant!r} can't be a tenant: it is a number from 1 to {_LARGEST_TENANT}")
        if key is None:
            key = self.newKey()
        elif not key:
            raise InvalidUser("an API key can't be empty")
        user = await self._store.addUser(name, await self._hash(key), tenant)
        self._users.learn(name, user)
        return user, key

    @returnsDeferred
    async def ensureUser(self, name: str, key: str, tenant: str | None = None) -> UserRecord:
        """
        Add a user with this API key, unless there is a user of this name: that one is left as it is.

        :return: fires with the user.
        :raises InvalidUser: if the name, the tenant or the key can't be used.
        """
        try:
            return await self._store.getUser(name)
        except NoSuchObject:
            user, _ = await self.addUser(name, tenant, key)
            return user

    @returnsDeferred
    async def rotate(self, name: str) -> tuple[UserRecord, str]:
        """
        Give a user another API key. The old one, and the user's auth tokens, end.

        :return: fires with the user and the new key.
        :raises NoSuchObject: if there is no such user.
        """
        key = self.newKey()
        user = await self._store.replaceUserKey(name, await self._hash(key))
        self._forgetUser(name)
        self._users.learn(name, user)
        return user, key

    @returnsDeferred
    async def removeUser(self, name: str) -> None:
        """
        Remove a user. The user's auth tokens end; what belongs to the tenant stays.

        :raises NoSuchObject: if there is no such user.
        """
        await self._store.removeUser(name)
        self._forgetUser(name)

    def listUsers(self) -> Deferred[list[UserRecord]]:
        """
        :return: fires with all users by name.
        """
        return self._store.listUsers()

    # -- tokens

    @returnsDeferred
    async def authenticate(self, username: str, apiKey: str) -> IssuedToken:
        """
        Give a user an auth token.

        :return: fires with the token. It takes a while when the credentials are wrong, and longer with each time.
        :raises InvalidCredentials: if there is no such user or the key is wrong.
        :raises Overloaded: if too many keys wait to be checked already.
        :raises StoreUnavailable: if the store can't be asked.
        """
        user: UserRecord | None = None
        if _NAME.fullmatch(username):
            user = self._users.recent(username)
            if user is None:
                try:
                    user = await self._users.get(username)
                except NoSuchObject:
                    pass
        right = await self._check(username, apiKey, self._decoy if user is None else user.keyHash)
        if user is None or not right:
            await self._penalty(username)
            raise InvalidCredentials()
        return await self._issuing.do(user.name, lambda: self._tokenFor(user))

    def tenantOf(self, token: str) -> Deferred[str]:
        """
        Whose objects an auth token opens.

        :return: fires with the tenant; at once, if the token was asked for within the last second.
        :raises InvalidToken: if the token doesn't count, or no longer.
        :raises StoreUnavailable: if the store can't be asked and the token was not seen before.
        """
        tokenHash = _tokenHash(token)
        known = self._tokens.recent(tokenHash)
        if known is None:
            return self._tenantOf(tokenHash)
        if known.expires <= self._wallClock():
            return fail(InvalidToken())
        tenant: Deferred[str] = Deferred()
        tenant.callback(known.tenant)
        return tenant

    @returnsDeferred
    async def purge(self, token: str) -> None:
        """End an auth token; one that doesn't count is no error."""
        await self._end(_tokenHash(token))

    @returnsDeferred
    async def purgeAll(self) -> None:
        """
        End all auth tokens of all users. Not to be done while another process changes keys: one that is changed in the
        same moment may be changed back.
        """
        for user in await self._store.listUsers():
            # The store ends a user's tokens together with the key; this is the key that the user has.
            await self._store.replaceUserKey(user.name, user.keyHash)
            self._forgetUser(user.name)

    # -- inside

    def _hash(self, key: str) -> Deferred[str]:
        work = partial(hashKey, key, cost=self._cost, randomBytes=self._randomBytes)
        return self._turns.run(self._hasher, work)

    async def _check(self, username: str, apiKey: str, keyHash: str) -> bool:
        digest = self._digest(username, apiKey)
        if self._known.get(digest) == keyHash:
            return True
        # A fleet that comes back after a restart of the registry has one key to check, not a thousand.
        right = await self._checking.do((digest, keyHash), lambda: self._scrypt(apiKey, keyHash))
        if right and keyHash != self._decoy:
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

    @returnsDeferred
    async def _tokenFor(self, user: UserRecord) -> IssuedToken:
        issued = self._issued.get(user.name)
        if issued is not None and await self._isYoung(issued, user):
            return issued
        token = base64.urlsafe_b64encode(self._randomBytes(32)).rstrip(b"=").decode("ascii")
        expires = float(int(self._wallClock() + self._lifetime))
        issued = IssuedToken(id=token, expires=expires, tenant=user.tenant, user=user.name)
        record = TokenRecord(_tokenHash(token), user.name, user.tenant, expires)
        await self._store.addToken(record)
        if not await self._isAsStored(user):
            # Its key was changed after it was checked, and before there was a token to end with it.
            await self._store.removeToken(record.tokenHash)
            raise InvalidCredentials()
        self._tokens.learn(record.tokenHash, record)
        self._issued.put(user.name, issued)
        return issued

    async def _isAsStored(self, user: UserRecord) -> bool:
        try:
            return await self._store.getUser(user.name) == user
        except NoSuchObject:
            return False

    async def _isYoung(self, issued: IssuedToken, user: UserRecord) -> bool:
        left = issued.expires - self._wallClock()
        if issued.tenant != user.tenant or not _YOUNG * self._lifetime < left <= self._lifetime:
            return False
        try:
            # Asked of the store each time: who comes because the token was ended must not get it again.
            await self._tokens.get(_tokenHash(issued.id))
        except NoSuchObject:
            return False
        return True

    @returnsDeferred
    async def _tenantOf(self, tokenHash: str) -> str:
        try:
            record = await self._tokens.get(tokenHash)
        except NoSuchObject:
            raise InvalidToken()
        if record.expires <= self._wallClock():
            raise InvalidToken()
        return record.tenant

    async def _end(self, tokenHash: str) -> None:
        await self._store.removeToken(tokenHash)
        self._tokens.forget(tokenHash)

    def _forgetUser(self, name: str) -> None:
        self._users.forget(name)
        self._issued.drop(name)
        for tokenHash, record in self._tokens.items():
            if record.user == name:
                self._tokens.forget(tokenHash)
