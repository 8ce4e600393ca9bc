"""
Configuration values in etcd, each under a key of its own.
"""

from __future__ import annotations

import json

from .. import payloads
from ..interfaces import LimitExceeded, NoSuchObject
from .batches import Batches, Transaction
from .gateway import Etcd, endOf, reading


class EtcdValues:
    """
    The configuration values of all tenants.

    :param etcd: where they are.
    :param groups: makes the changes.
    :param prefix: of all keys.
    """

    def __init__(self, etcd: Etcd, groups: Batches, prefix: str) -> None:
        self._etcd = etcd
        self._groups = groups
        self._prefix = f"{prefix}values/"

    def _at(self, tenant: str, key: str) -> str:
        return f"{self._prefix}{tenant}/{key}"

    async def get(self, tenant: str, key: str) -> str:
        found = await self._etcd.get(self._at(tenant, key))
        if found is None:
            raise NoSuchObject(key)
        return _textOf(found.value)

    async def list(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[tuple[str, str]]:
        prefix = self._at(tenant, "")
        below = "" if namespace is None else namespace.rstrip("/") + "/"
        reads = []
        if namespace not in (None, "/") and (marker or "") <= (namespace or ""):
            reads.append(reading(prefix + (namespace or "")))
        begin, end = prefix + max(marker or "", below), endOf(prefix + below)
        if begin < end:
            reads.append(reading(begin, end, count))
        if not reads:
            return []
        done = await self._etcd.txn((), reads)
        found = [each for kept in done.found for each in kept or ()]
        return [(each.key[len(prefix) :], _textOf(each.value)) for each in found[:count]]

    async def set(self, tenant: str, key: str, value: str, maximum: int) -> None:
        at = self._at(tenant, key)

        def change(transaction: Transaction) -> None:
            kept = transaction.get(at)
            oldValue = None if kept is None else _textOf(kept)
            if oldValue == value:
                return
            if oldValue is None:
                if transaction.clock.values >= maximum:
                    raise LimitExceeded(maximum)
                transaction.clock.values += 1
            transaction.put(at, json.dumps({"v": 1, "value": value}, separators=(",", ":")).encode("ascii"))
            transaction.addEvent("configuration_value.update", payloads.updatedValue(key, oldValue, value))

        await self._groups.do(tenant, [at], change)

    async def remove(self, tenant: str, key: str) -> None:
        at = self._at(tenant, key)

        def change(transaction: Transaction) -> None:
            kept = transaction.get(at)
            if kept is None:
                raise NoSuchObject(key)
            transaction.delete(at)
            transaction.clock.values -= 1
            transaction.addEvent("configuration_value.remove", payloads.removedValue(key, _textOf(kept)))

        await self._groups.do(tenant, [at], change)


def _textOf(value: bytes) -> str:
    text: str = json.loads(value)["value"]
    return text
