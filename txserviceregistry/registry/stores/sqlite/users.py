"""
What the operations of a store do to the tables of accounts, users and auth tokens.
"""

from __future__ import annotations

from itertools import count as naturals

import attrs

from ..interfaces import Account, NoSuchObject, ObjectExists, TokenRecord, UserRecord
from .database import Database, asBytes, asText


class Users(Database):
    """Accounts, users and auth tokens. The methods are the operations of :class:`IStore`, or parts of them."""

    def findAccount(self, tenant: str) -> Account | None:
        """The account, if it exists."""
        row = self._one("SELECT created FROM tenants WHERE tenant = ? AND created IS NOT NULL", tenant)
        return None if row is None else Account(tenant, row[0])

    def makeAccount(self, tenant: str) -> Account:
        """The account, which is created if it does not exist."""
        self._execute(
            "INSERT INTO tenants (tenant, created) VALUES (?, ?)"
            " ON CONFLICT (tenant) DO UPDATE SET created = coalesce(created, excluded.created)",
            (tenant, self._milliseconds()),
        )
        account = self.findAccount(tenant)
        assert account is not None
        return account

    def addUser(self, name: str, keyHash: str, tenant: str | None) -> UserRecord:
        if self._findUser(name) is not None:
            raise ObjectExists(name)
        if tenant is None:
            taken = {row[0] for row in self._execute("SELECT tenant FROM users UNION SELECT tenant FROM tenants")}
            tenant = next(number for number in map(str, naturals(1)) if number not in taken)
        self._execute("INSERT INTO users (name, tenant, key_hash) VALUES (?, ?, ?)", (asBytes(name), tenant, keyHash))
        return UserRecord(name, tenant, keyHash)

    def replaceUserKey(self, name: str, keyHash: str) -> UserRecord:
        user = attrs.evolve(self.getUser(name), keyHash=keyHash)
        self._execute("UPDATE users SET key_hash = ? WHERE name = ?", (keyHash, asBytes(name)))
        self._endTokensOf(name)
        return user

    def removeUser(self, name: str) -> None:
        self.getUser(name)
        self._execute("DELETE FROM users WHERE name = ?", (asBytes(name),))
        self._endTokensOf(name)

    def _endTokensOf(self, user: str) -> None:
        self._execute("DELETE FROM tokens WHERE user = ?", (asBytes(user),))

    def _findUser(self, name: str) -> UserRecord | None:
        row = self._one("SELECT tenant, key_hash FROM users WHERE name = ?", asBytes(name))
        return None if row is None else UserRecord(name, *row)

    def getUser(self, name: str) -> UserRecord:
        user = self._findUser(name)
        if user is None:
            raise NoSuchObject(name)
        return user

    def listUsers(self) -> list[UserRecord]:
        rows = self._execute("SELECT name, tenant, key_hash FROM users ORDER BY name")
        return [UserRecord(asText(name), tenant, keyHash) for name, tenant, keyHash in rows]

    def addToken(self, token: TokenRecord) -> None:
        self._execute("DELETE FROM tokens WHERE expires <= ?", (self._wallClock(),))
        self._execute(
            "INSERT OR REPLACE INTO tokens (hash, user, tenant, expires) VALUES (?, ?, ?, ?)",
            (token.tokenHash, asBytes(token.user), token.tenant, token.expires),
        )

    def getToken(self, tokenHash: str) -> TokenRecord:
        row = self._one("SELECT user, tenant, expires FROM tokens WHERE hash = ?", tokenHash)
        if row is None:
            raise NoSuchObject("token")
        user, tenant, expires = row
        return TokenRecord(tokenHash, asText(user), tenant, expires)

    def removeToken(self, tokenHash: str) -> None:
        self._execute("DELETE FROM tokens WHERE hash = ?", (tokenHash,))
