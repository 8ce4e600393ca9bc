"""Heartbeat tokens. They contain a MAC, so that none has to be remembered."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest

from .eventids import LAST_POSITION, position, positionOf, uuidAt

# The first digit of a tail: of the four bits of the MAC's two are the variant of the UUID (RFC 4122).
_FIRST_DIGITS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


class HeartbeatTokens:
    """
    Makes and checks heartbeat tokens.

    A token is the text of a version-1 UUID. Its 62 free bits (clock sequence and node) are a MAC of tenant, service
    id and incarnation; so it is valid for one incarnation of one service, and any token ever given out for that is as
    good as the last one. Its time makes it new each time, and is not checked: steps of the clock do not matter.

    :param secret: the registry's secret; the key is derived from it, for this purpose alone.
    """

    def __init__(self, secret: bytes, wallClock: Callable[[], float]) -> None:
        self._wallClock = wallClock
        key = blake2b(b"", key=secret, person=b"heartbeat tokens").digest()
        self._mac = blake2b(key=key, digest_size=8)

    def first(self, tenant: str, id: str, incarnation: str) -> str:
        return uuidAt(positionOf(self._wallClock()), self.proof(tenant, id, incarnation))

    def initial(self, tenant: str, id: str, incarnation: str) -> str:
        """A token that is the same each time; no other is as old."""
        return uuidAt(position(incarnation), self.proof(tenant, id, incarnation))

    def next(self, tenant: str, id: str, incarnation: str, presented: str) -> str | None:
        """The token in the response to a single heartbeat; see :meth:`following`."""
        return self.following()(self.proof(tenant, id, incarnation), presented)

    def following(self) -> Callable[[str, str], str | None]:
        """
        For many heartbeats at the same moment: a function that is called with a service's :meth:`proof` and the
        heartbeat's token, the text of a version-1 UUID in any case, and returns the next token; ``None`` if the token
        was never given out for this incarnation.
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
