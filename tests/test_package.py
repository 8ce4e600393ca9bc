"""Tests for the package's own names."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import txserviceregistry


class PackageTests(SynchronousTestCase):
    """``import txserviceregistry``."""

    def test_givesTheNamesThatMostUsersNeed(self) -> None:
        """Each promised name is there, and is the one of its module."""
        from txserviceregistry.client import Client

        self.assertIs(txserviceregistry.Client, Client)
        for name in txserviceregistry.__all__:
            self.assertIsNotNone(getattr(txserviceregistry, name))
            self.assertIn(name, dir(txserviceregistry))

    def test_givesTheErrors(self) -> None:
        """``txserviceregistry.errors`` needs no import of its own."""
        program = "import txserviceregistry; print(txserviceregistry.errors.NotFound.__name__)"
        self.assertEqual(subprocess.check_output([sys.executable, "-c", program]), b"NotFound\n")

    def test_saysWhatItDoesNotHave(self) -> None:
        """An unknown name is an AttributeError like any module's."""
        error = self.assertRaises(AttributeError, getattr, txserviceregistry, "Nothing")
        self.assertEqual(str(error), "module 'txserviceregistry' has no attribute 'Nothing'")

    def test_costsNothingUntilItIsUsed(self) -> None:
        """The import alone brings neither Twisted nor treq, so that the tools' help is there at once."""
        program = "import sys, txserviceregistry; print('twisted' in sys.modules or 'treq' in sys.modules)"
        self.assertEqual(subprocess.check_output([sys.executable, "-c", program]), b"False\n")
