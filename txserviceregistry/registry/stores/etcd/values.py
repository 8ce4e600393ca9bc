"""Configuration values in etcd, each under a key of its own."""

from __future__ import annotations

import attrs

from ....util.deferred import returnsDeferred
from ...model import UNCONDITIONAL, Precondition
from .. import payloads
from ..interfaces import LimitExceeded, NoSuchObject, PreconditionFailed, ValueRecord
from .batches import Transaction
from .gateway import endOf, jsonBytes, reading
from .kept import readKept
from .part import Part


@attrs.define(eq=False)
class EtcdValues(Part):
    def _key(self, tenant: str, key: str) -> str:
        return f"{self._prefix}values/{tenant}/{key}"

    @returnsDeferred
    async def get(self, tenant: str, key: str) -> ValueRecord:
        found = await self._etcd.get(self._key(tenant, key))
        if found is None:
            raise NoSuchObject(key)
        return _record(found.key, key, found.value)

    @returnsDeferred
    async def list(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[ValueRecord]:
        prefix = self._key(tenant, "")
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
        found = [each for kept in done.found for each in kept]
        return [_record(each.key, each.key[len(prefix) :], each.value) for each in found[:count]]

    @returnsDeferred
    async def set(
        self, tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> int:
        at = self._key(tenant, key)

        def change(transaction: Transaction) -> int:
            old = self._allowed(tenant, key, transaction, precondition)
            if old is not None and old.value == value:
                return old.position
            if old is None:
                if transaction.clock.values >= maximum:
                    raise LimitExceeded(maximum)
                transaction.clock.values += 1
            payload = payloads.updatedValue(key, None if old is None else old.value, value)
            position = transaction.addEvent("configuration_value.update", payload)
            transaction.put(at, jsonBytes({"v": 1, "value": value, "position": position}))
            return position

        return await self._batches.do(tenant, [at], change)

    @returnsDeferred
    async def remove(self, tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> None:
        at = self._key(tenant, key)

        def change(transaction: Transaction) -> None:
            old = self._allowed(tenant, key, transaction, precondition)
            if old is None:
                raise NoSuchObject(key)
            transaction.delete(at)
            transaction.clock.values -= 1
            transaction.addEvent("configuration_value.remove", payloads.removedValue(key, old.value))

        await self._batches.do(tenant, [at], change)

    def _allowed(
        self, tenant: str, key: str, transaction: Transaction, precondition: Precondition
    ) -> ValueRecord | None:
        """The value that is to be written; ``None`` if there is none."""
        kept = transaction.get(self._key(tenant, key))
        old = None if kept is None else _record(self._key(tenant, key), key, kept)
        position = None if old is None else old.position
        if not precondition.allows(position):
            raise PreconditionFailed(position)
        return old


def _record(at: str, key: str, value: bytes) -> ValueRecord:
    kept = readKept(at, value, {"value": str})
    return ValueRecord(key, kept["value"], kept.get("position", 0))
