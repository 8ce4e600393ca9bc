"""
An asyncio application that registers itself, and hears of its neighbours.

Start a registry first, with ``twistd -n --pidfile= service-registry``, and then, in two terminals::

    python examples/asyncioservice.py echo-1
    python examples/asyncioservice.py echo-2

Each listens, through asyncio, on whatever port is free, sends back in capitals what it is sent, and prints which of
them come and go, itself among them. Ctrl-C, or SIGTERM, takes it out of the registry.
"""

import asyncio
import signal
import sys

from twisted.internet import asyncioreactor

# The two share one loop. This comes before anything that imports twisted.internet.reactor.
loop = asyncio.new_event_loop()
asyncioreactor.install(loop)

from twisted.internet.defer import Deferred  # noqa: E402  # it has to come after install()
from twisted.internet.task import react  # noqa: E402  # as above

from txserviceregistry import Client, RegisteredService, useMonotonic  # noqa: E402  # as above
from txserviceregistry.discovery import Directory  # noqa: E402  # as above


async def echo(reader, writer):
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


async def answers(host, port):
    """What this application calls being well: somebody who connects gets an answer."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"ping\n")
    answer = await asyncio.wait_for(reader.readline(), 1)
    writer.close()
    return answer == b"PING\n"


async def main(reactor, name):
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    client = Client.fromSettings(reactor)
    me = RegisteredService(
        client,
        name,
        30,
        tags=["echo"],
        metadata={"host": host, "port": str(port)},
        # What wants a Deferred is given one of a task.
        check=lambda: Deferred.fromFuture(loop.create_task(answers(host, port))),
    )
    neighbours = Directory(client, "echo")
    neighbours.onChange(lambda kind, service: print(f"{kind}: {service['id']}", flush=True))
    try:
        neighbours.startService()
        me.startService()
        # What gives a Deferred is awaited through a Future.
        await me.whenRegistered().asFuture(loop)
        print(f"{name} is registered, and listens on {host}:{port}", flush=True)
        await stopping.wait()
    finally:
        # First out of the registry, then the port, then the rest.
        await me.stopService().asFuture(loop)
        server.close()
        await neighbours.stopService().asFuture(loop)
        await client.close().asFuture(loop)


useMonotonic()
react(lambda reactor, *arguments: Deferred.fromFuture(loop.create_task(main(reactor, *arguments))), sys.argv[1:])
