"""Subscriber: what all services that read the event feed have in common, from their start to their stop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ..errors import NotRunning, RateLimited, ServiceRegistryError
from ..util.backoff import Backoff
from ..util.files import checkPath, replaceFile
from ..util.logs import Listeners, Logger, Outage, WriteOutage
from .cursor import StaleCursor
from .iteration import ItemQueue, Items
from .poller import WATCHED, pollerOf
from .task import BackgroundTask

if TYPE_CHECKING:
    from ..client import Client

_T = TypeVar("_T")

# Seconds between two attempts to reach a registry that is unreachable; the first one is made at once.
_SHORTEST_RETRY = 0.5
_LONGEST_RETRY = 10.0
# Characters of an error in the log.
_LONGEST_REASON = 150


class Subscriber(Service):
    """A service that reads the event feed, step by step, and retries what fails."""

    _log = Logger()
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
        self._client = client
        self._clock = client.clock
        self._random = random
        self._wallClock = wallClock
        self._path = None if path is None else os.fspath(path)
        self._poller = pollerOf(client, types)
        self._backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, random)
        # The first failure is followed by a retry at once.
        self._outage = Outage(self._log, self._clock, self.outageBegins, self.outageEnds, after=2, what=self.what)
        self._writeOutage = WriteOutage(self._path or "", self._log, self._clock, self.fileLoss)
        self._stopListeners: Listeners[[]] = Listeners(self._log, "a stop")
        self._task: BackgroundTask | None = None

    # -- what a kind of subscriber does

    def _load(self) -> None:
        """Continue with what the file has. May call listeners."""
        raise NotImplementedError

    async def _step(self, run: BackgroundTask) -> None:
        """The next request and its consequences; raises StaleCursor if the feed no longer has the position."""
        raise NotImplementedError

    def _positionLost(self) -> None:
        """The feed no longer has the position. May call listeners."""
        raise NotImplementedError

    def _interrupted(self) -> None:
        """A step has failed."""

    def _pause(self, seconds: float) -> Deferred[None]:
        """Wait before the next try."""
        return deferLater(self._clock, seconds)

    def _stop(self, run: BackgroundTask) -> Deferred[None]:
        return run.stop()

    # -- IService

    def startService(self) -> None:
        """Begin. Never fails."""
        if self.running:
            return
        Service.startService(self)
        self._task = task = BackgroundTask(self._task)
        self._load()
        task.begin(self._run).addErrback(
            lambda failure: self._log.failure("Updates of the {what} ended", failure, what=self.what)
        )

    def stopService(self) -> Deferred[None]:
        """
        End.

        :return: fires when nothing of it is left on the reactor.
        """
        Service.stopService(self)
        stopped: Deferred[None] = succeed(None) if self._task is None else self._stop(self._task)
        self._stopListeners.call()
        return stopped

    async def _run(self, run: BackgroundTask) -> None:
        with self._poller.used():
            while not run.isStopping:
                delay = await self._tryStep(run)
                if delay is None:
                    self._succeeded()
                    continue
                self._interrupted()
                if not run.isStopping:
                    await self._pause(delay)

    async def _tryStep(self, run: BackgroundTask) -> float | None:
        """``None`` if it succeeded, or the seconds until the next try."""
        longer = 0.0
        try:
            await self._step(run)
            return None
        except CancelledError:
            # Not every cancellation is a stop: a client that is closed cancels its requests.
            pass
        except StaleCursor:
            self._positionLost()
        except ServiceRegistryError as error:
            if isinstance(error, RateLimited):
                longer = error.retryAfter or _LONGEST_RETRY
            self._outage.failed(reason=str(error))
        except Exception as error:
            # A defect of this library must not end it.
            self._outage.failed(Failure(), reason=str(error))
        return max(self._backoff.next(), longer)

    def _succeeded(self) -> None:
        """The registry has responded: an outage is over."""
        self._backoff.reset()
        self._outage.succeeded()

    def _iterate(self, queue: ItemQueue[_T], forget: Callable[[], None]) -> Items[_T]:
        """An iterator over a queue, which ends with the service; *forget* stops the items."""
        return Items(queue, self._checkRunning, forget, self._stopListeners.add(queue.end))

    def _checkRunning(self) -> None:
        """Raises NotRunning if nothing that is waited for would come."""
        NotRunning.check(self)

    # -- the file

    def _writeFile(self, content: Any) -> None:
        if self._path is None:
            return
        try:
            checkPath(self._path)
            replaceFile(self._path, json.dumps(content))
        except OSError as error:
            self._writeOutage.notWritten(error)
        else:
            self._writeOutage.succeeded()

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
