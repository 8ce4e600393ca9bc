"""
The names that packages export.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

import txserviceregistry
from txserviceregistry import coordination, discovery, registry

PACKAGES = (txserviceregistry, coordination, discovery, registry)


class NamesTests(SynchronousTestCase):
    """Names that are imported when they are first used."""

    def test_namesAreThere(self) -> None:
        """Each name of ``__all__`` can be used, and ``dir()`` lists it."""
        for package in PACKAGES:
            for name in package.__all__:
                self.assertIsNotNone(getattr(package, name))
                self.assertIn(name, dir(package))

    def test_modulesAreThere(self) -> None:
        """The module that defines a name can be used as an attribute of the package."""
        self.assertIs(txserviceregistry.errors.ServiceRegistryError, txserviceregistry.ServiceRegistryError)

    def test_unknownNames(self) -> None:
        """Any other name is an AttributeError that names the package."""
        for package in PACKAGES:
            error = self.assertRaises(AttributeError, getattr, package, "Nonsense")
            self.assertEqual(str(error), f"module '{package.__name__}' has no attribute 'Nonsense'")
