"""
Coordination: locks, leader election and the partitioning of work, for all processes that use a registry.

The names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from ..util.lazynames import lazyNames

if TYPE_CHECKING:
    from .election import Election, Leadership
    from .lock import Held, Lock
    from .partitioner import Assignment, Partitioner

__all__ = ["Assignment", "Election", "Held", "Leadership", "Lock", "Partitioner"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazyNames(
        __name__,
        {
            "Assignment": "partitioner",
            "Election": "election",
            "Held": "lock",
            "Leadership": "election",
            "Lock": "lock",
            "Partitioner": "partitioner",
        },
    )
