"""All tables of the SQLite file, through one connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from ..interfaces import StoreError
from .events import Events
from .locks import LockTables
from .services import Services
from .users import Users
from .values import Values

_C = TypeVar("_C")
_T = TypeVar("_T")


class Tables(Services, Values, Events, Users, LockTables):
    """A connection to the file, and what the operations of a store do through it."""


#: Makes many changes of one kind, each described by a value; returns what became of each.
Together: TypeAlias = Callable[[Tables, Sequence[_C]], Sequence[_T | StoreError]]


def alone(together: Together[_C, _T], change: _C) -> Callable[[Tables], _T]:
    """An operation that makes one *change* without others of its kind."""

    def make(tables: Tables) -> _T:
        (outcome,) = together(tables, [change])
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    return make
