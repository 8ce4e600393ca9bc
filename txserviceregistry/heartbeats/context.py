"""
What the HeartBeaters of one client share, so that thousands of them get in nobody's way.
"""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IReactorTime

from ..util.concurrency import Turns
from ..util.suspend import SuspendWatch
from .batching import Pulse
from .stalls import StallWatch


@attrs.frozen
class Fleet:
    """
    A value that is handed to each HeartBeater.

    :ivar stalls: notices that the reactor stood still, once for all of them.
    :ivar suspends: notices that the machine was suspended.
    :ivar turns: lets only so many ask at once.
    :ivar registrations: the same for their registrations.
    :ivar pulse: beats for all of them that need nothing but heartbeats; ``None`` if each beats for itself.
    """

    stalls: StallWatch
    suspends: SuspendWatch
    turns: Turns
    registrations: Turns
    pulse: Pulse | None = None

    @classmethod
    def ofOne(cls, clock: IReactorTime) -> Fleet:
        """For a HeartBeater that is alone."""
        turns = Turns()
        return cls(StallWatch(clock), SuspendWatch(clock), turns, turns)
