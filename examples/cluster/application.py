"""
An application in a registry of several nodes. It knows nothing of clusters: that is all in its settings.

It is registered with the shortest timeout that there is, writes a value and reads it back five times a second, and
follows the events. At its end it tells what went wrong, and how long the slowest answer took. Run by ``cluster.py``;
by hand, beside any registry::

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
    Works, and keeps account of it.

    :ivar troubles: what went wrong.
    """

    def __init__(self, client, clock):
        self.troubles = []
        self.count = 0
        self.slowest = 0.0
        self._client = client
        self._clock = clock
        # The last value that was acknowledged, and the last one that the feed has told of.
        self._written = self._told = 0
        self._stopping = False
        self._service = RegisteredService(client, "application", 3, tags=["example"])
        self._feed = EventsFeed(client)
        self._loop = LoopingCall(self._work)

    async def run(self):
        self._service.startService()
        await self._service.whenRegistered()
        self._service.onStateChange(self._stateChanged)
        self._feed.onEvent(self._heard)
        self._feed.onGap(lambda: self._trouble("the feed has a gap"))
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
        if self._told != self._written:
            self._trouble(f"{self._written} was written, and the feed has told of {self._told}")

    def _work(self):
        return Deferred.fromCoroutine(self._once()).addErrback(lambda failure: self._trouble(failure.value))

    async def _once(self):
        began = self._clock.seconds()
        await self._client.configuration.set(KEY, str(self._written + 1))
        self._written += 1
        read = await self._client.configuration.get(KEY)
        if read["value"] != str(self._written):
            self._trouble(f"{self._written} was acknowledged, and {read['value']} is there")
        self.count += 1
        self.slowest = max(self.slowest, self._clock.seconds() - began)

    def _heard(self, event):
        if event["type"] == "configuration_value.update":
            told = int(event["payload"]["new_value"])
            if self._told and told != self._told + 1:
                self._trouble(f"the feed tells of {told} after {self._told}")
            self._told = told
        elif event["type"] == "service.timeout":
            self._trouble(f"{event['payload']['id']} timed out")

    def _stateChanged(self, state):
        if state != "registered" and not self._stopping:
            self._trouble(f"it is {state}")

    def _trouble(self, what):
        self.troubles.append(what)
        print(f"the application noticed: {what}", flush=True)


async def main(reactor):
    async with Client.fromSettings(reactor) as client:
        application = Application(client, reactor)
        # SIGTERM and Ctrl-C: the reactor goes on until all of this is over.
        over = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", application.end)
        reactor.addSystemEventTrigger("before", "shutdown", lambda: over)
        try:
            await application.run()
            await application.leave()
        finally:
            reactor.callLater(0, over.callback, None)
    print(
        f"the application wrote and read {application.count} times, the slowest took {application.slowest:.2f} s, "
        f"and it noticed {len(application.troubles) or 'nothing'}",
        flush=True,
    )
    if application.troubles:
        sys.exit(1)


useMonotonic(reactor)
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
