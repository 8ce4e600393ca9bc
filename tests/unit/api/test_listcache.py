"""
The pages that are kept for bad times.
"""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.api.services import ListCache


def page(*ids: str) -> bytes:
    return json.dumps({"values": [{"id": id} for id in ids], "metadata": {"count": len(ids)}}).encode()


class ListCacheTests(SynchronousTestCase):
    """Keeping and giving back."""

    def setUp(self) -> None:
        self.clock = Clock()

    def test_aPageComesBackWithItsAge(self) -> None:
        """The last page of a listing, and how many seconds ago it was good."""
        cache = ListCache()
        self.assertIsNone(cache.stale("/services", self.clock.seconds()))
        cache.keep("/services", page("a"), self.clock.seconds())
        cache.keep("/services", page("b"), self.clock.seconds())
        self.clock.advance(2.5)
        self.assertEqual(
            cache.stale("/services", self.clock.seconds()),
            {"values": [{"id": "b"}], "metadata": {"count": 1, "stale": 2.5}},
        )

    def test_whatACallerDoesToAPageIsItsOwnAffair(self) -> None:
        """Changing a page that was given out does not change the next one."""
        cache = ListCache()
        cache.keep("/services", page("a"), self.clock.seconds())
        cache.stale("/services", self.clock.seconds())["values"].clear()
        self.assertEqual(len(cache.stale("/services", self.clock.seconds())["values"]), 1)

    def test_bounded(self) -> None:
        """There are never more bytes than allowed: the pages kept longest ago go first."""
        cache = ListCache(maxBytes=2 * len(page("a")))
        for id in "abc":
            cache.keep(id, page(id), self.clock.seconds())
        self.assertIsNone(cache.stale("a", self.clock.seconds()))
        self.assertIsNotNone(cache.stale("c", self.clock.seconds()))
        cache.keep("b", page("b"), self.clock.seconds())
        cache.keep("d", page("d"), self.clock.seconds())
        self.assertIsNone(cache.stale("c", self.clock.seconds()))
        self.assertIsNotNone(cache.stale("b", self.clock.seconds()))

    def test_aPageThatIsTooLargeIsNotKept(self) -> None:
        """One page beyond the bound is not kept, and does no harm."""
        cache = ListCache(maxBytes=10)
        cache.keep("/services", page("a"), self.clock.seconds())
        self.assertIsNone(cache.stale("/services", self.clock.seconds()))
