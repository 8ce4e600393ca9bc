"""
A store between a registry and another store, whose answers a test can hold back, lose, or replace by failures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from txserviceregistry.registry.stores.interfaces import StoreUnavailable


@attrs.define
class HeldCall:
    """
    A call of the store that is waiting.

    :ivar name: the operation.
    :ivar arguments: what it was called with.
    """

    name: str
    arguments: tuple[Any, ...]
    _act: Callable[[], Deferred[Any]]
    _answer: Deferred[Any] = attrs.field(factory=Deferred)

    def release(self) -> None:
        """Let the store act, if it has not, and let its answer through."""
        self._act().chainDeferred(self._answer)

    def refuse(self) -> None:
        """The answer is that the store can't be reached, whatever it did."""
        self._answer.errback(StoreUnavailable("held, and then refused"))


class HeldStore:
    """
    Passes all operations on to *store*, except those that are to be held.

    :ivar calls: how often each operation was called.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._before: dict[str, list[HeldCall]] = {}
        self._after: dict[str, list[HeldCall]] = {}
        self._losing: list[str] = []
        self._broken: dict[str, Exception] = {}
        self.calls: Counter[str] = Counter()

    def hold(self, name: str, *, acts: bool = False) -> list[HeldCall]:
        """
        Hold the calls of an operation back from now on.

        :param acts: the store acts at once, and only its answers are held back.
        :return: a list that those which wait are put into.
        """
        return (self._after if acts else self._before).setdefault(name, [])

    def pass_(self, name: str) -> None:
        """Hold no more calls of this operation back."""
        self._before.pop(name, None)
        self._after.pop(name, None)

    def loseAnswer(self, name: str) -> None:
        """The store acts on the next call, but says that it can't be reached."""
        self._losing.append(name)

    def breakDown(self, name: str, error: Exception) -> None:
        """The operation fails with *error* from now on, and the store does not act."""
        self._broken[name] = error

    def repair(self, name: str) -> None:
        """The operation works again."""
        del self._broken[name]

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)
        if not callable(operation):
            return operation

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if name in self._broken:
                return fail(self._broken[name])
            if name in self._losing:
                self._losing.remove(name)
                operation(*arguments)
                return fail(StoreUnavailable("the answer was lost"))
            if name in self._before:
                return _wait(self._before[name], name, arguments, lambda: operation(*arguments))
            if name in self._after:
                outcome: list[Any] = []
                operation(*arguments).addBoth(outcome.append)
                return _wait(self._after[name], name, arguments, lambda: _fired(outcome[0]))
            return operation(*arguments)

        return call


def _wait(
    held: list[HeldCall], name: str, arguments: tuple[Any, ...], act: Callable[[], Deferred[Any]]
) -> Deferred[Any]:
    call = HeldCall(name, arguments, act)
    held.append(call)
    return call._answer


def _fired(outcome: Any) -> Deferred[Any]:
    answer: Deferred[Any] = Deferred()
    if isinstance(outcome, Failure):
        answer.errback(outcome)
    else:
        answer.callback(outcome)
    return answer
