"""
One idiom for asynchronous code: coroutines inside, Deferreds at the public edge.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

__all__ = ["returnsDeferred"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def returnsDeferred(
    function: Callable[_P, Coroutine[Deferred[Any], Any, _T]],
) -> Callable[_P, Deferred[_T]]:
    """
    Let a coroutine function return a Deferred, which starts at once, like every other function of Twisted.

    Cancelling the Deferred cancels whatever the coroutine awaits at that moment.
    """

    @wraps(function)
    def asDeferred(*args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return asDeferred
