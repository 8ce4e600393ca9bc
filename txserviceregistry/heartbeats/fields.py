"""
The fields that a service should have, as the application gave and updated them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..util.fields import HOST_KEYS, PORT_KEYS, checkedMetadata, checkedTags, checkedTimeout

#: The fields of a service that can be updated, by their names in the protocol.
FIELDS = ("heartbeat_timeout", "tags", "metadata")
_DEFAULTS: Mapping[str, Any] = {"tags": [], "metadata": {}}


def wantsHost(metadata: Mapping[str, str] | None) -> bool:
    """Whether *metadata* has a port and no address, so that the address is determined automatically."""
    if not metadata:
        return False
    return any(key in metadata for key in PORT_KEYS) and not any(key in metadata for key in HOST_KEYS)


def plain(value: Any) -> Any:
    """A field as the registry returns it."""
    return list(value) if isinstance(value, tuple) else value


def comparable(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields with their defaults, each as the registry returns it."""
    given = {name: plain(fields[name]) for name in FIELDS if fields.get(name) is not None}
    return {**_DEFAULTS, **given}


class DesiredFields:
    """
    The fields that one service should have.

    :param heartbeatTimeout: in seconds.
    :param payload: ``tags`` and ``metadata``, both optional.
    :ivar fields: ``heartbeat_timeout``, and ``tags`` and ``metadata`` where they were given. Replaced, never changed.
    :ivar accepted: those that the registry accepted last, to fall back on.
    :ivar host: the address that was determined automatically. It is sent with a *metadata* that :func:`wantsHost`, and
        never becomes part of it.
    :ivar onChange: called when *fields* has changed.
    """

    def __init__(self, heartbeatTimeout: int, payload: Mapping[str, Any] | None = None) -> None:
        self.fields: Mapping[str, Any] = {**(payload or {}), "heartbeat_timeout": heartbeatTimeout}
        self.accepted: Mapping[str, Any] = self.fields
        self.host: str | None = None
        self.onChange: Callable[[], object] | None = None

    @property
    def heartbeatTimeout(self) -> int:
        """The desired heartbeat timeout, in seconds."""
        timeout: int = self.fields["heartbeat_timeout"]
        return timeout

    def wire(self) -> Mapping[str, Any]:
        """The fields to send: with the host that was determined automatically."""
        metadata = self.fields.get("metadata")
        if self.host is None or not wantsHost(metadata):
            return self.fields
        return {**self.fields, "metadata": {**(metadata or {}), "host": self.host}}

    def change(self, changes: Mapping[str, Any]) -> None:
        """Desire other values for some fields."""
        if changes:
            self._replace({**self.fields, **changes})

    def takeBack(self, refused: Mapping[str, Any]) -> bool:
        """
        Undo the changes that the registry has *refused*: desire again what it accepted last.

        :return: whether that changes anything.
        """
        fields = dict(self.fields)
        for name, value in refused.items():
            if name in fields and fields[name] is value and value is not self.accepted.get(name):
                del fields[name]
                if name in self.accepted:
                    fields[name] = self.accepted[name]
        if fields == self.fields:
            return False
        self._replace(fields)
        return True

    def _replace(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        if self.onChange is not None:
            self.onChange()

    def understood(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an update's *payload*; none if one is not valid, which the registry will report."""
        changes: dict[str, Any] = {}
        try:
            if "tags" in payload:
                changes["tags"] = checkedTags(payload["tags"] if payload["tags"] is not None else ())
            if "metadata" in payload:
                changes["metadata"] = self._withoutOwnHost(checkedMetadata(payload["metadata"]))
            if "heartbeat_timeout" in payload:
                timeout = payload["heartbeat_timeout"]
                changes["heartbeat_timeout"] = checkedTimeout(float(timeout) if isinstance(timeout, str) else timeout)
        except (TypeError, ValueError):
            return {}
        return changes

    def _withoutOwnHost(self, metadata: dict[str, str]) -> dict[str, str]:
        """
        Metadata without the host that was determined automatically, which they contain if they were read from the
        registry. It must not stay when the address changes.
        """
        if self.host is None or metadata.get("host") != self.host or not wantsHost(self.fields.get("metadata")):
            return metadata
        return {key: value for key, value in metadata.items() if key != "host"}
