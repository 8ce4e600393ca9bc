"""
Users and auth tokens in etcd.

A token names the revision in which its user got the key. With another key, or without the user, that is another
revision: all tokens of a user end in the moment of one write, however many there are. Each goes with a lease, so that
none stays indefinitely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count as naturals

import attrs

from ...roles import WRITE, Role
from ..interfaces import NoSuchObject, ObjectExists, TokenRecord, UserRecord
from .gateway import Compare, Etcd, KeyValue, deletion, endOf, newLease, put, reading


class EtcdUsers:
    """
    The users, and their tokens.

    :param etcd: where they are.
    :param prefix: of all keys.
    :param wallClock: seconds since the epoch.
    """

    def __init__(self, etcd: Etcd, prefix: str, wallClock: Callable[[], float]) -> None:
        self._etcd = etcd
        self._users = f"{prefix}users/"
        self._tokens = f"{prefix}tokens/"
        # Where each tenant that has an account, or has ever had an object, has a key.
        self._tenants = (f"{prefix}accounts/", f"{prefix}clocks/")
        # Changes with each new user, so that no two are given the same tenant.
        self._guard = f"{prefix}lastuser"
        self._wallClock = wallClock

    async def hasBeenUsed(self, etcd: Etcd) -> bool:
        """Whether there has ever been a user, as *etcd* says, which may be asked before the store is open."""
        return await etcd.get(self._guard) is not None

    async def add(self, name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> UserRecord:
        user = UserRecord(name, tenant or "", keyHash, role)
        while True:
            users = reading(self._users, endOf(self._users))
            tenants = [reading(prefix, endOf(prefix)) for prefix in self._tenants]
            done = await self._etcd.txn((), [users, reading(self._guard), *tenants])
            known = {each.name: each for each in map(self._user, done.found[0] or ())}
            if name in known:
                raise ObjectExists(name)
            guards = done.found[1]
            added = user
            if not user.tenant:
                taken = {each.tenant for each in known.values()}
                taken |= {each.key.rpartition("/")[2] for found in done.found[2:] for each in found or ()}
                tenant = next(number for number in map(str, naturals(1)) if number not in taken)
                added = attrs.evolve(user, tenant=tenant)
            value = self._value(added)
            done = await self._etcd.txn(
                [Compare(self._guard, guards[0].modified if guards else 0)],
                [put(self._users + name, value), put(self._guard, value)],
                [reading(self._users + name)],
            )
            # A first try whose response was lost has made this very user: the hash is unique.
            if done.succeeded or any(each.value == value for each in done.found[0] or ()):
                return added

    async def replaceKey(self, name: str, keyHash: str) -> UserRecord:
        while True:
            found = await self._found(name)
            user = attrs.evolve(self._user(found), keyHash=keyHash)
            done = await self._etcd.txn([Compare(found.key, found.modified)], [put(found.key, self._value(user))])
            if done.succeeded:
                return user

    async def changeRole(self, name: str, role: Role) -> UserRecord:
        while True:
            found = await self._found(name)
            user = attrs.evolve(self._user(found), role=role)
            value = self._value(user, keyed=_keyed(found))
            done = await self._etcd.txn([Compare(found.key, found.modified)], [put(found.key, value)])
            if done.succeeded:
                return user

    async def remove(self, name: str) -> None:
        found = await self._found(name)
        await self._etcd.txn((), [deletion(found.key)])

    async def get(self, name: str) -> UserRecord:
        return self._user(await self._found(name))

    async def all(self) -> list[UserRecord]:
        found, _ = await self._etcd.range(self._users, endOf(self._users))
        return [self._user(each) for each in found]

    async def addToken(self, token: TokenRecord) -> None:
        user = await self._etcd.get(self._users + token.user)
        lease = newLease()
        await self._etcd.grant(lease, max(1, math.ceil(token.expires - self._wallClock())))
        kept = {"v": 1, "user": token.user, "tenant": token.tenant, "expires": token.expires}
        kept["revision"] = _keyed(user)
        value = json.dumps(kept, separators=(",", ":")).encode("ascii")
        await self._etcd.txn((), [put(self._tokens + token.tokenHash, value, lease)])

    async def getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        found = await self._etcd.get(self._tokens + tokenHash)
        if found is None:
            raise NoSuchObject("token")
        kept = json.loads(found.value)
        # Its user is looked at after it was, so that a key that was replaced before this call began is seen.
        user = await self._etcd.get(self._users + kept["user"])
        if user is None or kept["revision"] != _keyed(user) or kept["expires"] <= self._wallClock():
            raise NoSuchObject("token")
        return TokenRecord(tokenHash, kept["user"], kept["tenant"], kept["expires"]), self._user(user)

    async def removeToken(self, tokenHash: str) -> bool:
        key = self._tokens + tokenHash
        return not (await self._etcd.txn([Compare(key, 0)], (), [deletion(key)])).succeeded

    def _user(self, found: KeyValue) -> UserRecord:
        kept = json.loads(found.value)
        # A slash may be in a name.
        role = Role(**kept.get("role", {}))
        return UserRecord(found.key.removeprefix(self._users), kept["tenant"], kept["key"], role)

    def _value(self, user: UserRecord, **more: int) -> bytes:
        kept = {"v": 1, "tenant": user.tenant, "key": user.keyHash, "role": user.role.asJson(), **more}
        return json.dumps(kept, separators=(",", ":")).encode("ascii")

    async def _found(self, name: str) -> KeyValue:
        found = await self._etcd.get(self._users + name)
        if found is None:
            raise NoSuchObject(name)
        return found


def _keyed(found: KeyValue | None) -> int:
    """The revision in which a user got the key: the last one, unless the role was changed since."""
    if found is None:
        return 0
    keyed: int = json.loads(found.value).get("keyed", found.modified)
    return keyed
