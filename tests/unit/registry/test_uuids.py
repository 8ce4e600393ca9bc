"""
Event ids.
"""

from __future__ import annotations

import uuid

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.uuids import EventIds, newTail, position, positionOf


class PositionTests(SynchronousTestCase):
    """Positions, and the UUIDs that hold them."""

    def test_isTheTimeOfAUUID(self):
        """A position is the time that a version-1 UUID made in that moment would hold."""
        self.assertEqual(position("c232ab00-9414-11ec-b3c8-9f6bdeced846"), 0x1EC9414C232AB00)
        self.assertEqual(positionOf(1645557742), 0x1EC9414C232AB00)

    def test_staysWithinAUUID(self):
        """Moments before the calendar and after its end are its ends."""
        self.assertEqual(positionOf(-1e12), 0)
        self.assertEqual(positionOf(1e12), 2**60 - 1)

    def test_refusesOtherText(self):
        """A text that is not a version-1 UUID has no position."""
        for text in ("", "x", "9b6dbd5e-6ab4-4bb3-8f0a-ab1c56b5bf62", "c232ab00-9414-11ec-33c8-9f6bdeced846"):
            self.assertRaises(ValueError, position, text)


class EventIdsTests(SynchronousTestCase):
    """Ids that grow."""

    def setUp(self):
        self.now = 1000.0
        self.ids = EventIds(lambda: self.now, newTail())

    def test_areVersion1UUIDs(self):
        """An id is the text of a version-1 UUID of the RFC's variant, and its node is not a network address."""
        made = self.ids.idAt(self.ids.next())
        parsed = uuid.UUID(made)
        self.assertEqual((str(parsed), parsed.version, parsed.variant), (made, 1, uuid.RFC_4122))
        self.assertEqual(parsed.time, positionOf(1000))
        self.assertTrue(parsed.node >> 40 & 1)
        self.assertEqual(position(self.ids.idAt(2**60 - 1)), 2**60 - 1)

    def test_growWhateverTheClockDoes(self):
        """A clock that stands still or steps back still gives greater positions."""
        first = self.ids.next()
        self.assertEqual(self.ids.next(), first + 1)
        self.now = 5.0
        self.assertEqual(self.ids.next(), first + 2)
        self.now = 1001.0
        self.assertEqual(self.ids.next(), positionOf(1001))

    def test_goOnAfterTheLastOfAnEarlierProcess(self):
        """Ids go on after the last one that was given out, in another process too."""
        self.ids.last = positionOf(2000)
        self.assertEqual(self.ids.next(), positionOf(2000) + 1)

    def test_knowTheirOwn(self):
        """Only an id with this tail is one of these; the case of its letters does not matter."""
        made = self.ids.idAt(self.ids.next())
        self.assertEqual(self.ids.owned(made.upper()), positionOf(1000))
        other = EventIds(lambda: self.now, newTail())
        self.assertIsNone(other.owned(made))
        self.assertIsNone(self.ids.owned("{" + made + "}"))
        self.assertIsNone(self.ids.owned("web"))
