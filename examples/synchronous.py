"""
A synchronous program that registers itself and reads its configuration: ``python examples/synchronous.py counter-1``.

Start a registry first (``twistd -n --pidfile= service-registry``). crochet (``pip install crochet``) runs Twisted in a
thread, which sends heartbeats while the main thread is busy. Change the step while it counts::

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
    """Methods that wait for the registry, for the main thread."""

    @crochet.wait_for(timeout=10)
    async def register(self, name):
        from twisted.internet import reactor

        self.client = Client.fromSettings()
        self.me = RegisteredService(self.client, name, 30, tags=["counter"])
        self.me.startService()
        # When the main thread ends, the service deregisters before Twisted stops.
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
registry.register(sys.argv[1])
print(f"{sys.argv[1]} is registered", flush=True)
number = 0
try:
    while True:
        number += int(registry.get("/counter/step", "1"))
        print(number, flush=True)
        time.sleep(0.5)
except KeyboardInterrupt:
    pass
