"""Tests of the die, with the real registry in memory."""

from dice import Die
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery import ConfigurationWatcher
from txserviceregistry.testing import FakeRegistry


class DieTests(SynchronousTestCase):
    def setUp(self):
        self.registry = FakeRegistry()
        self.client = self.registry.client()
        configuration = ConfigurationWatcher(self.client, "/dice")
        configuration.startService()
        self.addCleanup(self.registry.flush)
        self.addCleanup(configuration.stopService)
        self.die = Die(configuration)
        self.registry.flush()

    def set(self, value):
        self.successResultOf(self.client.configuration.set("/dice/sides", value))
        self.registry.advance(1)

    def test_hasSixSides(self):
        self.assertEqual(self.die.sides, 6)

    def test_hasAsManySidesAsTheConfigurationSays(self):
        self.set("20")
        self.assertEqual(self.die.sides, 20)

    def test_ignoresInvalidValues(self):
        for value, sides in [("many", 6), ("-3", 2)]:
            self.set(value)
            self.assertEqual(self.die.sides, sides)

    def test_keepsItsSidesDuringAnOutage(self):
        self.set("20")
        self.registry.stop()
        self.registry.advance(3600)
        self.assertEqual(self.die.sides, 20)
