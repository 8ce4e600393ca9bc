"""
Users, API keys and auth tokens.

The store holds the scrypt hash of an API key and the BLAKE2b hash of an auth token. Results of the store are cached for
a second: a key or a token that another process has replaced or ended is refused within that second, and a new role
counts. While the store is unavailable, those that were seen before are accepted. While a store that no other registry
shares can't be written, new tokens are kept in memory.

A valid key is checked with scrypt once in ten minutes. A key of an unknown user is not checked, but the response takes
as long. The response to each further wrong key for one name is delayed longer. Checks run one at a time, so that a
flood takes no more than one processor, in a fair order.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import attrs
from twisted.internet import threads
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from ..util.deferred import BoundedCache, SingleFlight, Waiters, returnsDeferred
from .limits import FairQueue, Origin
from .roles import WRITE, Role
from .storecache import StoreCache
from .stores.interfaces import ISharedStore, IStore, NoSuchObject, StoreUnavailable, TokenRecord, UserRecord

_T = TypeVar("_T")

#: A user who authenticates again gets the same token as long as this part of its lifetime is left: one old client
#: authenticates before every request, and neither tokens nor writes may pile up.
_YOUNG = 0.9

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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
#: The pattern of a tenant's number.
TENANT = "[1-9][0-9]{0,9}"
_LARGEST_TENANT = 2**31 - 1

#: Runs a slow function without arguments outside the reactor's thread.
Hasher: TypeAlias = Callable[[Callable[[], Any]], Deferred[Any]]


class Overloaded(Exception):
    """Too many keys wait to be checked."""


class InvalidCredentials(Exception):
    """No user has this name and this API key; which of the two is wrong is not disclosed."""


class InvalidToken(Exception):
    """The auth token is unknown, ended or expired."""


class InvalidUser(ValueError):
    """A user's name, tenant or key breaks a rule; the text says which."""


@attrs.define
class IdentityStatistics:
    """Counts of authentications."""

    issued: int = 0  # new auth tokens
    failed: int = 0  # wrong users or API keys
    waited: int = 0  # checks that had to wait
    overloaded: int = 0  # checks that were refused because too many waited


@attrs.frozen
class IssuedToken:
    """An auth token (*id*), as its user gets it. It ends in whole seconds since the epoch, at the latest."""

    id: str = attrs.field(repr=False)
    expires: float
    tenant: str
    user: str


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


def _tokenHash(token: str) -> str:
    # The token is random enough to need neither salt nor key, and every node has to find the same hash.
    return hashlib.blake2b(_encode(token), digest_size=32).hexdigest()


def _encode(text: str) -> bytes:
    # Clients may send lone surrogates.
    return text.encode("utf-8", "surrogatepass")


@attrs.frozen(eq=False)
class _Check:
    """A check that waits; if *isVain*, it is known to fail, and only its duration matters."""

    work: Callable[[], object]
    isVain: bool
    done: Deferred[bool] = attrs.field(factory=Deferred)


@attrs.define(eq=False, repr=False, slots=False)
class KeyChecks:
    """Hashes API keys and checks them."""

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
        """Whether a key is right; *keyHash* is ``None`` if there is no such user. May raise :exc:`Overloaded`."""
        if keyHash is not None and self.knows(username, apiKey, keyHash):
            return True
        # A thousand clients that come back after a restart of the registry have one key to check.
        key = self._digest(username, apiKey), keyHash
        isRight = await self._checking.do(key, lambda: self._check(username, apiKey, keyHash, origin))
        if not isRight:
            name, now = self._digest(username, ""), self._clock.seconds()
            count, last = self._failures.get(name) or (0, now)
            count = count + 1 if now - last < _FAILURES_FORGOTTEN else 1
            self._failures.put(name, (count, now))
            if count > 1:
                await self._delay(min(_FIRST_WAIT * 2.0 ** min(count - 2, 10), _LONGEST_WAIT))
        return isRight

    @returnsDeferred
    async def _check(self, username: str, apiKey: str, keyHash: str | None, origin: Origin) -> bool:
        """Check a key. How long this takes does not disclose why a key is wrong."""
        work = partial(keyMatches, apiKey, keyHash) if keyHash else partial(hashKey, apiKey, cost=self._cost)
        check = _Check(work, isVain=keyHash is None)
        self._queue.add((origin.isKnown, origin.peer, username, origin.connection), check)
        if not self._isBusy:
            Deferred.fromCoroutine(self._workThrough())
        else:
            self._statistics.waited += 1
            if len(self._queue) > _CHECKS_WAITING:
                self._statistics.overloaded += 1
                self._queue.dropLast().done.errback(Overloaded())
        isRight = await check.done
        if keyHash is not None and isRight:
            self._right.put(self._digest(username, apiKey), (keyHash, self._clock.seconds()))
        return isRight

    def _digest(self, username: str, apiKey: str) -> bytes:
        name = _encode(username)
        digest = hashlib.blake2b(len(name).to_bytes(8, "big") + name, key=self._digestKey, digest_size=32)
        digest.update(_encode(apiKey))
        return digest.digest()

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

    def _delay(self, seconds: float) -> Deferred[None]:
        """Fires after some time, or when this is stopped."""
        if self._isStopped or not seconds:
            return succeed(None)
        return self._delays.wait().addTimeout(seconds, self._clock, lambda *_: None)


