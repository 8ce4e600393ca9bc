"""
Places for requests whose responses are held back: how many there may be in all, and of one tenant.
"""

from __future__ import annotations

from collections import Counter

from .faults import systemFailure

#: Seconds after which a request for which there was no place may be sent again.
RETRY_AFTER = 5


class Places:
    """
    Places of one kind.

    :param most: how many there are.
    :param mostOfTenant: how many one tenant may have; as many as there are if not given.
    :param within: places of several kinds, of which each of these takes one.
    :ivar count: how many are taken.
    """

    def __init__(self, most: int, mostOfTenant: int | None = None, within: Places | None = None) -> None:
        self._most = most
        self._mostOfTenant = most if mostOfTenant is None else mostOfTenant
        self._within = within
        self._countOf: Counter[str] = Counter()
        self.count = 0

    def take(self, tenant: str, refusal: str) -> None:
        """Take one for a request of a tenant; the fault 503 with this *refusal*, if there is none left."""
        if self.count >= self._most or self._countOf[tenant] >= self._mostOfTenant:
            raise systemFailure(refusal, RETRY_AFTER)
        if self._within is not None:
            self._within.take(tenant, refusal)
        self._countOf[tenant] += 1
        self.count += 1

    def give(self, tenant: str) -> None:
        """Give one back."""
        self._countOf[tenant] -= 1
        if not self._countOf[tenant]:
            del self._countOf[tenant]
        self.count -= 1
        if self._within is not None:
            self._within.give(tenant)
