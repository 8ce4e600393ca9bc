"""
Outlier ejection: instances that could not be connected to are not picked for a while.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import attrs
from twisted.internet.interfaces import IReactorTime

from .instances import Instance, Key

#: Seconds of an instance's first ejection, and of the longest one.
FIRST_EJECTION = 1.0
LONGEST_EJECTION = 60.0


@attrs.frozen
class _Failures:
    """The number of failures in a row, and the times of the last one and of the ejection's end."""

    count: int = 0
    last: float = -math.inf
    end: float = -math.inf


class Ejections:
    """
    The instances that have failed lately.

    An instance is ejected for a second, after its next failure in a row for two, then four, up to a minute. A success
    ends the row.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures: dict[Key, _Failures] = {}

    def failed(self, instance: Instance) -> None:
        """*instance* could not be connected to."""
        now = self._clock.seconds()
        before = self._failures.get(instance.key, _Failures())
        count, end = before.count, before.end
        if now >= end:
            # Failures during an ejection have the same cause.
            end = now + min(FIRST_EJECTION * 2.0 ** min(count, 62), LONGEST_EJECTION)
            count += 1
        self._failures[instance.key] = _Failures(count, now, end)

    def succeeded(self, instance: Instance) -> None:
        """*instance* could be connected to."""
        self._failures.pop(instance.key, None)

    def ejected(self) -> frozenset[Key]:
        """The instances that are ejected now."""
        now = self._clock.seconds()
        return frozenset(key for key, failures in self._failures.items() if failures.end > now)

    def lastFailure(self, instance: Instance) -> float:
        """When *instance* failed last; minus infinity if it has not."""
        return self._failures.get(instance.key, _Failures()).last

    def keepOnly(self, keys: Collection[Key]) -> None:
        """Forget the failures of all other instances: one that comes back begins anew."""
        self._failures = {key: failures for key, failures in self._failures.items() if key in keys}
