"""Batches of work: requests of one reactor turn are handled together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from .waiters import Waiters

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")


class Gathering(Generic[_K, _T]):
    """
    Collects keys during one reactor turn, and handles them together in the next.

    :param most: the largest batch.
    :param work: takes a batch and returns the result for each key. If it raises an exception, all of them fail with it.
    """

    def __init__(
        self, clock: IReactorTime, most: int, work: Callable[[Sequence[_K]], Awaitable[Mapping[_K, _T]]]
    ) -> None:
        self._clock = clock
        self._most = most
        self._work = work
        self._waiting: dict[_K, Waiters[_T]] = {}

    def do(self, one: _K) -> Deferred[_T]:
        """Add a key to the next batch, if it is not in it yet. Fires with its result; may be cancelled."""
        if not self._waiting:
            self._clock.callLater(0, self._begin)
        return self._waiting.setdefault(one, Waiters()).wait()

    def _begin(self) -> None:
        waiting, self._waiting = list(self._waiting.items()), {}
        for begin in range(0, len(waiting), self._most):
            Deferred.fromCoroutine(self._do(dict(waiting[begin : begin + self._most])))

    async def _do(self, waiting: Mapping[_K, Waiters[_T]]) -> None:
        try:
            outcomes: Mapping[_K, _T | Failure] = await self._work(list(waiting))
        except Exception:
            outcomes = dict.fromkeys(waiting, Failure())
        for one, waiters in waiting.items():
            waiters.fire(outcomes[one])
