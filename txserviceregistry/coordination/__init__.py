"""Coordination: locks, leader election and the partitioning of work, for all processes that use a registry."""

from .contenders import Assignment, Election, Leadership, Partitioner
from .lock import Held, Lock

__all__ = ["Assignment", "Election", "Held", "Leadership", "Lock", "Partitioner"]
