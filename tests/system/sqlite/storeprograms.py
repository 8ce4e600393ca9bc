"""
Programs that the tests of the SQLite store run as processes of their own, with ``python -m``.

Each is called with its name and the path of a store, and prints what it did.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import tempfile
from collections.abc import Awaitable, Sequence
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, gatherResults

from tests.unit.registry.stores.storesuite import countValues
from tests.unit.registry.stores.test_stores import HandReactor
from txserviceregistry.registry.model import NewService
from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.registry.stores.sqlite.store import SqliteStore

NOBODY = 65534


async def outcome(operation: Awaitable[Any]) -> str:
    """Whether the store could do it."""
    try:
        await operation
    except StoreUnavailable:
        return "unavailable"
    return "done"


async def writeStream(path: str) -> None:
    """Write without an end, ten at a time; print each write as soon as it is acknowledged."""
    store = SqliteStore(path, reactor=reactor)
    await store.open()

    async def write(lane: int) -> None:
        number = lane
        while True:
            made = await store.createService("1", NewService(f"s{number}", 30, ("t",), {"n": str(number)}), 1_000_000)
            print("service", made.id, made.incarnation, flush=True)
            await store.setValue("1", f"k{number}", str(number), 1_000_000)
            print("value", f"k{number}", flush=True)
            if number % 30 < 10:
                await store.removeService("1", made.id, made.incarnation)
                print("removed", made.id, flush=True)
            number += 10

    await gatherResults([Deferred.fromCoroutine(write(lane)) for lane in range(10)])


async def editUsers(path: str) -> None:
    """Do what the users command does: add one user, and give another a new key."""
    store = SqliteStore(path, reactor=reactor)
    await store.open()
    await store.addUser("ann", "hash", None)
    await store.replaceUserKey("joe", "new")
    await store.close()


async def fillDisk(path: str) -> None:
    """Let files grow no further for a while; print what could be done before, meanwhile and after."""
    store = SqliteStore(path, reactor=reactor)
    await store.open()
    value = "x" * 1000
    done = [await outcome(store.setValue("1", "before", value, 100_000))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path + "-wal"), hard))
    meanwhile = [store.setValue("1", f"meanwhile{n}", value, 100_000) for n in range(100)]
    done += sorted({await outcome(one) for one in [store.probe(), *meanwhile]})
    found = [value.key for value in await store.listValues("1", None, 1000, None)]
    events = len(await store.listEvents("1", 0, 1000, None))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done.append(await outcome(store.setValue("1", "after", value, 100_000)))
    count = await countValues(store)
    await store.close()
    print(json.dumps({"done": done, "found": found, "events": events, "count": count}))


async def almostFillDisk(path: str) -> None:
    """
    Leave files room for so many pages; print what becomes of writes of some size and of probes, then and afterwards.
    """
    clock = HandReactor()
    store = SqliteStore(path, reactor=clock)
    await store.open()
    await gatherResults([store.setValue("1", f"key{n}", "x" * 1000, 100_000) for n in range(200)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    keys = itertools.count()

    async def tries(pages: int, sizes: Sequence[int]) -> list[str]:
        """Write values of these sizes while there is room for so many pages; 0 is a probe, -1 lets time pass."""
        size = max(os.path.getsize(path), os.path.getsize(path + "-wal"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + pages * 4120, hard))
        found = []
        for size in sizes:
            if size < 0:
                clock.advance(10)
            elif size:
                found.append(await outcome(store.setValue("1", f"{next(keys)}", "x" * size, 100_000)))
            else:
                found.append(await outcome(store.probe()))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return found

    print(json.dumps([await tries(pages, sizes) for pages, sizes in json.loads(os.environ["TRIES"])]))
    await store.close()


async def writeProtected(_: str) -> None:
    """Open a file that may only be read, then allow writing; print what could be done."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "store")
        store = SqliteStore(path, reactor=reactor)
        await store.open()
        await store.setValue("1", "key", "value", 10)
        await store.close()
        if os.geteuid() == 0:  # no file is protected from this user
            os.chown(folder, NOBODY, NOBODY)
            os.chown(path, NOBODY, NOBODY)
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        os.chmod(path, 0o400)
        store = SqliteStore(path, reactor=reactor)
        await store.open()
        done = [await outcome(store.setValue("1", "key", "other", 10)), (await store.getValue("1", "key")).value]
        done.append(await outcome(store.probe()))
        for name in os.listdir(folder):
            os.chmod(os.path.join(folder, name), 0o600)
        done += [await outcome(store.setValue("1", "key", "other", 10)), (await store.getValue("1", "key")).value]
        done.append(await outcome(store.probe()))
        await store.close()
    print(json.dumps(done))


def main() -> None:
    program = {
        "writeStream": writeStream,
        "editUsers": editUsers,
        "fillDisk": fillDisk,
        "almostFillDisk": almostFillDisk,
        "protect": writeProtected,
    }
    name, path = sys.argv[1:]
    task.react(lambda _: Deferred.fromCoroutine(program[name](path)))


if __name__ == "__main__":
    main()
