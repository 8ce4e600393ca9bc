"""Functions that are called when something happens."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.listeners import Listeners
from txserviceregistry.util.logs import Logger


class ListenersTests(SynchronousTestCase):
    """Listeners."""

    def setUp(self) -> None:
        self.listeners: Listeners[[str]] = Listeners(Logger(), "the weather")
        self.heard: list[str] = []

    def test_areCalledInOrder(self) -> None:
        """Each is called each time, in the order in which they were added."""
        self.listeners.add(lambda text: self.heard.append(f"first {text}"))
        self.listeners.add(lambda text: self.heard.append(f"second {text}"))
        self.listeners.call("rain")
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["first rain", "second rain", "first sun", "second sun"])

    def test_end(self) -> None:
        """One that has ended is not called any more, however often it is ended."""
        end = self.listeners.add(self.heard.append)
        self.assertEqual(len(self.listeners), 1)
        end()
        end()
        self.listeners.call("rain")
        self.assertEqual((self.heard, len(self.listeners)), ([], 0))

    def test_theSameFunctionTwice(self) -> None:
        """A function that was added twice is called twice, and ended one by one."""
        end, _ = (self.listeners.add(self.heard.append) for _ in range(2))
        self.listeners.call("rain")
        end()
        end()
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["rain", "rain", "sun"])

    def test_oneThatFails(self) -> None:
        """What a listener raises is logged, and the others are called all the same."""
        self.listeners.add(lambda text: self.fail("no umbrella"))
        self.listeners.add(self.heard.append)
        with capturedLogs() as events:
            self.listeners.call("rain")
        self.assertEqual(self.heard, ["rain"])
        self.assertEqual([formatEvent(event) for event in events], ["Listener to the weather failed"])
        self.assertIn("no umbrella", events[0]["log_failure"].getErrorMessage())
        self.assertEqual(len(self.flushLoggedErrors(self.failureException)), 1)

    def test_endsAnother(self) -> None:
        """One that another one ends is not called, not even for the same event."""
        ends: list[Callable[[], None]] = []
        self.listeners.add(lambda text: ends[0]())
        ends.append(self.listeners.add(self.heard.append))
        self.listeners.call("rain")
        self.assertEqual(self.heard, [])

    def test_addsAnother(self) -> None:
        """One that is added during a call is first called for the next event."""
        self.listeners.add(lambda text: self.listeners.add(self.heard.append))
        self.listeners.call("rain")
        self.assertEqual(self.heard, [])
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["sun"])
