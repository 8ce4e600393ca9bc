"""Progress: what an event feed delivers next, and what it reports as missed or repeated."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery.feed import RETENTION, SHOWN, Progress
from txserviceregistry.discovery.poller import Cursor, Page, markerAt

NOW = 1_800_000_000.0


def event(second: float) -> Any:
    """An event that happened so many seconds after NOW."""
    return {"id": markerAt(NOW + second)}


FIRST, SECOND, THIRD = event(1), event(2), event(3)


class ProgressTests(SynchronousTestCase):
    """Transitions, and what each state means."""

    def test_atAMarker(self) -> None:
        """The marker's own event is wanted until it is delivered, or is known not to be there."""
        begun = Progress(Cursor(FIRST["id"], isInclusive=True))
        self.assertEqual(begun.cursor.page([FIRST, SECOND]), Page([FIRST, SECOND]))
        self.assertFalse(begun.isGap(begun.cursor.page([SECOND]), NOW))
        self.assertEqual(begun.delivered(FIRST), Progress(Cursor.after(FIRST)))

    def test_anEventIsMissing(self) -> None:
        """A page that does not begin with the last event is a gap, unless that one has grown too old to be kept."""
        here = Progress(Cursor.after(FIRST)).quiet(NOW + 2)
        self.assertFalse(here.isGap(here.cursor.page([FIRST, SECOND]), NOW + 3))
        for page in (here.cursor.page([]), here.cursor.page([SECOND])):
            self.assertTrue(here.isGap(page, NOW + 3))
            later = NOW + 2 + SHOWN
            self.assertTrue(here.isGap(page, later))
            self.assertFalse(here.quiet(later - SHOWN / 2).isGap(page, later))
            self.assertTrue(here.quiet(later - SHOWN / 2 - 1).isGap(page, later))
        # In the middle of a page there are newer events, which would not have been removed before this one.
        self.assertTrue(here.delivered(FIRST).isGap(here.cursor.page([SECOND]), later))

    def test_repetitions(self) -> None:
        """After a gap, events up to the last one may have been delivered before; later ones have not."""
        lost = Progress(Cursor.after(SECOND)).afterGap()
        for again in (lost, Progress(repeatedTo=lost.repeatedTo)):
            self.assertEqual([again.isRepeated(one) for one in (FIRST, SECOND, THIRD)], [True, True, False])
            again = again.delivered(FIRST)
            self.assertTrue(again.isRepeated(SECOND))
            self.assertFalse(again.delivered(SECOND).isRepeated(SECOND))
            self.assertFalse(again.delivered(THIRD).isRepeated(SECOND))
        self.assertEqual(lost.repeating(FIRST["id"]).repeatedTo, SECOND["id"])
        self.assertEqual(lost.repeating(None), lost)
        # If no event was delivered, there is nothing to repeat.
        self.assertEqual(Progress(Cursor(FIRST["id"])).afterGap(), Progress(Cursor(FIRST["id"])))

    def test_absences(self) -> None:
        """Without a last event, progress is outdated after half of what the feed shows without a marker."""
        quiet = Progress().quiet(NOW)
        self.assertFalse(quiet.isOutdated(NOW + SHOWN / 2))
        self.assertTrue(quiet.isOutdated(NOW + SHOWN / 2 + 1))
        moved = quiet.quiet(NOW, Cursor(FIRST["id"]))
        self.assertFalse(moved.isOutdated(NOW + RETENTION))
        self.assertTrue(moved.isOutdated(NOW + RETENTION + 1))
        for other in (Progress(), Progress(Cursor.after(FIRST)).quiet(NOW)):
            self.assertFalse(other.isOutdated(NOW + 2 * RETENTION))

    def test_isKept(self) -> None:
        """A file keeps each state."""
        for progress in (
            Progress(),
            Progress(Cursor(FIRST["id"], isInclusive=True)),
            Progress(Cursor.after(FIRST)).quiet(NOW),
            Progress(Cursor.after(SECOND), repeatedTo=THIRD["id"]),
            Progress().quiet(NOW),
        ):
            self.assertEqual(Progress.fromJSON(json.loads(json.dumps(progress.toJSON()))), progress)
