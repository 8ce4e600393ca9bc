"""
Objects that the HeartBeaters of one client share, so that there can be thousands of them.
"""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IReactorTime

from ..util.concurrency import PrioritySemaphore
from ..util.suspend import SuspendWatch
from .batching import HeartbeatBatcher
from .stalls import StallWatch


@attrs.frozen
class HeartbeatContext:
    """
    A value that is handed to each HeartBeater.

    :ivar stalls: notices that the reactor stood still, once for all of them.
    :ivar suspends: notices that the machine was suspended.
    :ivar turns: bounds the heartbeat requests at once.
    :ivar registrations: bounds the registrations at once.
    :ivar pulse: batches heartbeats; ``None`` if each HeartBeater sends its own.
    """

    stalls: StallWatch
    suspends: SuspendWatch
    turns: PrioritySemaphore
    registrations: PrioritySemaphore
    batcher: HeartbeatBatcher | None = None

    @classmethod
    def ofOne(cls, clock: IReactorTime) -> HeartbeatContext:
        """For a single HeartBeater without a client."""
        turns = PrioritySemaphore()
        return cls(StallWatch(clock), SuspendWatch(clock), turns, turns)
