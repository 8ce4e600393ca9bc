"""
Users, API keys and auth tokens.

The store holds the scrypt hash of an API key and the BLAKE2b hash of an auth token. Results of the store are cached for
a second: a key or a token that another process has replaced or ended is refused within that second, and a new role
counts. While the store is unavailable, those that were seen before are accepted.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import attrs
from twisted.internet import threads
from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime

from ...util.deferred import BoundedCache, SingleFlight, returnsDeferred
from ..fairness import Origin
from ..roles import WRITE, Role
from ..statistics import IdentityStatistics
from ..stores.interfaces import IStore, NoSuchObject, StoreUnavailable, TokenRecord, UserRecord
from .apikeys import SCRYPT_COST, Hasher, KeyChecks, newKey

_T = TypeVar("_T")

#: How long a result of the store is used without asking again, in seconds.
MAX_AGE = 1.0
#: When the store does not answer within so many seconds, its last result is used: a disk that hangs must not cost a
#: service with a heartbeat timeout of three seconds its registration.
PATIENCE = 0.1
#: A user who authenticates again gets the same token as long as this part of its lifetime is left.
_YOUNG = 0.9

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
#: The pattern of a tenant's number.
TENANT = "[1-9][0-9]{0,9}"
_LARGEST_TENANT = 2**31 - 1


class InvalidCredentials(Exception):
    """No user has this name and this API key; which of the two is wrong is not disclosed."""


class InvalidToken(Exception):
    """The auth token is unknown, ended or expired."""


class InvalidUser(ValueError):
    """A user's name, tenant or key breaks a rule; the text says which."""


@attrs.frozen
class IssuedToken:
    """An auth token (*id*), as its user gets it. It ends in whole seconds since the epoch, at the latest."""

    id: str = attrs.field(repr=False)
    expires: float
    tenant: str
    user: str


def _tokenHash(token: str) -> str:
    # The token is random enough to need neither salt nor key, and every node has to find the same hash.
    return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()


def isTenant(text: str) -> bool:
    return re.fullmatch(TENANT, text, re.ASCII) is not None and int(text) <= _LARGEST_TENANT


def checkUser(name: str, tenant: str | None) -> None:
    """Check the name of a new user and the tenant, ``None`` for any; raises :class:`InvalidUser`."""
    if not _NAME.fullmatch(name):
        raise InvalidUser(
            f"invalid user name {name!r}: use 1 to 64 letters, digits and _.@+-, the first a letter or digit"
        )
    if tenant is not None and not isTenant(tenant):
        raise InvalidUser(f"invalid tenant {tenant!r}: use a number from 1 to {_LARGEST_TENANT}")


async def _found(result: Awaitable[_T]) -> _T | None:
    try:
        return await result
    except NoSuchObject:
        return None


@attrs.define(eq=False, repr=False)
class StoreCache(Generic[_T]):
    """Results of the store, by key."""

    _read: Callable[[str], Deferred[_T]]
    _clock: IReactorTime
    # With the time at which the store was asked.
    results: BoundedCache[str, tuple[_T, float]] = attrs.field(init=False, factory=BoundedCache)
    _reading: SingleFlight[str, _T] = attrs.field(init=False, factory=SingleFlight)

    def recent(self, key: str) -> _T | None:
        """A result of the store that is at most a second old, without asking it."""
        result = self.results.get(key)
        return result[0] if result is not None and 0 <= self._clock.seconds() - result[1] < MAX_AGE else None

    def last(self, key: str) -> _T | None:
        """The last result of the store, however old, without asking it."""
        result = self.results.get(key)
        return None if result is None else result[0]

    async def get(self, key: str) -> _T:
        """The result of the store now; while it fails or takes long, the last one. It fails as the store does."""
        last = self.last(key)
        reading = self._reading.do(key, lambda: self._ask(key))
        if last is None:
            return await reading
        try:
            return await reading.addTimeout(PATIENCE, self._clock)
        except (StoreUnavailable, TimeoutError):
            return last

    @returnsDeferred
    async def _ask(self, key: str) -> _T:
        asked = self._clock.seconds()
        try:
            value = await self._read(key)
        except NoSuchObject:
            self.forget(key)
            raise
        if key not in self.results or self.results[key][1] < asked:
            # Else it was written while it was being read, and the result may be older.
            self.results.put(key, (value, asked))
        return value

    def learn(self, key: str, value: _T) -> None:
        self.results.put(key, (value, self._clock.seconds()))

    def forget(self, key: str) -> None:
        """Ask the store the next time."""
        self.results.pop(key, None)


