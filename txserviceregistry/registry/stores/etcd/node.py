"""
One node among those that share a cluster of etcd: whether it is in contact, and what it receives of the others.

A node that can't reach etcd notices no heartbeats, and must not expire services for it; so it has to know from when to
when that was. It writes a key of its own all the time: that shows that a majority of etcd is there, and, as the key
comes back by the watch, that the watch is not deaf.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent

from ....util.logs import Logger
from ..interfaces import StoreUnavailable
from .backlog import Backlog
from .gateway import Etcd, EtcdError, put
from .leases import newLease
from .watch import Change, Watch, WatchEnded


class Node:
    """
    Keeps a node's key, and a watch of everything below the prefix.

    :param etcd: etcd.
    :param reactor: the reactor.
    :param agent: does the watch's request.
    :param urls: etcd's members; the watch goes to one after the other.
    :param prefix: of all keys.
    :param name: the node's name.
    :param onChange: is called with each change below the prefix.
    :param load: reads everything again; fires with the revision at which it was so. Called when the watch has ended,
        with whether there was no contact meanwhile.
    :param onLost: is called when there is no contact any more.
    :param backlog: what the node reports to the others, in the key.
    """

    #: Seconds between two writes of the node's key.
    INTERVAL = 0.4
    #: Seconds that the node's key outlives the node.
    PRESENCE = 5
    #: Seconds without an answer after which there is no contact. Less than a lease's margin.
    SILENCE = 1.2
    #: Seconds without an answer after which, for as long as :attr:`RECOVERY`, heartbeats may still be waiting in front
    #: of etcd: more than two of the writes above.
    HICCUP = 0.9
    RECOVERY = 0.5
    #: Seconds without a change on the watch after which it counts as deaf.
    DEAF = 3.0
    #: Seconds between two tries to begin a watch.
    PAUSE = 0.2

    _log = Logger()

    def __init__(
        self,
        etcd: Etcd,
        reactor: Any,
        agent: IAgent,
        urls: Sequence[str],
        prefix: str,
        name: str,
        *,
        onChange: Callable[[Change], None],
        load: Callable[[bool], Deferred[int]],
        onLost: Callable[[], None],
        backlog: Backlog,
    ) -> None:
        self._etcd = etcd
        self._reactor = reactor
        self._agent = agent
        self._urls = urls
        self._prefix = prefix
        self._key = f"{prefix}nodes/{name}"
        self._onChange = onChange
        self._load = load
        self._onLost = onLost
        self._backlog = backlog
        self._lease = 0
        self._writes = 0
        self._contact = self._answered = reactor.seconds()
        self._steadyFrom = 0.0
        self._isLost = False
        # Why the key could not be written the last time.
        self._error = ""
        self._loops: list[LoopingCall] = []
        self._writing: Deferred[None] | None = None
        self._keeping: Deferred[Any] | None = None
        self._watch: Watch | None = None
        self._member = 0
        self._again: IDelayedCall | None = None
        self._loading: Deferred[Any] | None = None
        self._isStopped = False

    def contact(self, sent: float) -> None:
        """A request that was sent at *sent* has been answered by a majority of etcd."""
        now = self._reactor.seconds()
        if now - self._answered > self.HICCUP:
            self._steadyFrom = now + self.RECOVERY
        self._answered = now
        self._contact = max(self._contact, sent)
        self._error = ""

    def secondsAway(self) -> float:
        """How long etcd has not been in contact."""
        return float(self._reactor.seconds() - self._contact)

    @property
    def isSteady(self) -> bool:
        """
        Whether etcd answers without a pause. If not, what it returns about leases may be older than heartbeats that
        have been sent to it: they wait, as everything does.
        """
        now = self._reactor.seconds()
        return not self._isLost and now >= self._steadyFrom and now - self._answered <= self.HICCUP

    def start(self, revision: int) -> None:
        """
        Begin.

        :param revision: at which everything has been read.
        """
        self._contact = self._answered = self._reactor.seconds()
        for call, interval in ((self._write, self.INTERVAL), (self._look, self.SILENCE / 4)):
            loop = LoopingCall(call)
            loop.clock = self._reactor
            loop.start(interval).addErrback(lambda reason: self._log.failure("Loop of a node failed", reason))
            self._loops.append(loop)
        self._startWatch(revision)

    def stop(self) -> Deferred[Any]:
        """
        End.

        :return: fires when nothing is left.
        """
        self._isStopped = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        for asked in (self._writing, self._keeping):
            if asked is not None:
                asked.cancel()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
        again, self._again = self._again, None
        if again is not None:
            again.cancel()
        loading, self._loading = self._loading, None
        if loading is not None:
            loading.cancel()
        if not self._lease:
            return gatherResults([])
        return self._etcd.revoke(self._lease, patience=0).addErrback(
            lambda reason: reason.trap(StoreUnavailable, EtcdError)
        )

    # -- contact

    def _write(self) -> Deferred[None]:
        self._writing = Deferred.fromCoroutine(self._writeKey())
        return self._writing.addErrback(self._notWritten)

    def _notWritten(self, failure: Failure) -> None:
        # The loop must go on whatever happens: without it the node would be lost for ever.
        self._error = failure.getErrorMessage()
        if not self._isStopped and not failure.check(StoreUnavailable, EtcdError):
            self._log.failure("Cannot write the key of a node", failure)

    async def _writeKey(self) -> None:
        # One try each time: the next write is the next try.
        if not self._lease:
            lease = newLease()
            await self._etcd.grant(lease, self.PRESENCE)
            self._lease = lease
        lease = self._lease
        if self._writes % 3 == 0 and self._keeping is None:
            # Beside it, because the others wait for this node's next report.
            self._keeping = keeping = self._etcd.keepAlive([lease])
            keeping.addBoth(self._kept, lease).addErrback(self._notWritten)
        self._writes += 1
        report = json.dumps({"v": 1, "beats": self._writes, "behind": round(self._backlog.report(), 3)})
        try:
            await self._etcd.txn((), [put(self._key, report.encode("ascii"), lease)], patience=0)
        except EtcdError:
            self._lease = 0

    def _kept(self, result: list[bool] | Failure, lease: int) -> Failure | None:
        self._keeping = None
        if isinstance(result, Failure):
            return result
        if not result[0] and self._lease == lease:
            self._lease = 0
        return None

    def _look(self) -> None:
        if self.secondsAway() > self.SILENCE:
            if not self._isLost:
                self._isLost = True
                self._log.warn(
                    "etcd unreachable, no service expires until it is back: {why}",
                    why=self._error or "it does not answer",
                )
                self._onLost()
        elif self._isLost and self._loading is None and self._again is None:
            # What happened meanwhile is read anew, whether or not the watch has noticed anything.
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.stop()
            self._reload()

    # -- the watch

    def _startWatch(self, revision: int) -> None:
        watch = self._watch = Watch(self._agent, self._reactor, self._changed, silence=self.DEAF)
        watch.ended.addErrback(self._watchEnded, watch)
        watch.start(self._urls[self._member % len(self._urls)], self._prefix, revision + 1)

    def _changed(self, change: Change) -> None:
        self._onChange(change)

    def _watchEnded(self, failure: Failure, watch: Watch) -> None:
        failure.trap(WatchEnded)
        if self._isStopped or self._watch is not watch:
            return
        self._log.debug("The watch of etcd has ended: {why}", why=failure.getErrorMessage())
        self._watch = None
        self._member += 1
        self._again = self._reactor.callLater(self.PAUSE, self._reload)

    def _reload(self) -> None:
        self._again = None
        if self._isStopped or self._loading is not None:
            return
        wasLost = self._isLost
        self._loading = loading = self._load(wasLost)
        loading.addCallbacks(self._loaded, self._notLoaded, callbackArgs=(wasLost,))

    def _loaded(self, revision: int, wasLost: bool) -> None:
        self._loading = None
        if self._isStopped:
            return
        if wasLost:
            # Contact that was lost only while this was read is not regained by it: then it is read once more.
            self._isLost = False
            self._log.info("etcd reachable again")
        self._startWatch(revision)

    def _notLoaded(self, failure: Failure) -> None:
        self._loading = None
        if self._isStopped:
            return
        if not failure.check(StoreUnavailable, EtcdError):
            self._log.failure("Cannot read the data in etcd; retrying", failure)
        self._again = self._reactor.callLater(self.PAUSE, self._reload)
