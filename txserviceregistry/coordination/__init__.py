"""Coordination: locks, leader election and the partitioning of work, for all processes that use a registry."""

from .election import Election, Leadership
from .lock import Held, Lock
from .partitioner import Assignment, Partitioner

__all__ = ["Assignment", "Election", "Held", "Leadership", "Lock", "Partitioner"]
