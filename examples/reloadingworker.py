"""
A worker that reloads when its configuration changes.

Start a registry (``twistd -n --pidfile= service-registry``), then this worker, and change its configuration while it
runs::

    python examples/reloadingworker.py
    raxsr configuration set /worker/interval 0.5
    raxsr configuration set /worker/greeting "Good evening"
    raxsr configuration remove /worker/greeting

It needs no restart and no signal. While the registry is unreachable, it keeps the last values.
"""

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, react

from txserviceregistry import Client, useMonotonic
from txserviceregistry.discovery import ConfigurationWatcher


class Worker:
    """Prints a greeting in an interval."""

    def __init__(self, configuration):
        self.configuration = configuration
        self.loop = LoopingCall(self.work)

    def work(self):
        print(self.configuration.get("/worker/greeting", "Hello"), flush=True)

    def reload(self, change=None):
        if change is not None:
            print(f"{change.key}: {change.old} -> {change.new}", flush=True)
        if self.loop.running:
            self.loop.stop()
        try:
            interval = max(0.1, float(self.configuration.get("/worker/interval", "2")))
        except ValueError:
            interval = 2
        self.loop.start(interval)


async def main(reactor):
    async with Client.fromSettings(reactor) as client:
        configuration = ConfigurationWatcher(client, "/worker")
        configuration.startService()
        await configuration.whenReady()
        worker = Worker(configuration)
        configuration.onChange(worker.reload)
        worker.reload()
        await Deferred()


useMonotonic(reactor)
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
