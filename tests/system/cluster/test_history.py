"""The checker of histories finds what it is there to find."""

from __future__ import annotations

from random import Random

from twisted.trial.unittest import SynchronousTestCase

from .history import UNKNOWN, LockOperation, Operation, Registration, isLinearizable


def did(kind: str, outcome: object, begin: float, end: float, value: str = "", expected: str = "") -> Operation:
    return Operation(kind, outcome, begin, end, value or None, expected or None)


class LinearizabilityTests(SynchronousTestCase):
    """Histories that an order explains, and histories with a planted fault."""

    def test_inOrder(self) -> None:
        """A value that was set is read, by itself and beside another change."""
        history = [did("get", None, 0, 1), did("set", True, 2, 5, "a"), did("get", "a", 4, 6), did("get", "a", 7, 8)]
        self.assertTrue(isLinearizable(history))
        # While "b" is being set both are right, in this order only.
        both = [*history, did("set", True, 9, 20, "b"), did("get", "a", 10, 11), did("get", "b", 12, 13)]
        self.assertTrue(isLinearizable(both))

    def test_aStaleRead(self) -> None:
        """An older value after a newer one was read, or after the change had ended."""
        newer = [did("set", True, 0, 1, "a"), did("set", True, 2, 9, "b"), did("get", "b", 3, 4)]
        self.assertTrue(isLinearizable(newer))
        self.assertFalse(isLinearizable([*newer, did("get", "a", 5, 6)]))
        self.assertFalse(isLinearizable([did("set", True, 0, 1, "a"), did("get", None, 2, 3)]))

    def test_aLostWrite(self) -> None:
        """A change that was acknowledged and never took effect, and one that took effect without having been asked."""
        self.assertFalse(
            isLinearizable([did("set", True, 0, 1, "a"), did("set", True, 2, 3, "b"), did("get", "a", 4, 5)])
        )
        self.assertFalse(isLinearizable([did("get", "a", 0, 1)]))

    def test_unknownOutcomes(self) -> None:
        """A write without a response may have been done late or never, but once only."""
        begun = [did("set", True, 0, 1, "a"), did("set", UNKNOWN, 2, 3, "b")]
        for last in ("a", "b"):
            self.assertTrue(isLinearizable([*begun, did("get", last, 8, 9)]))
        late = [*begun, did("get", "a", 4, 5), did("get", "b", 6, 7)]
        self.assertTrue(isLinearizable(late))
        self.assertFalse(isLinearizable([*late, did("get", "a", 8, 9)]))
        self.assertTrue(isLinearizable([did("get", UNKNOWN, 0, 1)]))

    def test_conditionalWrites(self) -> None:
        """Of two that expect the same value one succeeds; one that is refused had a reason."""
        begun = [did("set", True, 0, 1, "a"), did("swap", True, 2, 5, "b", "a")]
        self.assertTrue(isLinearizable([*begun, did("swap", False, 3, 6, "c", "a")]))
        self.assertFalse(isLinearizable([*begun, did("swap", True, 3, 6, "c", "a")]))
        self.assertFalse(isLinearizable([*begun[:1], did("swap", False, 2, 3, "b", "a")]))

    def test_creates(self) -> None:
        """Two creates of one id succeed only if it was removed in between."""
        begun = [did("create", True, 0, 1, "a"), did("create", False, 2, 3, "b")]
        self.assertTrue(isLinearizable(begun))
        self.assertFalse(isLinearizable([*begun, did("create", True, 4, 5, "c")]))
        removed = [did("remove", True, 4, 9), did("create", True, 5, 6, "c")]
        self.assertTrue(isLinearizable([*begun, *removed]))
        self.assertFalse(isLinearizable([*begun, *removed, did("remove", False, 10, 11)]))

    def test_random(self) -> None:
        """Histories of a register are explained; with one read that returns a value that was replaced they are not."""
        random = Random(5)
        for _ in range(50):
            history = [did("set", True, -9, -8, "first")]
            value = "first"
            for number in range(60):
                # Each takes effect at its number, and overlaps with some neighbours.
                begin, end = number - random.uniform(0, 3), number + random.uniform(0, 3)
                if random.random() < 0.4:
                    value = f"v{number}"
                    outcome = True if random.random() < 0.9 else UNKNOWN
                    history.append(Operation("set", outcome, begin, end, value))
                else:
                    history.append(Operation("get", value, begin, end))
            self.assertTrue(isLinearizable(history))
            place = next(at for at, each in enumerate(history) if each.kind == "get" and at > 30)
            read = history[place]
            broken = Operation("get", "first", read.begin, read.end)
            self.assertFalse(isLinearizable([*history[:place], broken, *history[place + 1 :]]))


