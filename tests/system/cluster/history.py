"""
Histories of what clients asked of a cluster, and whether any order of it explains what they were answered.

The search is that of Wing and Gong (*Testing and verifying concurrent objects*, 1993), one object at a time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import attrs

__all__ = ["UNKNOWN", "LockOperation", "Operation", "Registration", "isLinearizable", "wrongOf"]

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

    def follows(self, state: Any) -> tuple[bool, Any]:
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


@attrs.frozen
class LockOperation(Operation):
    """
    One operation on one lock, whose state is its holder, the last fence, and whether the holder may have a later one.

    :ivar kind: ``get``, ``acquire`` (by the nonce *value*, which is the holder), ``release`` (by the holder *value*) or
        ``force``.
    :ivar outcome: of a ``get`` the holder; of an ``acquire`` the fence, or ``False``; of others whether they were done;
        :data:`UNKNOWN`.
    """

    def follows(self, state: Any) -> tuple[bool, Any]:
        """Whether the outcome is right in a state, and the state afterwards."""
        holder, last, mayBeLater = state or (None, 0, False)
        if self.kind == "get":
            return self.outcome == holder, state
        if self.kind != "acquire":
            isDone = holder == self.value if self.kind == "release" else holder is not None
            return self.outcome in (isDone, UNKNOWN), (None, last, False) if isDone else state
        if holder not in (None, self.value):
            return self.outcome in (False, UNKNOWN), state
        isRepeated = holder == self.value
        if self.outcome == UNKNOWN:
            return True, state if isRepeated else (self.value, last, True)
        if self.outcome is False or not isinstance(self.outcome, int):
            return False, state
        isLater = self.outcome > last and (mayBeLater or not isRepeated)
        return isLater or (isRepeated and not mayBeLater and self.outcome == last), (self.value, self.outcome, False)


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
    left: list[tuple[int, Any]] = [(0, None)]
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
        """The broken promise of heartbeats; ``None`` if there is none."""
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
    """The problems of all of them."""
    return [wrong for each in registrations if (wrong := each.wrong()) is not None]
