"""
What the operations of a store do to the tables of users and auth tokens in the SQLite file.

As in :mod:`~txserviceregistry.registry.stores.sqlite.tables`: plain functions that block, inside a transaction that
somebody else begins and ends. The two share a file, and nothing that is in it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from itertools import count as naturals

import attrs

from ..interfaces import NoSuchObject, ObjectExists, TokenRecord, UserRecord


def asBytes(text: str) -> bytes:
    """
    Text that is chosen freely, in a form that keeps all of it.

    A string can hold halves of surrogate pairs, which SQLite's text can't; the bytes sort as the code points do.
    """
    return text.encode("utf-8", "surrogatepass")


def asText(value: bytes) -> str:
    """The text that :func:`asBytes` made bytes of."""
    return value.decode("utf-8", "surrogatepass")


class Users:
    """Users and their auth tokens."""

    def __init__(self, connection: sqlite3.Connection, wallClock: Callable[[], float]) -> None:
        """
        :param connection: one from :func:`txserviceregistry.registry.stores.sqlite.file.connect`.
        :param wallClock: seconds since 1970.
        """
        self._execute = connection.execute
        self._wallClock = wallClock

    def addUser(self, name: str, keyHash: str, tenant: str | None) -> UserRecord:
        """See :meth:`IStore.addUser`."""
        if self._findUser(name) is not None:
            raise ObjectExists(name)
        if tenant is None:
            taken = {row[0] for row in self._execute("SELECT tenant FROM users UNION SELECT tenant FROM tenants")}
            tenant = next(number for number in map(str, naturals(1)) if number not in taken)
        self._execute("INSERT INTO users (name, tenant, key_hash) VALUES (?, ?, ?)", (asBytes(name), tenant, keyHash))
        return UserRecord(name, tenant, keyHash)

    def replaceUserKey(self, name: str, keyHash: str) -> UserRecord:
        """See :meth:`IStore.replaceUserKey`."""
        user = attrs.evolve(self.getUser(name), keyHash=keyHash)
        self._execute("UPDATE users SET key_hash = ? WHERE name = ?", (keyHash, asBytes(name)))
        self._endTokensOf(name)
        return user

    def removeUser(self, name: str) -> None:
        """See :meth:`IStore.removeUser`."""
        self.getUser(name)
        self._execute("DELETE FROM users WHERE name = ?", (asBytes(name),))
        self._endTokensOf(name)

    def _endTokensOf(self, user: str) -> None:
        self._execute("DELETE FROM tokens WHERE user = ?", (asBytes(user),))

    def _findUser(self, name: str) -> UserRecord | None:
        row = self._execute("SELECT tenant, key_hash FROM users WHERE name = ?", (asBytes(name),)).fetchone()
        return None if row is None else UserRecord(name, *row)

    def getUser(self, name: str) -> UserRecord:
        """See :meth:`IStore.getUser`."""
        user = self._findUser(name)
        if user is None:
            raise NoSuchObject(name)
        return user

    def listUsers(self) -> list[UserRecord]:
        """See :meth:`IStore.listUsers`."""
        rows = self._execute("SELECT name, tenant, key_hash FROM users ORDER BY name")
        return [UserRecord(asText(name), tenant, keyHash) for name, tenant, keyHash in rows]

    def addToken(self, token: TokenRecord) -> None:
        """See :meth:`IStore.addToken`."""
        self._execute("DELETE FROM tokens WHERE expires <= ?", (self._wallClock(),))
        self._execute(
            "INSERT OR REPLACE INTO tokens (hash, user, tenant, expires) VALUES (?, ?, ?, ?)",
            (token.tokenHash, asBytes(token.user), token.tenant, token.expires),
        )

    def getToken(self, tokenHash: str) -> TokenRecord:
        """See :meth:`IStore.getToken`."""
        row = self._execute("SELECT user, tenant, expires FROM tokens WHERE hash = ?", (tokenHash,)).fetchone()
        if row is None:
            raise NoSuchObject("token")
        user, tenant, expires = row
        return TokenRecord(tokenHash, asText(user), tenant, expires)

    def removeToken(self, tokenHash: str) -> None:
        """See :meth:`IStore.removeToken`."""
        self._execute("DELETE FROM tokens WHERE hash = ?", (tokenHash,))
