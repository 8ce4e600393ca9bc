"""
Heartbeats that a node has taken and that etcd does not know of yet, and what the nodes tell each other of them.

A heartbeat counts from when a node took it. While more is asked of etcd than it can do, heartbeats wait for it, and
a lease may run out before the heartbeat that was in time for it gets there. So each node says in its key, all the time,
how long its oldest one has been waiting. While that is too long on any of them, or can't be heard, a lease that is gone
is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import attrs
from twisted.internet.interfaces import IReactorTime

from ....util.logs import Logger


@attrs.frozen
class _Word:
    """
    What another node has said.

    :ivar heard: when, in seconds of the clock.
    :ivar seconds: how long its oldest heartbeat had been waiting then; 0 if none was.
    """

    heard: float
    seconds: float


class Backlog:
    """
    How long heartbeats wait for etcd, on this node and on the others.

    :param clock: the reactor.
    :param name: this node's.
    """

    #: Seconds of waiting after which leases are no evidence. Their margin is two, of which the next word of a node, and
    #: the way of it, may take the other one.
    LIMIT = 1.0
    #: Seconds without a word of this node's own, which come back to it as those of the others come, after which nothing
    #: is known of these.
    DEAF = 1.0
    #: Seconds for which a word is true, if no other follows: of a node that is not behind, and of one that is. A node
    #: that is gone takes no heartbeats; but one that is behind may be slow to say that it still is.
    FRESH = 1.2
    LASTING = 5.0

    _log = Logger()

    def __init__(self, clock: IReactorTime, name: str) -> None:
        self._clock = clock
        self._name = name
        self._numbers = count()
        # When each was taken; the oldest is the first.
        self._waiting: dict[int, float] = {}
        self._words: dict[str, _Word] = {}
        self._ownHeard: float | None = None
        self._isTold = False

    def begin(self) -> int:
        """
        A heartbeat has been taken.

        :return: its number, for :meth:`end`.
        """
        number = next(self._numbers)
        self._waiting[number] = self._clock.seconds()
        return number

    def end(self, number: int) -> None:
        """
        etcd knows of a heartbeat, or it has been refused.

        :param number: what :meth:`begin` gave for it.
        """
        del self._waiting[number]

    def word(self) -> float:
        """
        What this node has to say: how many seconds its oldest heartbeat has been waiting; 0 if none is. When that has
        become too long, the log is told.
        """
        seconds = self._seconds()
        if seconds > self.LIMIT and not self._isTold:
            self._isTold = True
            self._log.warn(
                "Heartbeats have waited for etcd for {seconds:.1f} s, for more is asked of it than it can do: "
                "nobody times out while they do",
                seconds=seconds,
            )
        elif not seconds:
            self._isTold = False
        return seconds

    def _seconds(self) -> float:
        for began in self._waiting.values():
            return max(0.0, self._clock.seconds() - began)
        return 0.0

    def listen(self) -> None:
        """From now on the words of all nodes come in, this one's too."""
        self._ownHeard = self._clock.seconds()

    def heard(self, node: str, seconds: float) -> None:
        """
        A node has said its word.

        :param node: its name.
        :param seconds: what :meth:`word` is there.
        """
        now = self._clock.seconds()
        if node == self._name:
            # What it says of itself it knows better by now.
            self._ownHeard = now
        else:
            self._words[node] = _Word(now, seconds)

    def gone(self, node: str) -> None:
        """A node is there no more."""
        self._words.pop(node, None)

    def heardAll(self, words: Mapping[str, float]) -> None:
        """These are all the nodes that there are, with the last word of each; see :meth:`heard`."""
        self._words.clear()
        for node, seconds in words.items():
            self.heard(node, seconds)

    @property
    def mayBeLong(self) -> bool:
        """Whether a heartbeat that was in time may have waited, on whichever node, for most of a lease's margin."""
        now = self._clock.seconds()
        if self._ownHeard is not None and now - self._ownHeard > self.DEAF:
            return True
        return self._seconds() > self.LIMIT or any(self._mayBeBehind(word, now) for word in self._words.values())

    def _mayBeBehind(self, word: _Word, now: float) -> bool:
        # What waited then may be waiting still.
        age = now - word.heard
        isTrue = age <= (self.LASTING if word.seconds > self.LIMIT else self.FRESH)
        return isTrue and word.seconds > 0 and word.seconds + age > self.LIMIT
