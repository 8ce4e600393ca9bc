"""
The contenders of :mod:`benchmarks.oneservice`: ``python -m benchmarks.contenders NAME ARGUMENT...``.

Each heartbeats one service, as fast as it gets answers and always with the token of the last answer, and imports
nothing that it does not need.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from .harness import answerRounds, inReactor, settingsOf


@asynccontextmanager
async def heartbeating(
    reactor: Any, settings: Any, id: str, timeout: int, token: str, isBatched: bool
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """
    A HeartBeater with an interval of 0 s: all is done that a heartbeat does, and only the waiting is left out.

    :return: sends so many heartbeats.
    """
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater

    from txserviceregistry import Client, HeartBeater, useMonotonic

    useMonotonic()
    left, done = 0, Deferred[None]()

    def count(token: str, proven: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.callback(None)

    async def beat(beats: int) -> None:
        nonlocal left, done
        left, done = beats, Deferred()
        each.start()
        await done
        # Not in the middle of the heartbeat that has called us.
        await deferLater(reactor, 0, lambda: None)
        await each.stop()

    async with Client(settings=settings, reactor=reactor) as client:
        context = client.services.context if isBatched else None
        each = HeartBeater(client.services, id, timeout, token, clock=reactor, context=context, keep=count)
        each.interval = 0
        yield beat


def heartBeater(home: str, id: str, timeout: str, token: str, batched: str = "") -> None:
    """HeartBeater, see :func:`heartbeating`."""

    async def main(reactor: Any) -> None:
        async with heartbeating(reactor, settingsOf(home), id, int(timeout), token, bool(batched)) as beat:
            await answerRounds(beat)

    inReactor(main)


def withTreq(url: str, authToken: str, token: str) -> None:
    """A loop over treq: no deadline, and no care for failures."""
    import treq

    headers = {"X-Auth-Token": authToken}

    async def work(beats: int) -> None:
        nonlocal token
        for _ in range(beats):
            response = await treq.post(url, json={"token": token}, headers=headers)
            token = (await response.json())["token"]

    inReactor(lambda reactor: answerRounds(work))


def withAiohttp(url: str, authToken: str, token: str) -> None:
    """A loop over aiohttp's client, as it is out of the box."""
    import asyncio

    import aiohttp

    async def main() -> None:
        async with aiohttp.ClientSession(headers={"X-Auth-Token": authToken}) as session:

            async def work(beats: int) -> None:
                nonlocal token
                for _ in range(beats):
                    async with session.post(url, json={"token": token}) as response:
                        token = (await response.json())["token"]

            await answerRounds(work)

    asyncio.run(main())


def withAetcd(port: str, timeout: str) -> None:
    """An etcd lease that is kept alive through aetcd."""
    import asyncio

    import aetcd

    async def main() -> None:
        async with aetcd.Client(port=int(port)) as client:
            lease = await client.lease(int(timeout))

            async def work(beats: int) -> None:
                for _ in range(beats):
                    await lease.refresh()

            await answerRounds(work)

    asyncio.run(main())


_CONTENDERS: dict[str, Callable[..., None]] = {
    "heartbeater": heartBeater,
    "treq": withTreq,
    "aiohttp": withAiohttp,
    "aetcd": withAetcd,
}

if __name__ == "__main__":
    _CONTENDERS[sys.argv[1]](*sys.argv[2:])
