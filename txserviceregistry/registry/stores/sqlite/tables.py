"""
All tables of the SQLite file, through one connection.
"""

from __future__ import annotations

from .events import Events
from .locks import LockTables
from .services import Services
from .users import Users
from .values import Values


class Tables(Services, Values, Events, Users, LockTables):
    """A connection to the file, and what the operations of a store do through it."""