async def _found(result: Awaitable[_T]) -> _T | None:
    try:
        return await result
    except NoSuchObject:
        return None


@attrs.define(eq=False, repr=False, slots=False)
class Identity:
    """Users, API keys and auth tokens. Methods that name a user may fail with :class:`NoSuchObject`."""

    _store: IStore
    _clock: IReactorTime
    _wallClock: Callable[[], float] = time.time
    _tokenLifetime: float = 86_400.0  # seconds
    _hasher: Hasher = threads.deferToThread
    _cost: int = SCRYPT_COST  # of keys that are hashed from now on: a power of two
    statistics: IdentityStatistics = attrs.field(init=False, factory=IdentityStatistics)
    _issued: BoundedCache[str, IssuedToken] = attrs.field(init=False, factory=BoundedCache)
    _issuing: SingleFlight[str, IssuedToken] = attrs.field(init=False, factory=SingleFlight)
    # A thousand requests that have waited for the same event have one token, and send it in the same moment.
    _asking: SingleFlight[str, UserRecord] = attrs.field(init=False, factory=SingleFlight)
    # Tokens that the store could not take, by hash, with the hash of the API key: heartbeats need no disk.
    _unstored: BoundedCache[str, tuple[TokenRecord, str]] = attrs.field(init=False, factory=BoundedCache)

    def __attrs_post_init__(self) -> None:
        self._keys = KeyChecks(self._clock, self._hasher, self._cost, self.statistics)
        self._users = StoreCache(self._store.getUser, self._clock)
        self._tokens = StoreCache(self._getToken, self._clock)
        self.stop, self.listUsers = self._keys.stop, self._store.listUsers

    @returnsDeferred
    async def addUser(
        self, name: str, tenant: str | None = None, key: str | None = None, role: Role = WRITE
    ) -> tuple[UserRecord, str]:
        """Add a user. Fires with the user and the key; may fail with InvalidUser or ObjectExists."""
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

    @returnsDeferred
    async def purgeAll(self) -> None:
        """End all auth tokens; a key that another process changes in the same moment may be changed back."""
        for user in await self._store.listUsers():
            # The store ends a user's tokens together with the key; this is the key that the user has.
            await self._store.replaceUserKey(user.name, user.keyHash)
        self._forget()

    def _forget(self) -> None:
        for known in (self._issued, self._unstored, self._users.results, self._tokens.results):
            known.clear()

    async def verify(self, username: str, apiKey: str, origin: Origin = Origin()) -> UserRecord:  # noqa: B008 (it is immutable)
        """The user; raises InvalidCredentials, Overloaded, or StoreUnavailable if the user was not seen before."""
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
        """The user of an auth token; fails with InvalidToken, or StoreUnavailable if the token was not seen before."""
        known, tokenHash = self.knownUser(token), _tokenHash(token)
        return succeed(known) if known is not None else self._asking.do(tokenHash, lambda: self._userOf(tokenHash))

    @returnsDeferred
    async def _userOf(self, tokenHash: str) -> UserRecord:
        found = await _found(self._tokens.get(tokenHash))
        if found is None or found[0].expires <= self._wallClock():
            raise InvalidToken()
        return found[1]

    @returnsDeferred
    async def _tokenFor(self, user: UserRecord) -> IssuedToken:
        issued, now = self._issued.get(user.name), self._wallClock()
        if issued is not None and issued.tenant == user.tenant:
            isYoung = _YOUNG * self._tokenLifetime < issued.expires - now <= self._tokenLifetime
            # The store is asked each time: a client whose token was ended must not get it again.
            if isYoung and await _found(self._tokens.get(_tokenHash(issued.id))) is not None:
                return issued
        token = secrets.token_urlsafe(32)
        expires = float(int(self._wallClock() + self._tokenLifetime))
        issued = IssuedToken(id=token, expires=expires, tenant=user.tenant, user=user.name)
        record = TokenRecord(_tokenHash(token), user.name, user.tenant, expires)
        getUser: Callable[[str], Awaitable[UserRecord]] = self._store.getUser
        try:
            await self._store.addToken(record)
        except StoreUnavailable:
            if ISharedStore.providedBy(self._store):
                raise
            self._unstored.put(record.tokenHash, (record, user.keyHash))
            getUser = self._users.get
        stored = await self.confirm(record, user, getUser)
        self._tokens.results.put(record.tokenHash, ((record, stored), self._clock.seconds()))
        self._issued.put(user.name, issued)
        self.statistics.issued += 1
        return issued

    async def confirm(
        self, record: TokenRecord, user: UserRecord, getUser: Callable[[str], Awaitable[UserRecord]] | None = None
    ) -> UserRecord:
        """Remove a new token if the user's key has changed, and raise InvalidCredentials; else the user as stored."""
        stored = await _found((getUser or self._store.getUser)(user.name))
        if stored is None or stored.keyHash != user.keyHash:
            # Its key was changed after it was checked, and before there was a token to end with it.
            if self._unstored.pop(record.tokenHash, None) is None:
                await self._store.removeToken(record.tokenHash)
            raise InvalidCredentials()
        return stored

    @returnsDeferred
    async def _getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        if tokenHash not in self._unstored:
            return await self._store.getToken(tokenHash)
        record, keyHash = self._unstored[tokenHash]
        user = await self._store.getUser(record.user)
        if user.keyHash != keyHash:
            raise NoSuchObject("token")
        return record, user
