"""
Users and auth tokens in etcd.

A token names the revision in which its user got the key. With another key, or without the user, that is another
revision: all tokens of a user end in the moment of one write, however many there are. Each goes with a lease, so that
none stays indefinitely.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import count as naturals
from typing import Any

import attrs

from ....util.deferred import returnsDeferred
from ...roles import WRITE, Role
from ..interfaces import NoSuchObject, ObjectExists, TokenRecord, UserRecord
from .gateway import Etcd, KeyValue, deletion, endOf, jsonBytes, newLease, put, reading, unchanged
from .kept import Unreadable, readKept
from .part import Part

_USER = {"tenant": str, "key": str}
_TOKEN = {"user": str, "tenant": str, "expires": float | int, "revision": int}


@attrs.define(eq=False)
class EtcdUsers(Part):
    @property
    def _users(self) -> str:
        return f"{self._prefix}users/"

    def _token(self, tokenHash: str) -> str:
        return f"{self._prefix}tokens/{tokenHash}"

    @property
    def _guard(self) -> str:
        """Changes with each new user, so that no two are given the same tenant."""
        return f"{self._prefix}lastuser"

    async def hasBeenUsed(self, etcd: Etcd) -> bool:
        """Whether there has ever been a user, as *etcd* says, which may be asked before the store is open."""
        return await etcd.get(self._guard) is not None

    @returnsDeferred
    async def add(self, name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> UserRecord:
        # Each tenant that has an account, or has ever had an object, has a key in one of these.
        below = (self._users, f"{self._prefix}accounts/", f"{self._prefix}clocks/")
        while True:
            done = await self._etcd.txn((), [reading(self._guard), *(reading(each, endOf(each)) for each in below)])
            guards, users, *tenants = done.found
            known = {each.name: each for each in map(self._user, users)}
            if name in known:
                raise ObjectExists(name)
            taken = {each.tenant for each in known.values()}
            taken.update(each.key.rpartition("/")[2] for found in tenants for each in found)
            own = tenant or next(number for number in map(str, naturals(1)) if number not in taken)
            added = UserRecord(name, own, keyHash, role)
            value = self._value(added)
            done = await self._etcd.txn(
                [unchanged(self._guard, guards[0].modified if guards else 0)],
                [put(self._users + name, value), put(self._guard, value)],
                [reading(self._users + name)],
            )
            # A first try whose response was lost has made this very user: the hash is unique.
            if done.succeeded or any(each.value == value for each in done.found[0]):
                return added

    @returnsDeferred
    async def replaceKey(self, name: str, keyHash: str) -> UserRecord:
        return await self._change(name, keyHash=keyHash)

    @returnsDeferred
    async def changeRole(self, name: str, role: Role) -> UserRecord:
        return await self._change(name, role=role)

    async def _change(self, name: str, **changes: Any) -> UserRecord:
        while True:
            found = await self._found(name)
            user = attrs.evolve(self._user(found), **changes)
            value = self._value(user) if "keyHash" in changes else self._value(user, keyed=_keyed(found))
            done = await self._etcd.txn([unchanged(found.key, found.modified)], [put(found.key, value)])
            if done.succeeded:
                return user

    @returnsDeferred
    async def remove(self, name: str) -> None:
        await self._etcd.txn((), [deletion((await self._found(name)).key)])

    @returnsDeferred
    async def get(self, name: str) -> UserRecord:
        return self._user(await self._found(name))

    @returnsDeferred
    async def all(self) -> list[UserRecord]:
        found, _ = await self._etcd.range(self._users, endOf(self._users))
        users: list[UserRecord] = []
        for each in found:
            # A registry starts, and its other users are shown, without one that is damaged.
            with suppress(Unreadable):
                users.append(self._user(each))
        return users

    @returnsDeferred
    async def addToken(self, token: TokenRecord) -> None:
        revision = _keyed(await self._etcd.get(self._users + token.user))
        lease = newLease()
        await self._etcd.grant(lease, max(1, math.ceil(token.expires - self._wallClock())))
        kept = {"v": 1, "user": token.user, "tenant": token.tenant, "expires": token.expires, "revision": revision}
        await self._etcd.txn((), [put(self._token(token.tokenHash), jsonBytes(kept), lease)])

    @returnsDeferred
    async def getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        found = await self._etcd.get(self._token(tokenHash))
        if found is None:
            raise NoSuchObject("token")
        kept = readKept(found.key, found.value, _TOKEN)
        # Its user is looked at after it was, so that a key that was replaced before this call began is seen.
        user = await self._etcd.get(self._users + kept["user"])
        if user is None or kept["revision"] != _keyed(user) or kept["expires"] <= self._wallClock():
            raise NoSuchObject("token")
        return TokenRecord(tokenHash, kept["user"], kept["tenant"], kept["expires"]), self._user(user)

    @returnsDeferred
    async def removeToken(self, tokenHash: str) -> bool:
        key = self._token(tokenHash)
        return not (await self._etcd.txn([unchanged(key, 0)], (), [deletion(key)])).succeeded

    def _user(self, found: KeyValue) -> UserRecord:
        kept = readKept(found.key, found.value, _USER)
        # A slash may be in a name.
        role = Role(**kept.get("role", {}))
        return UserRecord(found.key.removeprefix(self._users), kept["tenant"], kept["key"], role)

    def _value(self, user: UserRecord, **more: int) -> bytes:
        return jsonBytes({"v": 1, "tenant": user.tenant, "key": user.keyHash, "role": user.role.asJson(), **more})

    async def _found(self, name: str) -> KeyValue:
        found = await self._etcd.get(self._users + name)
        if found is None:
            raise NoSuchObject(name)
        return found


def _keyed(found: KeyValue | None) -> int:
    """The revision in which a user got the key: the last one, unless the role was changed since."""
    if found is None:
        return 0
    keyed: int = readKept(found.key, found.value, _USER).get("keyed", found.modified)
    return keyed