@attrs.define(eq=False, repr=False, slots=False)
class Identity:
    """
    Users, API keys and auth tokens. Methods that name a user may fail with :class:`NoSuchObject`.

    A user who authenticates again gets the same token, as long as more than nine tenths of its lifetime are left and it
    has not been ended: one old client authenticates before every request, and neither tokens nor writes may pile up.

    :param tokenLifetime: how long a token is valid, in seconds.
    :param cost: scrypt's *n* for keys that are hashed from now on: a power of two.
    """

    _store: IStore
    _clock: IReactorTime
    _wallClock: Callable[[], float] = time.time
    _tokenLifetime: float = 86_400.0
    _hasher: Hasher = threads.deferToThread
    _cost: int = SCRYPT_COST
    statistics: IdentityStatistics = attrs.field(init=False, factory=IdentityStatistics)
    _issued: BoundedCache[str, IssuedToken] = attrs.field(init=False, factory=BoundedCache)
    _issuing: SingleFlight[str, IssuedToken] = attrs.field(init=False, factory=SingleFlight)
    # A thousand requests that have waited for the same event have one token, and send it in the same moment.
    _asking: SingleFlight[str, UserRecord] = attrs.field(init=False, factory=SingleFlight)

    def __attrs_post_init__(self) -> None:
        self._keys = KeyChecks(self._clock, self._hasher, self._cost, self.statistics)
        self._users = StoreCache(self._store.getUser, self._clock)
        self._tokens = StoreCache(self._store.getToken, self._clock)

    def stop(self) -> None:
        self._keys.stop()

    @returnsDeferred
    async def addUser(
        self, name: str, tenant: str | None = None, key: str | None = None, role: Role = WRITE
    ) -> tuple[UserRecord, str]:
        """
        Add a user, with the first free tenant and a random API key unless these are given. Fires with the user and the
        key; may fail with :class:`InvalidUser` or :class:`ObjectExists`.
        """
        checkUser(name, tenant)
        if key is None:
            key = newKey()
        elif not key:
            raise InvalidUser("the API key is empty; give another one")
        return await self._store.addUser(name, await self._keys.hash(key), tenant, role), key

    @returnsDeferred
    async def rotate(self, name: str, key: str | None = None) -> tuple[UserRecord, str]:
        """Replace a user's API key, which ends the user's auth tokens. Fires with the user and the key."""
        key = newKey() if key is None else key
        user = await self._store.replaceUserKey(name, await self._keys.hash(key))
        self._forget()
        return user, key

    @returnsDeferred
    async def changeRole(self, name: str, role: Role) -> UserRecord:
        """Give a user another role. Fires with the user."""
        user = await self._store.changeRole(name, role)
        self._forget()
        return user

    @returnsDeferred
    async def removeUser(self, name: str) -> None:
        """Remove a user and all auth tokens of the user, not the tenant's objects."""
        await self._store.removeUser(name)
        self._forget()

    def listUsers(self) -> Deferred[list[UserRecord]]:
        return self._store.listUsers()

    @returnsDeferred
    async def purgeAll(self) -> None:
        """End all auth tokens; a key that another process changes in the same moment may be changed back."""
        for user in await self._store.listUsers():
            # The store ends a user's tokens together with the key; this is the key that the user has.
            await self._store.replaceUserKey(user.name, user.keyHash)
        self._forget()

    def _forget(self) -> None:
        """Ask the store again for users and tokens, which have changed."""
        for known in (self._issued, self._users.results, self._tokens.results):
            known.clear()

    async def verify(self, username: str, apiKey: str, origin: Origin = Origin()) -> UserRecord:  # noqa: B008 (it is immutable)
        """
        The user with these credentials. It raises :class:`InvalidCredentials` after a while, longer with each time,
        :class:`.Overloaded`, or :class:`StoreUnavailable` if the user was not seen before.
        """
        user = self._users.recent(username)
        if _NAME.fullmatch(username) and (user is None or not self._keys.knows(username, apiKey, user.keyHash)):
            # A key that another process has changed a moment ago is valid at once.
            user = await _found(self._users.get(username))
        right = await self._keys.check(username, apiKey, None if user is None else user.keyHash, origin)
        if user is None or not right:
            self.statistics.failed += 1
            raise InvalidCredentials()
        return user

    def remembers(self, username: str, apiKey: str) -> bool:
        """Whether a key was right when the store was last asked; it may have been replaced since."""
        user = self._users.last(username)
        return user is not None and self._keys.knows(username, apiKey, user.keyHash)

    @returnsDeferred
    async def authenticate(self, username: str, apiKey: str, origin: Origin = Origin()) -> IssuedToken:  # noqa: B008 (as above)
        """Give a user an auth token; fails as :meth:`verify` does."""
        user = await self.verify(username, apiKey, origin)
        return await self._issuing.do(user.name, lambda: self._tokenFor(user))

    def knownUser(self, token: str) -> UserRecord | None:
        """The user of an auth token, if it is valid and was looked up within the last second."""
        known = self._tokens.recent(_tokenHash(token))
        return None if known is None or known[0].expires <= self._wallClock() else known[1]

    def isFamiliar(self, token: str) -> bool:
        """Whether an auth token was valid when the store was last asked; it may have ended since."""
        known = self._tokens.last(_tokenHash(token))
        return known is not None and known[0].expires > self._wallClock()

    def userOf(self, token: str) -> Deferred[UserRecord]:
        """
        The user of an auth token, as the store had it at most a second ago; fails with :class:`InvalidToken`, or
        :class:`StoreUnavailable` if the token was not seen before.
        """
        known = self.knownUser(token)
        if known is not None:
            return succeed(known)
        tokenHash = _tokenHash(token)
        return self._asking.do(tokenHash, lambda: self._userOf(tokenHash))

    @returnsDeferred
    async def _userOf(self, tokenHash: str) -> UserRecord:
        found = await _found(self._tokens.get(tokenHash))
        if found is None or found[0].expires <= self._wallClock():
            raise InvalidToken()
        return found[1]

    @returnsDeferred
    async def _tokenFor(self, user: UserRecord) -> IssuedToken:
        issued = self._issued.get(user.name)
        if issued is not None and await self._isYoung(issued, user):
            return issued
        token = secrets.token_urlsafe(32)
        expires = float(int(self._wallClock() + self._tokenLifetime))
        issued = IssuedToken(id=token, expires=expires, tenant=user.tenant, user=user.name)
        record = TokenRecord(_tokenHash(token), user.name, user.tenant, expires)
        await self._store.addToken(record)
        stored = await _found(self._store.getUser(user.name))
        if stored is None or stored.keyHash != user.keyHash:
            # Its key was changed after it was checked, and before there was a token to end with it.
            await self._store.removeToken(record.tokenHash)
            raise InvalidCredentials()
        self._tokens.learn(record.tokenHash, (record, stored))
        self._issued.put(user.name, issued)
        self.statistics.issued += 1
        return issued

    async def _isYoung(self, issued: IssuedToken, user: UserRecord) -> bool:
        left = issued.expires - self._wallClock()
        if issued.tenant != user.tenant or not _YOUNG * self._tokenLifetime < left <= self._tokenLifetime:
            return False
        # The store is asked each time: a client whose token was ended must not get it again.
        return await _found(self._tokens.get(_tokenHash(issued.id))) is not None
