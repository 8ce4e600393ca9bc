"""
Coordination: locks that one process at a time holds, in all processes that use a registry.

The names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from ..util.lazynames import lazyNames

if TYPE_CHECKING:
    from .lock import Held, Lock

__all__ = ["Held", "Lock"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazyNames(__name__, {"Held": "lock", "Lock": "lock"})
