"""The operations of a store on the tables of accounts, users and auth tokens."""

from __future__ import annotations

import json
from itertools import count as naturals

import attrs

from ...roles import WRITE, Role
from ..interfaces import Account, NoSuchObject, ObjectExists, TokenRecord, UserRecord
from .database import Database, asBytes, asJson, asText

_USERS = "SELECT name, tenant, key_hash, role FROM users"
_END_TOKENS = "DELETE FROM tokens WHERE user = ?"


class Users(Database):
    """Accounts, users and auth tokens. The methods are the operations of :class:`IStore`, or parts of them."""

    def findAccount(self, tenant: str) -> Account | None:
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

    def addUser(self, name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> UserRecord:
        if self._one("SELECT 1 FROM users WHERE name = ?", asBytes(name)):
            raise ObjectExists(name)
        if tenant is None:
            taken = {row[0] for row in self._execute("SELECT tenant FROM users UNION SELECT tenant FROM tenants")}
            tenant = next(number for number in map(str, naturals(1)) if number not in taken)
        self._execute(
            "INSERT INTO users (name, tenant, key_hash, role) VALUES (?, ?, ?, ?)",
            (asBytes(name), tenant, keyHash, asJson(role.asJson())),
        )
        return UserRecord(name, tenant, keyHash, role)

    def replaceUserKey(self, name: str, keyHash: str) -> UserRecord:
        user = attrs.evolve(self.getUser(name), keyHash=keyHash)
        self._execute("UPDATE users SET key_hash = ? WHERE name = ?", (keyHash, asBytes(name)))
        self._execute(_END_TOKENS, (asBytes(name),))
        return user

    def changeRole(self, name: str, role: Role) -> UserRecord:
        user = attrs.evolve(self.getUser(name), role=role)
        self._execute("UPDATE users SET role = ? WHERE name = ?", (asJson(role.asJson()), asBytes(name)))
        return user

    def removeUser(self, name: str) -> None:
        self.getUser(name)
        self._execute("DELETE FROM users WHERE name = ?", (asBytes(name),))
        self._execute(_END_TOKENS, (asBytes(name),))

    def getUser(self, name: str) -> UserRecord:
        row = self._one(f"{_USERS} WHERE name = ?", asBytes(name))
        if row is None:
            raise NoSuchObject(name)
        return _user(*row)

    def listUsers(self) -> list[UserRecord]:
        return [_user(*row) for row in self._execute(f"{_USERS} ORDER BY name")]

    def addToken(self, token: TokenRecord) -> None:
        self._execute("DELETE FROM tokens WHERE expires <= ?", (self._wallClock(),))
        self._execute(
            "INSERT OR REPLACE INTO tokens (hash, user, tenant, expires) VALUES (?, ?, ?, ?)",
            (token.tokenHash, asBytes(token.user), token.tenant, token.expires),
        )

    def getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        row = self._one(
            "SELECT tokens.tenant, expires, name, users.tenant, key_hash, role FROM tokens"
            " JOIN users ON name = user WHERE hash = ?",
            tokenHash,
        )
        if row is None:
            raise NoSuchObject("token")
        user = _user(*row[2:])
        return TokenRecord(tokenHash, user.name, *row[:2]), user

    def removeToken(self, tokenHash: str) -> bool:
        return self._execute("DELETE FROM tokens WHERE hash = ?", (tokenHash,)).rowcount > 0


def _user(name: bytes, tenant: str, keyHash: str, role: str) -> UserRecord:
    return UserRecord(asText(name), tenant, keyHash, Role(**json.loads(role)))
