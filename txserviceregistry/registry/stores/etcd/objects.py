"""The parts of the store, each for one kind of objects: here events, configuration values, states, and users."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from heapq import merge
from operator import itemgetter
from typing import Any, ClassVar, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ...model import PLAIN_TYPES, UNCONDITIONAL, Precondition, tenantOf
from ...roles import WRITE, Role
from ..interfaces import (
    EventRecord,
    NoSuchObject,
    ObjectExists,
    PreconditionFailed,
    StateRecord,
    StoreUnavailable,
    TokenRecord,
    UserRecord,
    ValueRecord,
    valuePayload,
)
from .batches import GROUP, Batches, TenantClock, TenantIds, Transaction, eventsIn, lastPosition
from .gateway import Etcd
from .keyvalues import KeyValue, Unreadable, deletion, endOf, jsonBytes, put, reading, readKept, unchanged, understood

_T = TypeVar("_T")

#: Keys in one read: so many of the largest events, of both kinds, are as much as a response may have.
KEYS = 32
_TOKEN = {"user": str, "tenant": str, "expires": float | int, "revision": int}


@attrs.define(eq=False)
class Part:
    kind: ClassVar[str] = ""  # the name of its objects' keys, before the tenant and the id
    fields: ClassVar[Mapping[str, Any]] = {}  # what the value of each has
    _etcd: Etcd
    _batches: Batches
    _prefix: str
    _ids: TenantIds
    _clock: IReactorTime
    _wallClock: Callable[[], float]

    def _milliseconds(self) -> int:
        return int(self._wallClock() * 1000)

    def key(self, tenant: str, id: str = "") -> str:
        """The key of an object, or the beginning of the keys of all of a tenant."""
        return f"{self._prefix}{self.kind}/{tenantOf(tenant)}/{id}"

    def _nameOf(self, key: str) -> tuple[str, str]:
        _, tenant, id = key[len(self._prefix) :].split("/", 2)
        return tenant, id

    def _kept(self, key: str, value: bytes) -> dict[str, Any]:
        return readKept(key, value, self.fields)

    async def _page(
        self, tenant: str, marker: str | None, count: int, read: Callable[[KeyValue], _T | None]
    ) -> list[_T]:
        """Up to *count* of a tenant's objects by id, from *marker* on, without those that are read as ``None``."""
        prefix = self.key(tenant)
        objects: list[_T] = []
        async for found, _ in self._etcd.pages(prefix + (marker or ""), endOf(prefix)):
            objects += [each for each in map(read, found) if each is not None]
            if len(objects) >= count:
                break
        return objects[:count]


def _event(idAt: Callable[[int], str], kept: Mapping[str, Any]) -> EventRecord:
    return EventRecord(idAt(kept["position"]), kept["timestamp"], kept["type"], kept["payload"])


@attrs.define(eq=False)
class EtcdEvents(Part):
    _compactTo: int = 0

    def _prefixes(self, tenant: str) -> tuple[str, str]:
        """Of plain events, and of others."""
        return f"{self._prefix}events/{tenant}/", f"{self._prefix}moreevents/{tenant}/"

    async def changes(self, tenant: str, key: str, count: int) -> list[EventRecord]:
        prefix, idAt, mark = self._prefixes(tenant)[0], self._ids.of(tenant).idAt, jsonBytes(key)
        newest: deque[EventRecord] = deque(maxlen=count)
        async for found, _ in self._etcd.pages(prefix, endOf(prefix)):
            # Most keys have no event of the value, and are not parsed.
            events = (event for kept in found if mark in kept.value for event in eventsIn(kept)[1])
            newest += [_event(idAt, each) for each in events if each["payload"].get("configuration_value_id") == key]
        return [*newest]

    async def list(self, tenant: str, position: int, count: int, types: Collection[str] | None) -> list[EventRecord]:
        isPlain = types is not None and PLAIN_TYPES.issuperset(types)
        prefixes = self._prefixes(tenant)[: 1 if isPlain else 2]
        idAt = self._ids.of(tenant).idAt
        events: list[EventRecord] = []
        # Each key has one event at least.
        size = min(KEYS, count)
        while True:
            # At one revision, so that no event is skipped.
            reads = [reading(f"{prefix}{position:016x}", endOf(prefix), size) for prefix in prefixes]
            done = await self._etcd.txn((), reads)
            # Events behind the end of a full page may be incomplete.
            last = min((lastPosition(page[-1]) for page in done.found if len(page) == size), default=None)
            found = ((event for key in page for event in eventsIn(key)[1]) for page in done.found)
            for each in merge(*found, key=itemgetter("position")):
                at, type = each["position"], each["type"]
                if last is not None and at > last:
                    break
                if at >= position and (types is None or type in types):
                    events.append(_event(idAt, each))
                    if len(events) == count:
                        return events
            if last is None:
                return events
            position = last + 1

    async def last(self, tenant: str) -> str | None:
        clock = TenantClock.of(await self._etcd.get(f"{self._prefix}clocks/{tenant}"))
        return self._ids.of(tenant).idAt(clock.last) if clock.last else None

    async def has(self, tenant: str, id: str) -> bool:
        position = self._ids.of(tenant).owned(id)
        if position is None:
            return False
        prefixes = self._prefixes(tenant)
        done = await self._etcd.txn((), [reading(f"{each}{position:016x}", endOf(each), 1) for each in prefixes])
        return any(each["position"] == position for kept in done.found for key in kept for each in eventsIn(key)[1])

    async def drop(self, before: int) -> int:
        """Of what etcd keeps of the past, the part from before the last call is forgotten too."""
        dropped = 0
        for clock in await self._etcd.all(f"{self._prefix}clocks/"):
            for prefix in self._prefixes(clock.key.rpartition("/")[2]):
                end = f"{prefix}{max(before, 0):016x}"
                while found := (await self._etcd.range(prefix, end, KEYS))[0]:
                    await self._etcd.txn((), [deletion(prefix, found[-1].key + "\0")])
                    for each in found:
                        with suppress(Unreadable):
                            dropped += len(eventsIn(each)[1])
        _, revision = await self._etcd.range(f"{self._prefix}meta")
        if self._compactTo:
            await self._etcd.compact(self._compactTo)
        self._compactTo = revision
        return dropped


