"""Functions to call when something happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec

from .logs import Logger

_P = ParamSpec("_P")


class Listeners(Generic[_P]):
    """
    Functions to call in the order in which they were added. Each may add and end others.

    :param what: the subject, for the log: "changes of the directory".
    """

    __slots__ = ("_entries", "_log", "_what")

    def __init__(self, log: Logger, what: str) -> None:
        self._log = log
        self._what = what
        # A key for each, because the same function may be added twice.
        self._entries: dict[object, Callable[_P, object]] = {}

    def add(self, listener: Callable[_P, object]) -> Callable[[], None]:
        """Call *listener* from now on, until the function that is returned is called."""
        key = object()
        self._entries[key] = listener

        def end() -> None:
            self._entries.pop(key, None)

        return end

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Callable[_P, object]]:
        """The present listeners, except those that end before their turn."""
        for key in tuple(self._entries):
            listener = self._entries.get(key)
            if listener is not None:
                yield listener

    def call(self, *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Call all of them. The error of one is logged, and the others are called all the same."""
        for listener in self:
            try:
                listener(*args, **kwargs)
            except Exception:
                self._log.failure("Listener to {what} failed", what=self._what)
