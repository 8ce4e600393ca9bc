"""
The sessions of the console, and the links that begin one.

A session is two random secrets: the browser keeps one in a cookie, the page has the other and sends it in a header.
Both are needed, because a browser sends cookies to every port of a host. The store keeps a hash of both, made in
another way than those of auth tokens, so that sessions work on every node and after a restart, and end with the user's
API key. A session has the digest of its user's role, and ends when the role changes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from secrets import token_urlsafe

import attrs
from twisted.internet.interfaces import IReactorTime

from ..identity.identity import InvalidToken, StoreCache
from ..roles import Role
from ..stores.interfaces import IStore, NoSuchObject, TokenRecord, UserRecord

#: How long a session lasts, and a link that begins one, in seconds.
LIFETIME = 8 * 3600.0
LINK_LIFETIME = 60.0


@attrs.frozen
class Session:
    """A session: the secret in the cookie, the secret of the page, and when it ends, in seconds since the epoch."""

    user: UserRecord
    expires: float
    cookie: str = attrs.field(repr=False)
    secret: str = attrs.field(repr=False)


class Sessions:
    def __init__(self, store: IStore, *, clock: IReactorTime, wallClock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wallClock = wallClock
        self._records: StoreCache[tuple[TokenRecord, UserRecord]] = StoreCache(store.getToken, clock)

    async def begin(self, user: UserRecord) -> Session:
        """Begin a session of a user who has just authenticated."""
        cookie, secret = f"{token_urlsafe(32)}.{_roleDigest(user.role)}", token_urlsafe(32)
        return Session(user, await self._add(_hash("session", cookie, secret), user, LIFETIME), cookie, secret)

    async def find(self, cookie: str, secret: str) -> Session:
        """The session with these secrets; raises InvalidToken if there is none, or it has ended."""
        record, user = await self._get(_hash("session", cookie, secret))
        if cookie.rpartition(".")[2] != _roleDigest(user.role):
            raise InvalidToken()
        return Session(user, record.expires, cookie, secret)

    async def end(self, session: Session) -> None:
        await self._remove(_hash("session", session.cookie, session.secret))

    async def issueLink(self, user: UserRecord) -> str:
        """A secret that begins one session within a minute."""
        link = token_urlsafe(32)
        await self._add(_hash("link", link), user, LINK_LIFETIME)
        return link

    async def redeem(self, link: str) -> UserRecord:
        """The user to whom a link was issued; it is spent. Raises InvalidToken if it is unknown, spent or too old."""
        _, user = await self._get(_hash("link", link))
        # Of several requests at the same time, on any node, one removes it.
        if not await self._remove(_hash("link", link)):
            raise InvalidToken()
        return user

    async def _add(self, tokenHash: str, user: UserRecord, seconds: float) -> float:
        expires = float(int(self._wallClock() + seconds))
        await self._store.addToken(TokenRecord(tokenHash, user.name, user.tenant, expires))
        return expires

    async def _get(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        try:
            found = self._records.recent(tokenHash) or await self._records.get(tokenHash)
        except NoSuchObject:
            raise InvalidToken()
        if found[0].expires <= self._wallClock():
            raise InvalidToken()
        return found

    async def _remove(self, tokenHash: str) -> bool:
        removed = await self._store.removeToken(tokenHash)
        self._records.forget(tokenHash)
        return removed


def _hash(purpose: str, *secrets: str) -> str:
    text = json.dumps(secrets).encode("ascii")
    # The person makes it another function than the hash of auth tokens, and one for each purpose.
    return hashlib.blake2b(text, digest_size=32, person=b"console-" + purpose.encode("ascii")).hexdigest()


def _roleDigest(role: Role) -> str:
    text = json.dumps(role.asJson(), sort_keys=True).encode("ascii")
    return hashlib.blake2b(text, digest_size=8, person=b"console-role").hexdigest()
