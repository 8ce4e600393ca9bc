"""
A synchronous program, all of it ``time.sleep`` and ``print``, that is registered while it works, and reads its
configuration from the registry: ``python examples/synchronous.py counter-1``.

Start a registry first, with ``twistd -n --pidfile= service-registry``. crochet runs Twisted in a thread of its
own, where heartbeats go out whatever the main thread is busy with. While it counts, change how::

    raxsr configuration set /counter/step 10
"""

import signal
import sys
import time

import crochet

from txserviceregistry import Client, RegisteredService, useMonotonic
from txserviceregistry.errors import NotFound

useMonotonic()  # before crochet schedules anything
crochet.setup()


class Registry:
    """What this program wants of the registry: methods that wait for the answer, in the main thread."""

    @crochet.wait_for(timeout=10)
    async def join(self, name):
        from twisted.internet import reactor

        self.client = Client.fromSettings()
        self.me = RegisteredService(self.client, name, 30, tags=["counter"])
        self.me.startService()
        # However the main thread ends, the service leaves the registry before Twisted does.
        reactor.addSystemEventTrigger("before", "shutdown", self.me.stopService)
        await self.me.whenRegistered()

    @crochet.wait_for(timeout=10)
    async def get(self, key, default):
        try:
            return (await self.client.configuration.get(key))["value"]
        except NotFound:
            return default


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
registry = Registry()
registry.join(sys.argv[1])
print(f"{sys.argv[1]} is registered", flush=True)
number = 0
try:
    while True:
        number += int(registry.get("/counter/step", "1"))
        print(number, flush=True)
        time.sleep(0.5)
except KeyboardInterrupt:
    pass
