"""
An asyncio application that registers itself and watches other instances.

Start a registry first, with ``twistd -n --pidfile= service-registry``, and then, in two terminals::

    python examples/asyncioservice.py echo-1
    python examples/asyncioservice.py echo-2

Each listens on a free port with asyncio, and returns lines in capitals. It prints which instances register and
deregister, itself included. Ctrl-C or SIGTERM deregisters it.
"""

import asyncio
import signal
import sys

from twisted.internet import asyncioreactor

# Twisted and asyncio share one loop. Install it before anything imports twisted.internet.reactor.
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
    """The health check: this application responds to a connection."""
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
        # The check returns a Deferred, made from an asyncio task.
        check=lambda: Deferred.fromFuture(loop.create_task(answers(host, port))),
    )
    neighbours = Directory(client, "echo")
    neighbours.onChange(lambda kind, service: print(f"{kind}: {service['id']}", flush=True))
    try:
        neighbours.startService()
        me.startService()
        # An asyncio coroutine awaits a Deferred through a Future.
        await me.whenRegistered().asFuture(loop)
        print(f"{name} is registered, and listens on {host}:{port}", flush=True)
        await stopping.wait()
    finally:
        # Deregister first, then close the port.
        await me.stopService().asFuture(loop)
        server.close()
        await neighbours.stopService().asFuture(loop)
        await client.close().asFuture(loop)


useMonotonic()
react(lambda reactor, *arguments: Deferred.fromFuture(loop.create_task(main(reactor, *arguments))), sys.argv[1:])
