"""
The times at which the heartbeats of a batcher's services are due.
"""

from __future__ import annotations

from heapq import heappop, heappush

from .heartbeater import HeartBeater


class _Slot(list[HeartBeater]):
    """
    Services whose heartbeats are due close together, in no order.

    :ivar due: when the first of them is due.
    """

    due = float("inf")

    def add(self, service: HeartBeater, due: float) -> None:
        service.batchSlot = self
        if due < self.due:
            self.due = due
        self.append(service)


def _dueOf(service: HeartBeater) -> float:
    return service.batchSince + service.interval


class Schedule:
    """
    Services by the time at which their heartbeats are due.

    They are sorted only if they are too many for one request: a heap of single heartbeats would be sifted for each of
    them. With ten thousand services, few are in the CPU's cache when they are due, so that every object that a
    heartbeat touches costs time. So a slot has the services themselves, and these have attributes for it. A service
    that has left, or has moved to another slot, names that one.
    """

    #: The part of its interval by which a heartbeat may be early, together with one that is due.
    EARLY = 0.1
    #: Heartbeats that are due within so many seconds of each other share a slot.
    SLOT = 0.02

    def __init__(self) -> None:
        # The slots by number, and a heap of these numbers.
        self._slots: dict[int, _Slot] = {}
        self._numbers: list[int] = []

    def put(self, service: HeartBeater, since: float) -> None:
        """Have a heartbeat sent an interval after this time, at the latest, and none at another time."""
        service.batchSince = since
        due = since + service.interval
        number = int(due // self.SLOT)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            heappush(self._numbers, number)
        slot.add(service, due)

    def clear(self) -> None:
        """Forget all services."""
        self._slots.clear()
        self._numbers.clear()

    @property
    def next(self) -> float | None:
        """When the first heartbeat is due; ``None`` if there is none."""
        return self._slots[self._numbers[0]].due if self._numbers else None

    def take(self, now: float, most: int) -> list[HeartBeater]:
        """
        Take out the services that are due, and those that may be early. Until they are put back, or elsewhere, the list
        is their ``batchSlot``.

        :param most: how many at most; those that are due first.
        """
        taken: list[HeartBeater] = []
        while self._numbers:
            slot = self._slots[self._numbers[0]]
            if len(slot) > most - len(taken):
                slot.sort(key=_dueOf)
            stay = _Slot()
            for service in slot:
                if service.batchSlot is not slot:
                    continue
                if len(taken) < most and service.batchSince + (1 - self.EARLY) * service.interval <= now:
                    service.batchSlot = taken
                    taken.append(service)
                else:
                    stay.add(service, _dueOf(service))
            if stay:
                self._slots[self._numbers[0]] = stay
                break
            del self._slots[heappop(self._numbers)]
        return taken
