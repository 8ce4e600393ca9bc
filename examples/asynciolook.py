"""
A program that asyncio runs, and that asks the registry: ``python examples/asynciolook.py echo hello`` connects to each
service with the tag ``echo`` that has an address, says ``hello``, and prints what they answer.

It goes with ``asyncioservice.py``.
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
    # Twisted's reactor joins the loop that runs already, and leaves the signals to it.
    asyncioreactor.install(loop)
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from txserviceregistry import Client, useMonotonic
    from txserviceregistry.errors import ServiceRegistryError

    useMonotonic()
    reactor.startRunning(installSignalHandlers=False)
    client = Client.fromSettings()

    async def find():
        # "async for" over what the client gives works in coroutines that Twisted runs.
        return [service async for service in client.services.iterate(tag) if "port" in service["metadata"]]

    try:
        services = await asyncio.wait_for(Deferred.fromCoroutine(find()).asFuture(loop), 5)
        for line in await asyncio.gather(*(ask(service, words) for service in services)):
            print(line)
    except ServiceRegistryError as error:
        sys.exit(str(error))
    finally:
        await client.close().asFuture(loop)
        # Names were looked up in Twisted's threads, and Python waits for threads before it ends.
        reactor.getThreadPool().stop()


asyncio.run(main(*sys.argv[1:]))
