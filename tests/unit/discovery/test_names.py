"""
What the package names.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import discovery


class NamesTests(SynchronousTestCase):
    """The names that most programs need."""

    def test_allAreThere(self) -> None:
        """Each name that is announced is there, and listed; others are not."""
        for name in discovery.__all__:
            self.assertEqual(getattr(discovery, name).__name__, name)
        self.assertLessEqual(set(discovery.__all__), set(dir(discovery)))
        self.assertRaises(AttributeError, getattr, discovery, "Nonsense")
