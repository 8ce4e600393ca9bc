"""
Tests for :mod:`txserviceregistry.registry.identity`: the hashes of keys. The cost of checking a key is tested as
authentications show it, in :mod:`tests.unit.registry.test_identity`.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests import CHEAP
from txserviceregistry.registry.identity import hashKey, keyMatches


class KeyHashTests(SynchronousTestCase):
    """
    API keys are kept as hashes.
    """

    def test_matchesItsOwnKeyOnly(self) -> None:
        """
        A hash is of one key, and says nothing of it.
        """
        kept = hashKey("s3cret", cost=CHEAP)
        self.assertTrue(keyMatches("s3cret", kept))
        self.assertFalse(keyMatches("s3creT", kept))
        self.assertNotIn("s3cret", kept)

    def test_isSalted(self) -> None:
        """
        Two users with one key don't share a hash.
        """
        self.assertNotEqual(hashKey("k", cost=CHEAP), hashKey("k", cost=CHEAP))

    def test_carriesItsCost(self) -> None:
        """
        A hash is checked at the cost that it was made with, whatever is usual later.
        """
        kept = hashKey("k", cost=16)
        self.assertTrue(kept.startswith("scrypt$16$8$1$"))
        self.assertTrue(keyMatches("k", kept))

    def test_takesTheDefaultCost(self) -> None:
        """
        By default a hash costs 16 MiB.
        """
        kept = hashKey("k")
        self.assertTrue(kept.startswith("scrypt$16384$8$1$"))
        self.assertTrue(keyMatches("k", kept))

    def test_takesAnyText(self) -> None:
        """
        Any string of JSON can be tried as a key.
        """
        self.assertFalse(keyMatches("\ud800\0\xe4", hashKey("k", cost=CHEAP)))