@attrs.define(eq=False)
class EtcdValues(Part):
    kind = "values"
    fields = {"value": str}

    def _read(self, key: str, value: bytes) -> ValueRecord:
        kept = self._kept(key, value)
        return ValueRecord(self._nameOf(key)[1], kept["value"], kept.get("position", 0))

    async def get(self, tenant: str, key: str) -> ValueRecord:
        found = await self._etcd.get(self.key(tenant, key))
        if found is None:
            raise NoSuchObject(key)
        return self._read(found.key, found.value)

    async def list(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[ValueRecord]:
        prefix = self.key(tenant)
        below = "" if namespace is None else namespace.rstrip("/") + "/"
        begin, end, revision = prefix + max(marker or "", below), endOf(prefix + below), 0
        found: list[KeyValue] = []
        if namespace not in (None, "/") and (marker or "") <= (namespace or ""):
            found, revision = await self._etcd.range(prefix + (namespace or ""))
        if begin < end:
            async for page, _ in self._etcd.pages(begin, end, count, revision):
                found += page
                if len(found) >= count:
                    break
        return [self._read(each.key, each.value) for each in found[:count]]

    async def set(
        self, tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> int:
        at = self.key(tenant, key)

        def change(transaction: Transaction) -> int:
            old = self._allowed(transaction, at, precondition)
            if old is not None and old.value == value:
                return old.position
            if old is None:
                transaction.count("values", 1, maximum)
            payload = valuePayload(key, None if old is None else old.value, value)
            position = transaction.addEvent("configuration_value.update", payload)
            transaction.put(at, jsonBytes({"v": 1, "value": value, "position": position}))
            return position

        return await self._batches.do(tenant, change)

    async def remove(self, tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> None:
        at = self.key(tenant, key)

        def change(transaction: Transaction) -> None:
            old = self._allowed(transaction, at, precondition)
            if old is None:
                raise NoSuchObject(key)
            transaction.delete(at)
            transaction.count("values", -1)
            transaction.addEvent("configuration_value.remove", valuePayload(key, old.value, None))

        await self._batches.do(tenant, change)

    def _allowed(self, transaction: Transaction, key: str, precondition: Precondition) -> ValueRecord | None:
        """The value that is to be written; ``None`` if there is none."""
        transaction.need(key)
        kept = transaction.get(key)
        old = None if kept is None else self._read(key, kept)
        position = None if old is None else old.position
        if not precondition.allows(position):
            raise PreconditionFailed(position)
        return old


@attrs.define(eq=False)
class EtcdStates(Part):
    kind = "states"
    fields = {"state": str, "reason": str, "ends": int | None, "unused": int | None}

    def _read(self, key: str, value: bytes | None) -> tuple[StateRecord, int | None]:
        """A record, as it was set, and since when its id has had no service, if that is known."""
        id = self._nameOf(key)[1]
        if value is None:
            return StateRecord(id), None
        kept = self._kept(key, value)
        return StateRecord(id, kept["state"], kept["reason"], kept["ends"]), kept["unused"]

    def _visible(self, key: str, value: bytes | None) -> StateRecord | None:
        """``None`` if it is over."""
        record = self._read(key, value)[0].at(self._milliseconds())
        return None if record.isDefault else record

    def _put(self, transaction: Transaction, key: str, record: StateRecord, unused: int | None = None) -> None:
        kept = {"v": 1, "state": record.state, "reason": record.reason, "ends": record.ends, "unused": unused}
        transaction.put(key, jsonBytes(kept))

    def shown(self, found: Collection[KeyValue]) -> Mapping[str, StateRecord]:
        records = (self._visible(each.key, each.value) for each in found)
        return {record.id: record for record in records if record is not None}

    def inTransaction(self, transaction: Transaction, tenant: str, id: str) -> StateRecord | None:
        """The record of the id of a service, whose key the step reads, unless it is over."""
        if not transaction.clock.states:
            return None
        key = self.key(tenant, id)
        value = transaction.get(key)
        record, unused = self._read(key, value)
        if unused is not None:
            self._put(transaction, key, record)
        return self._visible(key, value)

    async def set(self, tenant: str, record: StateRecord, maximum: int) -> bool:
        key = self.key(tenant, record.id)
        return await self._batches.do(tenant, lambda now: self._replace(now, key, record, maximum))

    def _replace(self, transaction: Transaction, key: str, record: StateRecord, maximum: int = 0) -> bool:
        transaction.need(key)
        value = transaction.get(key)
        if not record.isDefault:
            if value is None:
                transaction.count("states", 1, maximum)
            self._put(transaction, key, record)
        elif value is not None:
            transaction.delete(key)
            transaction.count("states", -1)
        events = list(self._read(key, value)[0].events(record, self._milliseconds()))
        for payload, timestamp in events:
            transaction.addEvent("service.state", payload, timestamp)
        return bool(events)

    async def get(self, tenant: str, id: str) -> StateRecord:
        found = await self._etcd.get(self.key(tenant, id))
        return (None if found is None else self._visible(found.key, found.value)) or StateRecord(id)

    async def list(self, tenant: str, marker: str | None, count: int) -> list[StateRecord]:
        return await self._page(tenant, marker, count, lambda found: self._visible(found.key, found.value))

    async def end(self) -> tuple[Collection[str], int | None]:
        now, over, ends = self._milliseconds(), list[KeyValue](), list[int]()
        for found in await self._etcd.all(f"{self._prefix}states/"):
            with understood(found.key):
                end = self._read(found.key, found.value)[0].ends
                if end is not None and end <= now:
                    over.append(found)
                elif end is not None:
                    ends.append(end)

        def replace(found: KeyValue, transaction: Transaction) -> bool:
            transaction.need(found.key)
            isSame = transaction.get(found.key) == found.value
            return isSame and self._replace(transaction, found.key, StateRecord(self._nameOf(found.key)[1]))

        return await self._changeAll(over, replace), min(ends, default=None)

    async def drop(self, before: int) -> Collection[str]:
        def drop(found: KeyValue, transaction: Transaction) -> bool:
            serviceKey = f"{self._prefix}services/{'/'.join(self._nameOf(found.key))}"
            transaction.need(found.key, serviceKey)
            value = transaction.get(found.key)
            if value is None:
                return False
            record, since = self._read(found.key, value)
            isUsed = transaction.get(serviceKey) is not None
            if isUsed == (since is not None):
                # That is to be noted.
                self._put(transaction, found.key, record, None if isUsed else self._milliseconds())
            elif since is not None and since < before:
                return self._replace(transaction, found.key, StateRecord(record.id))
            return False

        return await self._changeAll(await self._etcd.all(f"{self._prefix}states/"), drop)

    async def _changeAll(
        self, records: Sequence[KeyValue], act: Callable[[KeyValue, Transaction], bool]
    ) -> Collection[str]:
        """Let *act* change records in small groups, so that others wait less; returns the tenants where it is true."""
        changed: set[str] = set()
        for begin in range(0, len(records), 2 * GROUP):
            changes: list[tuple[str, Deferred[bool]]] = []
            for each in records[begin : begin + 2 * GROUP]:
                with understood(each.key):
                    tenant, _ = self._nameOf(each.key)
                    changes.append((tenant, self._batches.do(tenant, partial(act, each))))
            for tenant, change in changes:
                # A record that cannot be changed now is tried again later.
                with suppress(StoreUnavailable):
                    if await change:
                        changed.add(tenant)
        return changed


@attrs.define(eq=False)
class EtcdUsers(Part):
    """
    A token names the revision in which its user got the key. With another key, or without the user, that is another
    revision: all tokens of a user end in the moment of one write. Each goes with a lease.
    """

    fields = {"tenant": str, "key": str}

    def _at(self, name: str) -> str:
        return f"{self._prefix}users/{name}"

    @property
    def guard(self) -> str:
        """The key that each new user changes, so that no two are given the same tenant."""
        return f"{self._prefix}lastuser"

    async def add(self, name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> UserRecord:
        # Each tenant that has an account, or has ever had an object, has a key in one of these.
        below = (self._at(""), f"{self._prefix}accounts/", f"{self._prefix}clocks/")
        while True:
            guards, revision = await self._etcd.range(self.guard)
            users, *tenants = [await self._etcd.all(each, revision=revision) for each in below]
            known = {each.name: each for each in map(self._user, users)}
            if name in known:
                raise ObjectExists(name)
            taken = {each.tenant for each in known.values()}
            taken.update(each.key.rpartition("/")[2] for found in tenants for each in found)
            own = tenant or next(number for number in map(str, range(1, len(taken) + 2)) if number not in taken)
            added = UserRecord(name, own, keyHash, role)
            value = self._value(added)
            done = await self._etcd.txn(
                [unchanged(self.guard, guards[0].modified if guards else 0)],
                [put(self._at(name), value), put(self.guard, value)],
                [reading(self._at(name))],
            )
            # A first try whose response was lost has made this very user: the hash is unique.
            if done.succeeded or any(each.value == value for each in done.found[0]):
                return added

    async def replaceKey(self, name: str, keyHash: str) -> UserRecord:
        return await self._change(name, keyHash=keyHash)

    async def changeRole(self, name: str, role: Role) -> UserRecord:
        return await self._change(name, role=role)

    async def _change(self, name: str, **changes: Any) -> UserRecord:
        while True:
            found = await self._found(name)
            user = attrs.evolve(self._user(found), **changes)
            value = self._value(user) if "keyHash" in changes else self._value(user, keyed=self._keyed(found))
            if (await self._etcd.txn([unchanged(found.key, found.modified)], [put(found.key, value)])).succeeded:
                return user

    async def remove(self, name: str) -> None:
        await self._etcd.txn((), [deletion((await self._found(name)).key)])

    async def get(self, name: str) -> UserRecord:
        return self._user(await self._found(name))

    async def all(self) -> list[UserRecord]:
        users: list[UserRecord] = []
        for each in await self._etcd.all(self._at("")):
            # One that is damaged keeps neither a registry from its start nor the others from being shown.
            with suppress(Unreadable):
                users.append(self._user(each))
        return users

    async def addToken(self, token: TokenRecord) -> None:
        revision = self._keyed(await self._etcd.get(self._at(token.user)))
        lease, _ = await self._etcd.grant(max(1, math.ceil(token.expires - self._wallClock())))
        kept = {"v": 1, "user": token.user, "tenant": token.tenant, "expires": token.expires, "revision": revision}
        await self._etcd.txn((), [put(f"{self._prefix}tokens/{token.tokenHash}", jsonBytes(kept), lease)])

    async def getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        found = await self._etcd.get(f"{self._prefix}tokens/{tokenHash}")
        if found is None:
            raise NoSuchObject("token")
        kept = readKept(found.key, found.value, _TOKEN)
        # Its user is looked at after it was, so that a key that was replaced before this call began is seen.
        user = await self._etcd.get(self._at(kept["user"]))
        if user is None or kept["revision"] != self._keyed(user) or kept["expires"] <= self._wallClock():
            raise NoSuchObject("token")
        return TokenRecord(tokenHash, kept["user"], kept["tenant"], kept["expires"]), self._user(user)

    async def removeToken(self, tokenHash: str) -> bool:
        key = f"{self._prefix}tokens/{tokenHash}"
        return not (await self._etcd.txn([unchanged(key, 0)], (), [deletion(key)])).succeeded

    def _user(self, found: KeyValue) -> UserRecord:
        kept, name = self._kept(found.key, found.value), found.key.removeprefix(self._at(""))
        return UserRecord(name, kept["tenant"], kept["key"], Role(**kept.get("role", {})))

    def _value(self, user: UserRecord, **more: int) -> bytes:
        return jsonBytes({"v": 1, "tenant": user.tenant, "key": user.keyHash, "role": user.role.asJson(), **more})

    async def _found(self, name: str) -> KeyValue:
        found = await self._etcd.get(self._at(name))
        if found is None:
            raise NoSuchObject(name)
        return found

    def _keyed(self, found: KeyValue | None) -> int:
        """The revision in which a user got the key: the last one, unless the role was changed since."""
        return 0 if found is None else self._kept(found.key, found.value).get("keyed", found.modified)
