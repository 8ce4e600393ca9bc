"""
A synchronous program, migrated from python-consul: ``python examples/fromconsul.py``.

docs/from-consul.rst shows the original. Start a registry first (``twistd -n --pidfile= service-registry``). crochet
(``pip install crochet``) runs Twisted in a thread.
"""

import crochet

from txserviceregistry import Client, RegisteredService, useMonotonic
from txserviceregistry.coordination import Lock
from txserviceregistry.errors import LockHeld

useMonotonic()
crochet.setup()


@crochet.wait_for(timeout=10)
async def start():
    client = Client.fromSettings()
    service = RegisteredService(client, "web1", 30, tags=["web", "v2"], metadata={"host": "10.0.0.5", "port": "8000"})
    service.startService()  # its heartbeats are sent in crochet's thread
    await service.whenRegistered()
    return client, service


@crochet.wait_for(timeout=10)
async def call(method, *arguments):
    return await method(*arguments)


@crochet.wait_for(timeout=10)
async def acquire(name):
    return await Lock(client, name).acquire(0)


client, service = start()

for node in call(client.services.listForTag, "web")["values"]:
    if "v2" in node["tags"]:
        print(node["metadata"]["host"], node["metadata"]["port"])

call(client.configuration.set, "/web/workers", "4")
print(call(client.configuration.get, "/web/workers")["value"])

try:
    held = acquire("/web/report")
except LockHeld as error:
    print("held by", error.holder)
else:
    try:
        print("reporting")
    finally:
        call(held.release)

call(service.stopService)
