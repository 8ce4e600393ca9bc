"""
Version-1 UUIDs: the ids of events, which grow strictly, whatever the wall clock does, and heartbeat tokens.

A version-1 UUID holds a time, in units of 100 ns since 1582-10-15. That number is an event's *position* in the feed.
The rest of it, the *tail*, is drawn once for a store and stays the same, so that a store has to keep positions only.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest

import attrs

#: The position of 1970-01-01.
_UNIX_EPOCH = 0x01B21DD213814000
_UNITS_PER_SECOND = 10_000_000
#: The largest time that a version-1 UUID can hold.
LAST_POSITION = (1 << 60) - 1
#: The tail of ids that no event has: they are places between events.
_MOMENT = "8000-000000000000"
# The first digit of a token's tail: of the four bits of the MAC's two are the variant of the UUID (RFC 4122).
_FIRST_DIGITS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def positionOf(seconds: float) -> int:
    """The position of a moment, in seconds since 1970, within what a UUID can hold."""
    return min(max(0, int(seconds * _UNITS_PER_SECOND) + _UNIX_EPOCH), LAST_POSITION)


def secondsAt(position: int) -> float:
    """The moment of a position, in seconds since 1970."""
    return (position - _UNIX_EPOCH) / _UNITS_PER_SECOND


def position(text: str) -> int:
    """The position that a version-1 UUID holds; :class:`ValueError` if *text* is not one."""
    parsed = uuid.UUID(text)
    if parsed.version != 1:
        raise ValueError("not a version-1 UUID")
    return parsed.time


def uuidAt(position: int, tail: str) -> str:
    time = f"{position:015x}"
    return f"{time[7:]}-{time[3:7]}-1{time[:3]}-{tail}"


def momentAt(position: int) -> str:
    """An id for a *position* at which there need not be an event."""
    return uuidAt(position, _MOMENT)


def isMoment(id: str) -> bool:
    """Whether an id may come from :func:`momentAt`."""
    return id.endswith(_MOMENT)


def newTail(randbits: Callable[[int], int] = secrets.randbits) -> str:
    """The end of a store's event ids: variant and clock sequence, and a node that is not a network address."""
    # The multicast bit sets a random node apart from every real network address (RFC 4122, 4.5).
    return f"{1 << 15 | randbits(14):04x}-{1 << 40 | randbits(48):012x}"


@attrs.define(eq=False)
class EventIds:
    """Makes positions, each greater than the *last* one, and ids of them, which have a *tail* (:func:`newTail`)."""

    _wallClock: Callable[[], float]
    _tail: str
    last: int = 0

    def next(self) -> int:
        """The next position: now, or just after the last one where that is later."""
        self.last = max(positionOf(self._wallClock()), self.last + 1)
        return self.last

    def idAt(self, position: int) -> str:
        return uuidAt(position, self._tail)

    def owned(self, id: str) -> int | None:
        """The position in any text that may be an id made here, in any case; ``None`` if it surely is not."""
        text = id.lower()
        try:
            found = int(text[15:18] + text[9:13] + text[:8], 16)
        except ValueError:
            return None
        return found if self.idAt(found) == text else None


class HeartbeatTokens:
    """
    Makes and checks heartbeat tokens, of which none is remembered. The 62 free bits of a token (clock sequence and
    node) are a MAC of tenant, service id and incarnation; any token ever given out for an incarnation is as good as the
    last one. Its time makes it new each time, and is not checked: steps of the clock do not matter.
    """

    def __init__(self, secret: bytes, wallClock: Callable[[], float]) -> None:
        self._wallClock = wallClock
        # The key is for this purpose alone.
        key = blake2b(b"", key=secret, person=b"heartbeat tokens").digest()
        self._mac = blake2b(key=key, digest_size=8)

    def first(self, tenant: str, id: str, incarnation: str) -> str:
        return uuidAt(positionOf(self._wallClock()), self.proof(tenant, id, incarnation))

    def initial(self, tenant: str, id: str, incarnation: str) -> str:
        """A token that is the same each time; no other is as old."""
        return uuidAt(position(incarnation), self.proof(tenant, id, incarnation))

    def following(self) -> Callable[[str, str], str | None]:
        """
        For heartbeats at the same moment: a function that takes a service's :meth:`proof` and a token, and returns the
        next token; ``None`` if the token was never given out for this incarnation.
        """
        now = positionOf(self._wallClock())
        digits, head = f"{now:015x}", uuidAt(now, "")

        def following(proof: str, presented: str) -> str | None:
            presented = presented.lower()
            if not compare_digest(presented[19:], proof):
                return None
            # Numbers with the same count of digits are in the same order as their texts.
            time = presented[15:18] + presented[9:13] + presented[:8]
            if time < digits:
                return head + proof
            # Past the end of a UUID's time, in the year 5236, a token stays as it is, and is accepted.
            return uuidAt(min(int(time, 16) + 1, LAST_POSITION), proof)

        return following

    def proof(self, tenant: str, id: str, incarnation: str) -> str:
        """The MAC: the end that all tokens of one incarnation have in common."""
        mac = self._mac.copy()
        # Every field comes with its length, so that no two triples are the same bytes.
        mac.update(f"{len(tenant)}:{tenant}{len(id)}:{id}{len(incarnation)}:{incarnation}".encode())
        digits = mac.hexdigest()
        return f"{_FIRST_DIGITS[digits[0]]}{digits[1:4]}-{digits[4:]}"
