"""The cost of importing the package, seen from a new process."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase


class PackageTests(SynchronousTestCase):
    """``import txserviceregistry``."""

    def test_givesTheErrors(self) -> None:
        """``txserviceregistry.errors`` needs no import of its own."""
        program = "import txserviceregistry; print(txserviceregistry.errors.NotFound.__name__)"
        self.assertEqual(subprocess.check_output([sys.executable, "-c", program]), b"NotFound\n")

    def test_costsNothingUntilItIsUsed(self) -> None:
        """The import alone brings neither Twisted nor treq, so that the tools' help is there at once."""
        program = "import sys, txserviceregistry; print('twisted' in sys.modules or 'treq' in sys.modules)"
        self.assertEqual(subprocess.check_output([sys.executable, "-c", program]), b"False\n")


class PluginTests(SynchronousTestCase):
    """``twisted.plugins``, which every twistd on a machine imports."""

    def test_importsNothingOfOurs(self) -> None:
        """The module names things; what they need is imported when they are used."""
        program = (
            "import sys, twisted.plugins.txserviceregistry_plugins;"
            "print([name for name in sys.modules if name.split('.')[0] == 'txserviceregistry'])"
        )
        self.assertEqual(subprocess.check_output([sys.executable, "-c", program]), b"[]\n")
