"""
Roles: what a user may change. Every user reads everything of the tenant. With one or more prefixes, a user of the role
``write`` changes only objects that match one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from .faults import forbidden

NAMES = ("write", "read")
#: The kinds of objects, as in the paths of the API; a role has an attribute with the prefixes of each.
SERVICES, CONFIGURATION, LOCKS = KINDS = ("services", "configuration", "locks")

# The characters of a prefix of each kind, and the sentence about them.
_IDS = (r"[A-Za-z0-9_\-.]{0,65}", "0 to 65 letters, digits and _-.")
_KEYS = (r"[A-Za-z0-9_\-./]{0,500}", "0 to 500 letters, digits and _-./")
_RULES = {SERVICES: _IDS, CONFIGURATION: _KEYS, LOCKS: _KEYS}
# How many prefixes of a kind a refusal shows.
_MOST_SHOWN = 3


def checkPrefix(kind: str, prefix: str) -> str:
    """Check a prefix, which is returned. The ValueError says what is allowed."""
    pattern, allowed = _RULES[kind]
    if not re.fullmatch(pattern, prefix):
        raise ValueError(f"invalid prefix {prefix!r} of {kind}: use {allowed}")
    return prefix


@attrs.frozen
class Role:
    """A user's permitted changes, as prefixes: those of keys match a key and those below it, and an empty one all."""

    name: str = attrs.field(default="write", validator=attrs.validators.in_(NAMES))
    services: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    configuration: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    locks: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])

    def __attrs_post_init__(self) -> None:
        if self.name == "read" and any(self.prefixes().values()):
            raise ValueError("the role read changes nothing, so that it takes no prefixes")

    @property
    def isLimited(self) -> bool:
        return self.name == "read" or bool(self.services or self.configuration or self.locks)

    def prefixes(self) -> Mapping[str, tuple[str, ...]]:
        return {SERVICES: self.services, CONFIGURATION: self.configuration, LOCKS: self.locks}

    def mayChange(self, kind: str, key: str) -> bool:
        """Whether it may create, change or remove the object of this *kind* with this *key*."""
        if not self.isLimited:
            return True
        if kind == CONFIGURATION:
            return any(not each or f"{key}/".startswith(each.removesuffix("/") + "/") for each in self.configuration)
        return key.startswith(self.prefixes()[kind])

    def check(self, kind: str, key: str) -> None:
        """:raises Fault: 403 if it may not change this object."""
        if self.mayChange(kind, key):
            return
        if self.name == "read":
            raise forbidden("This user may only read (its role is read)")
        parts = []
        for kind, prefixes in self.prefixes().items():
            if prefixes:
                more = f" and {len(prefixes) - _MOST_SHOWN} more" if len(prefixes) > _MOST_SHOWN else ""
                shown = ", ".join(f'"{prefix}"' for prefix in prefixes[:_MOST_SHOWN])
                where = "below" if kind == CONFIGURATION else "that begin with"
                parts.append(f"{kind} {where} {shown}{more}")
        raise forbidden(f"This user may only change {'; '.join(parts)}")

    def asJson(self) -> dict[str, Any]:
        """The role for a store: what is not the default."""
        return attrs.asdict(self, filter=lambda field, value: value != field.default)


#: The role of a user that was given none.
WRITE = Role()
