"""
An ``asyncio.run`` program that finds services: ``python examples/asynciolook.py echo hello`` connects to each service
with the tag ``echo``, sends ``hello``, and prints the responses.

Start ``asyncioservice.py`` first.
"""

import asyncio
import sys

from twisted.internet import asyncioreactor


async def ask(service, words):
    reader, writer = await asyncio.open_connection(service["metadata"]["host"], service["metadata"]["port"])
    writer.write(f"{words}\n".encode())
    answer = await reader.readline()
    writer.close()
    return f"{service['id']}: {answer.decode().strip()}"


async def main(tag, words):
    loop = asyncio.get_running_loop()
    # Twisted's reactor joins the running loop, and leaves signals to it.
    asyncioreactor.install(loop)
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from txserviceregistry import Client, useMonotonic
    from txserviceregistry.errors import ServiceRegistryError

    useMonotonic()
    reactor.startRunning(installSignalHandlers=False)
    client = Client.fromSettings()

    async def find():
        # "async for" over the client's results needs a coroutine that Twisted runs.
        return [service async for service in client.services.iterate(tag) if "port" in service["metadata"]]

    try:
        services = await asyncio.wait_for(Deferred.fromCoroutine(find()).asFuture(loop), 5)
        for line in await asyncio.gather(*(ask(service, words) for service in services)):
            print(line)
    except ServiceRegistryError as error:
        sys.exit(str(error))
    finally:
        await client.close().asFuture(loop)
        # Twisted looks up host names in threads, and Python waits for threads before it exits.
        reactor.getThreadPool().stop()


asyncio.run(main(*sys.argv[1:]))
