"""
Scopes: which services or locks an id is unique among.

Deadlines, heartbeat tokens and votes treat locks as they treat services. To keep them apart, each tenant has two
scopes: that of its services, which is the tenant's number, and that of its locks, where ids are the names of locks.
"""

from __future__ import annotations

_LOCKS = "/locks"


def lockScope(tenant: str) -> str:
    return tenant + _LOCKS


def isLockScope(scope: str) -> bool:
    return scope.endswith(_LOCKS)


def tenantOf(scope: str) -> str:
    return scope.removesuffix(_LOCKS)


def kindOf(scope: str) -> str:
    """The kind of the objects in a scope, as faults call it."""
    return "Lock" if isLockScope(scope) else "Service"
