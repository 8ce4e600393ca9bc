"""
What heartbeats cost a registry: ``python -m benchmarks.heartbeats [BATCHES]``.

The registry, over sqlite, is a second process; this one sends it batches of 1,000 heartbeats over one connection, then
single ones, each with the token that the last one brought. It prints the registry's CPU time for each, in
microseconds: all of it, reading, checking, answering, and the writing of ``last_seen`` that comes later.
"""

import http.client
import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from txserviceregistry.settings import readSettings

from .followers import Costs

REGISTRY = """
import sys
from twisted.internet import reactor
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.service import RegistryService

registry = RegistryService(
    reactor,
    dataDir=sys.argv[1],
    store=sys.argv[2],
    endpoints=["tcp:0:interface=127.0.0.1"],
    limits=ResourceLimits(service=10**6),
)
registry.startService()
registry.whenListening().addCallback(lambda _: print("listening", flush=True))
reactor.addSystemEventTrigger("before", "shutdown", registry.stopService)
reactor.run()
"""

SERVICES = 1000
SINGLE = 5000


class Api:
    """A connection to the registry that runs over *home*."""

    def __init__(self, home):
        settings = readSettings(environ={"RAXSR_DATA_DIR": home}, home=Path(home))
        self.connection = http.client.HTTPConnection(urlsplit(settings.baseUrls[0]).netloc)
        self.headers = {}
        credentials = {"username": settings.username, "apiKey": settings.apiKey}
        access = self.ask("/v2.0/tokens", {"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})["access"]
        self.headers["X-Auth-Token"] = access["token"]["id"]
        self.base = f"/v1.0/{access['token']['tenant']['id']}"

    def ask(self, path, body):
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **self.headers})
        answer = self.connection.getresponse()
        data = answer.read()
        assert answer.status in (200, 201), (answer.status, data)
        return json.loads(data)

    def beatTogether(self, beats):
        return self.ask(self.base + "/heartbeats", {"heartbeats": beats})["values"]

    def beat(self, beat):
        return {**beat, **self.ask(f"{self.base}/services/{beat['id']}/heartbeat", {"token": beat["token"]})}


def measured(name, costs, count, work):
    costs.since()
    began = time.monotonic()
    work()
    took = time.monotonic() - began
    print(f"{name}: {1e6 * costs.since() / count:.1f} µs CPU each, {count / took:.0f}/s")


def measure(api, costs, batches):
    beats = [
        {"id": id, "token": api.ask(api.base + "/services", {"id": id, "heartbeat_timeout": 120})["token"]}
        for id in (f"service-{number:04}" for number in range(SERVICES))
    ]

    def together():
        nonlocal beats
        for _ in range(batches):
            beats = api.beatTogether(beats)

    def alone():
        beat = beats[0]
        for _ in range(SINGLE):
            beat = api.beat(beat)

    measured(f"{batches} batches of {SERVICES}", costs, batches * SERVICES, together)
    measured("one by one", costs, SINGLE, alone)


def main(batches):
    for store in ("sqlite", "memory"):
        with TemporaryDirectory() as home:
            registry = subprocess.Popen([sys.executable, "-c", REGISTRY, home, store], stdout=subprocess.PIPE)
            try:
                assert registry.stdout is not None
                registry.stdout.readline()
                print(store)
                api = Api(home)
                with closing(api.connection):
                    measure(api, Costs(registry.pid), batches)
            finally:
                registry.terminate()
                registry.wait()


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["300"])[0]))