class LockTests(SynchronousTestCase):
    """Histories of one lock."""

    def explained(self, *operations: tuple[str, object, float, float, str]) -> bool:
        return isLinearizable(LockOperation(*each) for each in operations)

    def test_oneHolder(self) -> None:
        """A lock is refused while it is held, and acquired again after a release, with a larger fence."""
        begun = [("acquire", 7, 0, 1, "a"), ("acquire", False, 2, 3, "b"), ("get", "a", 4, 5, "")]
        self.assertTrue(self.explained(*begun, ("release", True, 6, 9, "a"), ("acquire", 8, 7, 8, "b")))
        self.assertFalse(self.explained(*begun, ("acquire", 8, 6, 7, "b")))
        self.assertFalse(self.explained(*begun, ("release", True, 6, 7, "a"), ("acquire", 7, 8, 9, "b")))
        self.assertFalse(self.explained(*begun, ("release", True, 6, 7, "a"), ("acquire", False, 8, 9, "b")))
        self.assertFalse(self.explained(*begun, ("release", True, 6, 7, "b")))
        self.assertTrue(self.explained(*begun, ("force", True, 6, 7, ""), ("release", False, 8, 9, "a")))
        self.assertFalse(self.explained(("force", True, 6, 7, "")))

    def test_unknownOutcomes(self) -> None:
        """An acquisition that had no response may be there, and its repetition has a fence of that time or later."""
        begun = [("acquire", 7, 0, 1, "a"), ("release", True, 2, 3, "a"), ("acquire", UNKNOWN, 4, 5, "b")]
        self.assertTrue(self.explained(*begun, ("acquire", False, 6, 7, "c"), ("acquire", 9, 8, 9, "b")))
        self.assertTrue(self.explained(*begun, ("acquire", 9, 6, 7, "b"), ("acquire", 9, 8, 9, "b")))
        self.assertTrue(self.explained(*begun, ("acquire", 8, 6, 7, "c"), ("get", "c", 8, 9, "")))
        self.assertFalse(self.explained(*begun, ("acquire", 7, 6, 7, "b")))
        self.assertFalse(self.explained(*begun, ("acquire", 9, 6, 7, "b"), ("acquire", 10, 8, 9, "b")))
        self.assertFalse(self.explained(*begun, ("acquire", 9, 6, 7, "b"), ("acquire", 10, 8, 9, "c")))


class RegistrationTests(SynchronousTestCase):
    """Histories of heartbeats."""

    def wrong(self, *heartbeats: float, expired: tuple[float, ...] = (), missing: float | None = None) -> str:
        return Registration("web", 10, list(heartbeats), list(expired), missing).wrong() or ""

    def test_kept(self) -> None:
        """A service that lives, and one that expires a timeout after its last heartbeat."""
        self.assertEqual(self.wrong(0.0, 5.0), "")
        self.assertEqual(self.wrong(0.0, 5.0, expired=(15.3,), missing=16.0), "")

    def test_broken(self) -> None:
        """An expiration that is too early, or told twice; an acknowledgement after it."""
        self.assertIn("too early", self.wrong(0.0, 5.0, expired=(14.0,)))
        self.assertIn("2 times", self.wrong(0.0, expired=(11.0, 12.0)))
        self.assertIn("after the expiration", self.wrong(0.0, 12.0, expired=(11.0,)))
        self.assertIn("after a 404", self.wrong(0.0, 12.0, missing=11.0))
