"""
The version of the data in etcd, and its conversion from an earlier version.

Version 1 kept services alive by leases. A node of that version cannot share etcd with nodes of this one: the conversion
waits until it is gone, and an old node that starts afterwards refuses to work.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from math import inf
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ....util.logs import Logger
from ...eventids import newTail
from ..interfaces import StoreRefused, StoreUnavailable
from .gateway import PAGE, Etcd, KeyValue, Revision, deletion, endOf, jsonBytes, newLease, put, reading, unchanged
from .kept import readKept
from .votes import VERSION

_log = Logger()

#: Seconds that the keys of nodes that have ended may still be there, and between two looks.
_GONE = 8.0
_PAUSE = 0.5
#: Seconds after which another node may go on with a conversion whose node has ended.
_CONVERTER = 10
_GROUP = 100


async def openLayout(etcd: Etcd, clock: IReactorTime, prefix: str) -> Mapping[str, Any]:
    """
    Make sure that the data in etcd has this version; returns the registry's secret and the tail of its event ids. Fails
    with :class:`StoreRefused` if it has an unknown version, or nodes of version 1 are running.
    """
    key = f"{prefix}meta"
    new = {"v": VERSION, "secret": secrets.token_hex(32), "tail": newTail()}
    done = await etcd.txn([unchanged(key, 0)], [put(key, jsonBytes(new)), reading(key)], [reading(key)])
    found = next(kept for kept in done.found if kept)[0]
    meta = readKept(key, found.value, {"v": int, "secret": str, "tail": str}, newest=inf)
    if meta.get("v") == 1 or meta.get("converting"):
        await _convert(etcd, clock, prefix, found, meta)
    elif meta.get("v") != VERSION:
        raise StoreRefused(f"the data in etcd below {prefix} was written by another release (version {meta.get('v')})")
    return meta


async def _convert(etcd: Etcd, clock: IReactorTime, prefix: str, found: KeyValue, meta: Mapping[str, Any]) -> None:
    lock, lease = f"{prefix}converting", newLease()
    await etcd.grant(lease, _CONVERTER)
    taken = await etcd.txn([unchanged(lock, 0)], [put(lock, b"1", lease)])
    if not taken.succeeded:
        await etcd.revoke(lease)
        raise StoreUnavailable("another node is converting the data in etcd")
    try:
        meta = {**meta, "v": VERSION}
        if "converting" not in meta:
            await _takeOver(etcd, clock, prefix, found, {**meta, "converting": True})
        await etcd.txn((), [deletion(f"{prefix}alive/", endOf(f"{prefix}alive/"))])
        seen = await etcd.all(f"{prefix}seen/")
        for begin in range(0, len(seen), _GROUP):
            # Written again, they have no lease.
            await etcd.keepAlive(lease)
            group = seen[begin : begin + _GROUP]
            for each in group:
                await etcd.txn([unchanged(each.key, each.modified)], [put(each.key, each.value)])
        await etcd.txn((), [put(found.key, jsonBytes({name: meta[name] for name in ("v", "secret", "tail")}))])
        _log.info("Data in etcd below {prefix} converted to version {version}", prefix=prefix, version=VERSION)
    finally:
        await etcd.revoke(lease)


async def _takeOver(etcd: Etcd, clock: IReactorTime, prefix: str, found: KeyValue, meta: Mapping[str, Any]) -> None:
    """Write the new version, unless a node of version 1 is running."""
    nodes = f"{prefix}nodes/"
    conditions = [unchanged(found.key, found.modified), unchanged(nodes, 0, Revision.created, endOf(nodes))]
    end = clock.seconds() + _GONE
    while True:
        done = await etcd.txn(conditions, [put(found.key, jsonBytes(meta))], [reading(nodes, endOf(nodes), PAGE)])
        if done.succeeded:
            return
        running = len(done.found[0])
        if not running:
            raise StoreUnavailable("another node has converted the data in etcd")
        if clock.seconds() > end:
            raise StoreRefused(
                f"{running} node(s) of an earlier release use the data in etcd below {prefix}: stop them first"
            )
        await deferLater(clock, _PAUSE)
