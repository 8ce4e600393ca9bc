"""The common parts of all services that read the event feed: their work from start to stop, their file, their loops."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from ..client import Client
from ..errors import NotRunning, RateLimited, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.deferred import Backoff, Waiters, waitFor
from ..util.files import checkPath, replaceFile
from ..util.logs import Listeners, Logger, Outage, writeOutage
from .poller import WATCHED, StaleCursor, pollerOf

_T = TypeVar("_T")

# Seconds between two attempts to reach a registry that is unreachable; the first one is made at once.
_SHORTEST_RETRY, _LONGEST_RETRY = 0.5, 10.0
_LONGEST_REASON = 150  # characters of an error in the log


class BackgroundTask:
    """One run of a coroutine until it is stopped. It begins when the *previous* one, which was stopped, is over."""

    def __init__(self, previous: BackgroundTask | None = None) -> None:
        #: Whether it was stopped. The work checks it after each call of listeners, which may stop it.
        self.isStopping = False
        self._ready: Deferred[None] = succeed(None) if previous is None else waitFor(previous._over)
        self._over: Deferred[None] = Deferred()
        self._waiting: Deferred[Any] | None = None

    def begin(
        self, work: Callable[[BackgroundTask], Coroutine[Any, Any, None]], failed: Callable[[Failure], object]
    ) -> None:
        """Start the work. *failed* is called with an error that ends it and is not the consequence of a stop."""

        async def run() -> None:
            await self._ready
            try:
                if not self.isStopping:
                    await work(self)
            except CancelledError:
                if not self.isStopping:
                    raise

        Deferred.fromCoroutine(run()).addErrback(failed).addBoth(lambda _: self._over.callback(None))

    async def wait(self, waiting: Deferred[_T]) -> _T:
        """Wait for something that a stop cancels. For everything else that the work awaits a stop waits, too."""
        if self.isStopping:
            waiting.cancel()
        self._waiting = waiting
        try:
            return await waiting
        finally:
            self._waiting = None

    def stop(self) -> Deferred[None]:
        """Fires when it is over."""
        self.isStopping = True
        if self._waiting is not None:
            self._waiting.cancel()
        return waitFor(self._over)


class BackgroundService(Service):
    """A service that makes one step after the other, and retries what fails."""

    _log = Logger()
    _task: BackgroundTask | None = None

    def __init__(self, client: Client, backoff: Backoff, outage: Outage) -> None:
        self._client = client
        self._clock = client.clock
        self._backoff = backoff
        self._outage = outage

    def _load(self) -> None:
        """Prepare the first step. May call listeners."""

    async def _step(self, run: BackgroundTask) -> None:
        """The step that is repeated; raises StaleCursor if the event feed no longer has the position."""
        raise NotImplementedError

    def _positionLost(self) -> None:
        """The event feed no longer has the position. May call listeners."""

    def _interrupted(self) -> None:
        """A step has failed, or it was stopped."""

    def _failed(self, failure: Failure) -> None:
        self._log.failure("{what} failed unexpectedly", failure, what=type(self).__name__)

    async def _run(self, run: BackgroundTask) -> None:
        try:
            while not run.isStopping:
                longer = 0.0
                try:
                    await self._step(run)
                    self._succeeded()
                    continue
                except ClientClosed:
                    return
                except CancelledError:
                    # Not every cancellation is a stop: a client that is closed cancels its requests.
                    pass
                except StaleCursor:
                    self._positionLost()
                except ServiceRegistryError as error:
                    if isinstance(error, RateLimited):
                        longer = error.retryAfter or _LONGEST_RETRY
                    self._outage.failed(reason=str(error), cause=error)
                except Exception as error:
                    # A defect of this library must not end it.
                    self._outage.failed(Failure(), reason=str(error))
                if not run.isStopping:
                    self._interrupted()
                    await run.wait(self._client.pause(max(self._backoff.next(), longer)))
        except ClientClosed:
            pass
        finally:
            self._interrupted()

    def startService(self) -> None:
        """Begin. Never fails."""
        if not self.running:
            Service.startService(self)
            self._task = BackgroundTask(self._task)
            self._load()
            self._task.begin(self._run, self._failed)

    def stopService(self) -> Deferred[None]:
        """Fires when nothing of it is left on the reactor."""
        Service.stopService(self)
        return succeed(None) if self._task is None else self._task.stop()

    def _succeeded(self) -> None:
        """The registry has responded: an outage is over."""
        self._backoff.reset()
        self._outage.succeeded()


class Subscriber(BackgroundService):
    """A service that reads the event feed."""

    # For the log: what it has; the lines when it fails and succeeds again, see Outage; the consequence of a file that
    # can't be written, as a clause.
    what = ""
    outageBegins = ""
    outageEnds: str | None = None
    fileLoss = ""

    def __init__(
        self,
        client: Client,
        path: str | os.PathLike[str] | None,
        random: Callable[[], float],
        wallClock: Callable[[], float],
        types: Collection[str] = WATCHED,
    ) -> None:
        # The first failure is followed by a retry at once.
        outage = Outage(self._log, client.clock, self.outageBegins, self.outageEnds, after=2, what=self.what)
        super().__init__(client, Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, random), outage)
        self._random = random
        self._wallClock = wallClock
        self._path = None if path is None else os.fspath(path)
        self._poller = pollerOf(client, types)
        self._writing = writeOutage(self._path or "", self._log, self._clock, self.fileLoss)
        self._stopListeners: Listeners[[]] = Listeners(self._log, "a stop")  # called when a stop begins

    def stopService(self) -> Deferred[None]:
        """Fires when nothing of it is left on the reactor."""
        stopped = super().stopService()
        self._stopListeners.call()
        return stopped

    async def _run(self, run: BackgroundTask) -> None:
        with self._poller.used():
            await super()._run(run)

    def _writeFile(self, content: Any) -> None:
        if self._path is None:
            return
        try:
            checkPath(self._path)
            replaceFile(self._path, json.dumps(content))
        except OSError as error:
            self._writing.failed(reason=error.strerror or type(error).__name__)
        else:
            self._writing.succeeded()

    def _readFile(self, parse: Callable[[Any], _T]) -> _T | None:
        """The result of *parse* for the JSON in the file; ``None`` if there is no file, or *parse* raises an error."""
        if self._path is None:
            return None
        try:
            with open(self._path, encoding="utf-8") as file:
                return parse(json.load(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The error may quote the file.
            self._log.warn("File {path} ignored: {reason}", path=self._path, reason=repr(error)[:_LONGEST_REASON])
            return None


class Items(AsyncIterator[_T]):
    """
    Items for an ``async for`` loop, from now until the subscriber is stopped. *listen* adds a listener to them, which
    returns a Deferred: it fires when the loop requests the next item or is closed, and is cancelled by a stop before.
    """

    def __init__(
        self, subscriber: Subscriber, listen: Callable[[Callable[[_T], Deferred[None]]], Callable[[], None]]
    ) -> None:
        self._subscriber = subscriber
        # The listener refers to this and not to the iterator, so that an iterator that is dropped is collected.
        self._queue = queue = _Queue[_T]()
        forget = (listen(queue.put), subscriber._stopListeners.add(queue.end))

        def end() -> None:
            for each in forget:
                each()
            queue.isDropped = True
            queue.end()

        self._end = end

    async def __anext__(self) -> _T:
        queue = self._queue
        if len(queue.unfinished) > len(queue.items):
            queue.unfinished.popleft().callback(None)
        while not queue.items:
            if queue.isEnded:
                raise StopAsyncIteration
            NotRunning.check(self._subscriber)
            await queue.arrival.wait()
        return queue.items.popleft()

    async def aclose(self) -> None:
        """Want no more items."""
        self._end()

    def __del__(self) -> None:
        # A stop may come before the call.
        self._queue.isDropped = True
        # The garbage collector runs in any thread, and within any call. A clock that is not a reactor has one thread.
        callFromThread = getattr(self._subscriber._clock, "callFromThread", None)
        if callFromThread is None:
            self._end()
        else:
            # asyncio's loop may be closed: nothing waits any more.
            with suppress(RuntimeError):
                callFromThread(self._end)


@attrs.define(eq=False)
class _Queue(Generic[_T]):
    items: deque[_T] = attrs.field(factory=deque, init=False)
    # For each of these, what fires when the loop has finished with it; first of all, for the one that the loop has.
    unfinished: deque[Deferred[None]] = attrs.field(factory=deque, init=False)
    arrival: Waiters[None] = attrs.field(factory=Waiters, init=False)
    isEnded: bool = attrs.field(default=False, init=False)
    # Whether the loop wants no more items: all are finished then. Otherwise the end cancels them.
    isDropped: bool = attrs.field(default=False, init=False)

    def put(self, item: _T) -> Deferred[None]:
        finished: Deferred[None] = Deferred()
        if self.isEnded:
            finished.cancel()
        else:
            self.items.append(item)
            self.unfinished.append(finished)
            self.arrival.fire(None)
        return finished

    def end(self) -> None:
        self.isEnded = True
        self.items.clear()
        while self.unfinished:
            finished = self.unfinished.popleft()
            if self.isDropped:
                finished.callback(None)
            else:
                finished.cancel()
        self.arrival.fire(None)
