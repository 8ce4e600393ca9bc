"""
An application that uses a cluster; only its settings name the nodes.

It registers with the shortest heartbeat timeout, writes and reads a value five times a second, and reads the event
feed. At the end it prints its errors and its slowest request. ``cluster.py`` runs it; by hand, beside any registry::

    python examples/cluster/application.py
"""

import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, react

from txserviceregistry import Client, RegisteredService, useMonotonic
from txserviceregistry.discovery import EventsFeed

KEY = "/cluster/counter"


class Application:
    """
    Writes, reads and counts.

    :ivar problems: the errors so far.
    """

    def __init__(self, client, clock):
        self.problems = []
        self.count = 0
        self.slowest = 0.0
        self._client = client
        self._clock = clock
        # The last acknowledged value, and the last one in the feed.
        self._written = self._seen = 0
        self._stopping = False
        self._service = RegisteredService(client, "application", 3, tags=["example"])
        self._feed = EventsFeed(client)
        self._loop = LoopingCall(self._work)

    async def run(self):
        self._service.startService()
        await self._service.whenRegistered()
        self._service.onStateChange(self._stateChanged)
        self._feed.onEvent(self._eventCame)
        self._feed.onGap(lambda: self._problem("the feed has a gap"))
        self._feed.startService()
        print("the application is registered", flush=True)
        await self._loop.start(0.2)

    def end(self):
        self._stopping = True
        if self._loop.running:
            self._loop.stop()

    async def leave(self):
        await self._service.stopService()
        await self._feed.stopService()
        if self._seen != self._written:
            self._problem(f"{self._written} was written, but the feed ends with {self._seen}")

    def _work(self):
        return Deferred.fromCoroutine(self._once()).addErrback(lambda failure: self._problem(failure.value))

    async def _once(self):
        began = self._clock.seconds()
        await self._client.configuration.set(KEY, str(self._written + 1))
        self._written += 1
        read = await self._client.configuration.get(KEY)
        if read["value"] != str(self._written):
            self._problem(f"{self._written} was acknowledged, but {read['value']} was read")
        self.count += 1
        self.slowest = max(self.slowest, self._clock.seconds() - began)

    def _eventCame(self, event):
        if event["type"] == "configuration_value.update":
            seen = int(event["payload"]["new_value"])
            if self._seen and seen != self._seen + 1:
                self._problem(f"the feed has {seen} after {self._seen}")
            self._seen = seen
        elif event["type"] == "service.timeout":
            self._problem(f"{event['payload']['id']} expired")

    def _stateChanged(self, state):
        if state != "registered" and not self._stopping:
            self._problem(f"its state is {state}")

    def _problem(self, what):
        self.problems.append(what)
        print(f"error in the application: {what}", flush=True)


async def main(reactor):
    async with Client.fromSettings(reactor) as client:
        application = Application(client, reactor)
        # On SIGTERM and Ctrl-C the reactor runs until all of this is done.
        over = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", application.end)
        reactor.addSystemEventTrigger("before", "shutdown", lambda: over)
        try:
            await application.run()
            await application.leave()
        finally:
            reactor.callLater(0, over.callback, None)
    print(
        f"the application wrote and read {application.count} times, in {application.slowest:.2f} s at most, "
        f"with {len(application.problems)} errors",
        flush=True,
    )
    if application.problems:
        sys.exit(1)


useMonotonic(reactor)
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
