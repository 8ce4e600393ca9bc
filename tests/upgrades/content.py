"""The content of a release's data: something of every kind that a store keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import gatherResults

from txserviceregistry.registry.model import NewLock, NewService, Precondition, ServiceChanges
from txserviceregistry.registry.roles import Role
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
    IOwnStore,
    NoSuchObject,
    StateRecord,
    TokenRecord,
)

#: When the data was made, in seconds since the epoch.
NOW = 1_796_000_000.0
TENANTS = ("1", "2", "lonely")
TOKEN = "8bada22220649ffbb3b501469ffe359abbd5c77c7869ac0bcecd3875b1be0c7f"
_MANY = 1000


async def fill(store: Any, tick: Callable[[], object]) -> None:
    """Put data of every kind into an empty store; *tick* moves its wall clock by a second."""
    await store.addUser("local", "a" * 64, None)
    await store.addUser("joe", "b" * 64, "2", Role("read"))
    await store.addUser("jim", "c" * 64, "2", Role(services=("web",), configuration=("/production",), locks=("job",)))
    await store.addUser("gone", "d" * 64, "lonely")
    await store.removeUser("gone")
    await store.replaceUserKey("local", "e" * 64)
    await store.addToken(TokenRecord(TOKEN, "local", "1", NOW + 86_400))
    for tenant in TENANTS[:2]:
        tick()
        for id in ("web1", "web2", "removed", "expired"):
            new = NewService(id, 30, ("www", "données, €"), {"host": "192.0.2.1", "port": "8000", "größe": "€"})
            service = await store.createService(tenant, new, _MANY)
        tick()
        web2 = await store.getService(tenant, "web2")
        await store.updateService(tenant, "web2", web2.incarnation, ServiceChanges(60, ("db",), {}))
        removed = await store.getService(tenant, "removed")
        await store.removeService(tenant, "removed", removed.incarnation)
        if IOwnStore.providedBy(store):
            await store.expireServices([Expiration(tenant, "expired", service.incarnation, int(NOW * 1000))])
        else:
            # There it takes a vote.
            await store.removeService(tenant, "expired", service.incarnation)
        await store.setState(tenant, StateRecord("web1", "drain", "upgrade, ä", int(NOW * 1000) + 3_600_000), _MANY)
        await store.setState(tenant, StateRecord("unknown", "out"), _MANY)
        for number in range(3):
            position = await store.setValue(tenant, "/production/www/workers", str(number), _MANY)
        await store.setValue(tenant, "listen_ip", "größe €", _MANY)
        await store.setValue(tenant, "removed", "1", _MANY)
        await store.removeValue(tenant, "removed")
        await store.setValue(
            tenant, "/production/www/workers", "9", _MANY, Precondition(True, frozenset([str(position)]))
        )
        # Some stores keep simultaneous changes as a group.
        await gatherResults([store.setValue(tenant, f"group{number}", str(number), _MANY) for number in range(10)])
        held = NewLock("job", 15, "host1", "n" * 22, {"pid": "1"})
        await store.acquireLock(tenant, held, _MANY, int(NOW * 1000), 0)
        forced = await store.acquireLock(tenant, NewLock("job2", 15, "host2"), _MANY, int(NOW * 1000), 0)
        await store.forceLock(tenant, "job2", forced.incarnation)
        released = await store.acquireLock(tenant, NewLock("job3", 15), _MANY, int(NOW * 1000), 0)
        await store.releaseLock(tenant, "job3", released.incarnation, False)


async def shown(store: Any) -> dict[str, Any]:
    """All that is in a store, as JSON has it."""
    try:
        token: Any = _plain((await store.getToken(TOKEN))[0])
    except NoSuchObject:
        token = None
    found: dict[str, Any] = {
        "secret": (await store.secret()).hex(),
        "users": sorted(map(_plain, await store.listUsers()), key=lambda each: each["name"]),
        "token": token,
    }
    for tenant in TENANTS:
        try:
            created = await store.account(tenant)
        except NoSuchObject:
            created = None
        found[tenant] = {
            "created": created,
            "services": list(map(_plain, await store.listServices(tenant, None, _MANY, None, (), True))),
            "states": list(map(_plain, await store.listStates(tenant, None, _MANY))),
            "values": list(map(_plain, await store.listValues(tenant, None, _MANY, None))),
            "locks": list(map(_plain, await store.listLocks(tenant, None, _MANY, ()))),
            "events": [each.shown for each in await store.listEvents(tenant, 0, _MANY, None)],
        }
    return found


def _plain(record: Any) -> dict[str, Any]:
    return attrs.asdict(
        record, value_serializer=lambda _, __, value: list(value) if isinstance(value, tuple) else value
    )
