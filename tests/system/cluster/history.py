"""
Histories of what clients asked of a cluster, and whether any order of it explains what they were answered.

The search is that of Wing and Gong (*Testing and verifying concurrent objects*, 1993), one object at a time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import attrs

__all__ = ["UNKNOWN", "Operation", "Registration", "isLinearizable", "wrongOf"]

#: The outcome of an operation that had no response, or one that says that it may have been done.
UNKNOWN = "unknown"


@attrs.frozen
class Operation:
    """
    One operation on one object, whose state is its value; ``None`` while it does not exist.

    :ivar kind: ``get``, ``set``, ``swap`` (set if the value is *expected*), ``create`` or ``remove``.
    :ivar outcome: of a ``get`` the value; of others whether they were done; :data:`UNKNOWN`.
    :ivar begin: when the request was sent.
    :ivar end: when the response had come.
    """

    kind: str
    outcome: object
    begin: float
    end: float
    value: str | None = None
    expected: str | None = None

    def follows(self, state: str | None) -> tuple[bool, str | None]:
        """Whether the outcome is right in a state, and the state afterwards."""
        if self.kind == "get":
            return self.outcome == state, state
        isDone, after = {
            "set": (True, self.value),
            "swap": (state == self.expected, self.value),
            "create": (state is None, self.value),
            "remove": (state is not None, None),
        }[self.kind]
        return self.outcome in (isDone, UNKNOWN), after if isDone else state


def isLinearizable(operations: Iterable[Operation]) -> bool:
    """
    Whether some order, in which none comes before one that had ended when it began, explains all outcomes.

    An operation with an unknown outcome may have been done at any moment since it began, or never.
    """
    # A read that had no response says nothing.
    given = [each for each in operations if each.kind != "get" or each.outcome != UNKNOWN]
    ordered = [attrs.evolve(each, end=math.inf) if each.outcome == UNKNOWN else each for each in given]
    ordered.sort(key=lambda each: each.begin)
    certain = sum(1 << number for number, each in enumerate(ordered) if each.outcome != UNKNOWN)
    left: list[tuple[int, str | None]] = [(0, None)]
    seen: set[Hashable] = set(left)
    while left:
        done, state = left.pop()
        if done & certain == certain:
            return True
        open_ = [(number, each) for number, each in enumerate(ordered) if not done >> number & 1]
        first = min(each.end for _, each in open_)
        for number, each in open_:
            if each.begin > first:
                break
            isRight, after = each.follows(state)
            following = done | 1 << number, after
            if isRight and following not in seen:
                seen.add(following)
                left.append(following)
    return False


@attrs.define
class Registration:
    """
    A registered service.

    :ivar heartbeats: when its acknowledged heartbeats were sent, the registration itself among them.
    :ivar expired: when its expirations were seen in the feed.
    :ivar missing: when a heartbeat was first answered with 404.
    """

    id: str
    timeout: float
    heartbeats: list[float] = attrs.Factory(list)
    expired: list[float] = attrs.Factory(list)
    missing: float | None = None

    def wrong(self) -> str | None:
        """What breaks the promises of heartbeats; ``None`` if nothing does."""
        if len(self.expired) > 1:
            return f"{self.id} expired {len(self.expired)} times"
        for expired in self.expired:
            # A heartbeat is processed after it was sent, and an expiration is committed before it is seen.
            left = self.timeout - (expired - max(self.heartbeats))
            if max(self.heartbeats) > expired:
                return f"{self.id}: a heartbeat was acknowledged that was sent after the expiration"
            if left > 0.02 * self.timeout:
                return f"{self.id} expired {left:.2f} s too early"
        if self.missing is not None and self.missing < max(self.heartbeats):
            return f"{self.id}: a heartbeat was acknowledged after a 404"
        return None


def wrongOf(registrations: Sequence[Registration]) -> list[str]:
    """What is wrong with any of them."""
    return [wrong for each in registrations if (wrong := each.wrong()) is not None]
