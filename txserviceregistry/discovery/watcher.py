"""ConfigurationWatcher: configuration values as they are now."""

from __future__ import annotations

import os
import random as randomModule
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from ..api.shapes import readConfigurationValue
from ..client import Client
from ..types import Event
from ..util.deferred import returnsDeferred
from .mirror import Mirror
from .subscriber import Items


@attrs.frozen
class ConfigurationChange:
    """A value that has changed: its key, in full, and the old and the new value; ``None`` where there is none."""

    key: str
    old: str | None
    new: str | None


class ConfigurationWatcher(Mirror[str], Mapping[str, str]):
    """
    The configuration values below a namespace, as a mapping that is kept current::

        watcher = ConfigurationWatcher(client, "/production/www")
        watcher.setServiceParent(application)
        watcher.onKey("/production/www/workers", lambda workers: pool.resize(int(workers or 1)))

        async for change in watcher.changes():
            print(change.key, change.old, "->", change.new)

    Keys are in full. While the registry is unreachable the mapping keeps its values, and :attr:`stale` says for how
    long.
    """

    what = "configuration values"
    # A mapping compares by what is in it; a service is itself and nothing else.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        client: Client,
        namespace: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        random: Callable[[], float] = randomModule.random,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after the watcher has stopped.
        :param namespace: such as ``/production/www``; ``/`` for all that have one, and all values if not given.
        :param path: a file that keeps the values, for a start while the registry is unreachable.
        :param random: returns numbers from 0 to 1.
        :param wallClock: seconds since the epoch.
        """
        super().__init__(client, None, path, random, wallClock)
        self.namespace = None if namespace is None else _normal(namespace)

    def __getitem__(self, key: str) -> str:
        return self._known()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known()))

    def __len__(self) -> int:
        return len(self._known())

    def onChange(self, listener: Callable[[Any], object], *, settle: float | None = None) -> Callable[[], None]:
        """
        Call *listener* with every change from now on, the first listing included.

        :param listener: called with a :class:`ConfigurationChange`.
        :param settle: seconds to wait for further changes, so that values that are changed together are seen together.
            Then *listener* is called once, with a list of the changes, when nothing has changed for so long; at most
            four times as long after the first change, and at a stop.
        :return: a function that removes the listener.
        """
        return self._listen(listener, settle)

    def onKey(
        self, key: str, listener: Callable[[str | None], object], *, settle: float | None = None
    ) -> Callable[[], None]:
        """
        Call *listener* with the new value of one key, given in full, when it changes; with ``None`` when it was
        removed. For *settle* and the result see :meth:`onChange`; it is called with the last value.
        """

        def changed(found: Any) -> None:
            listener((found if settle is None else found[-1]).new)

        return self._listen(changed, settle, lambda change: change.key == key)

    def onNamespace(
        self, namespace: str, listener: Callable[[Any], object], *, settle: float | None = None
    ) -> Callable[[], None]:
        """Do as :meth:`onChange` does, but for values below a namespace only, such as ``/production/www``."""
        within = _normal(namespace)
        return self._listen(listener, settle, lambda change: _isWithin(change.key, within))

    def changes(self) -> AsyncIterator[ConfigurationChange]:
        """
        The changes from now on, until the watcher is stopped. Changes wait while the loop is busy. To end it earlier,
        close the iterator with ``aclose()`` or drop it. It raises :class:`~txserviceregistry.errors.NotRunning` if the
        watcher is not running, and is not the child of a service that will start it.
        """
        return Items(self, lambda put: self.onChange(lambda change: put(change).addErrback(lambda _: None)))

    @returnsDeferred
    async def _list(self) -> dict[str, str]:
        values = self._client.configuration.iterate(self.namespace)
        return {item["id"]: item["value"] async for item in values}

    def _checked(self, key: str, value: Any) -> str:
        return readConfigurationValue({"id": key, "value": value})["value"]

    def _keyOf(self, event: Event) -> str | None:
        if event["type"] not in ("configuration_value.update", "configuration_value.remove"):
            return None
        key: str = event["payload"]["configuration_value_id"]
        return key if self.namespace is None or _isWithin(key, self.namespace) else None

    def _after(self, event: Event, value: str | None) -> str | None:
        return None if event["type"] == "configuration_value.remove" else event["payload"]["new_value"]

    def _changed(self, key: str, old: str | None, new: str | None, events: Sequence[Event]) -> None:
        self._listeners.call(ConfigurationChange(key, old, new))


def _normal(namespace: str) -> str:
    return f"/{namespace.strip('/')}"


def _isWithin(key: str, namespace: str) -> bool:
    return key == namespace or key.startswith(namespace if namespace == "/" else f"{namespace}/")
