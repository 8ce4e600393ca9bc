"""
How long the way of a request through this package is: ``python -m benchmarks.callpath [--list]``.

For a heartbeat that is sent alone and for a registration (``services.create``), at the client and at the registry, over
real sockets: how many functions of this package are called, in how many of its modules, and how often two consecutive
calls are in different modules. ``sys.setprofile`` counts a coroutine once more each time it continues. The clock, which
Twisted's reactor calls too, is not counted, and at the registry only the reactor's thread is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from .contenders import heartbeating
from .harness import Api, Figure, Registry, inReactor, registry

_PACKAGE = "txserviceregistry"
_CLOCK = "txserviceregistry.clock"
_TIMEOUT = 120
_COUNT = 100

# A module and a function.
_Calls = Sequence[tuple[str, str]]


class Recorder:
    """Records the calls of functions of this package, in the thread that starts it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def start(self) -> None:
        """Begin."""
        self.calls = []
        sys.setprofile(self._called)

    def stop(self) -> None:
        """End."""
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.partition(".")[0] == _PACKAGE and module != _CLOCK:
                self.calls.append((module, frame.f_code.co_qualname))


def recordOnSignals(path: str) -> None:
    """In a registry's process: start on SIGUSR1, and on SIGUSR2 stop and write the calls into a file."""
    recorder = Recorder()

    def stop(*_: object) -> None:
        recorder.stop()
        part = Path(f"{path}.part")
        part.write_text(json.dumps(recorder.calls), "utf-8")
        part.rename(path)

    signal.signal(signal.SIGUSR1, lambda *_: recorder.start())
    signal.signal(signal.SIGUSR2, stop)


def _atTheClient(server: Registry, token: str) -> dict[str, _Calls]:
    found: dict[str, _Calls] = {}
    recorder = Recorder()

    async def work(reactor: Any) -> None:
        from txserviceregistry import Client

        async with heartbeating(reactor, server.settings, "client", _TIMEOUT, token, False) as beat:
            await beat(10)
            recorder.start()
            await beat(_COUNT)
            recorder.stop()
            found["heartbeat"] = recorder.calls
        async with Client(settings=server.settings, reactor=reactor) as client:
            await client.services.create("first", _TIMEOUT)
            recorder.start()
            for number in range(_COUNT):
                await client.services.create(f"client-{number}", _TIMEOUT)
            recorder.stop()
            found["create"] = recorder.calls

    inReactor(work)
    return found


def _atTheRegistry(server: Registry, api: Api, token: str, path: Path) -> dict[str, _Calls]:
    def recorded(work: Callable[[int], None]) -> _Calls:
        os.kill(server.costs.pid, signal.SIGUSR1)
        time.sleep(0.1)
        for number in range(_COUNT):
            work(number)
        os.kill(server.costs.pid, signal.SIGUSR2)
        while not path.exists():
            time.sleep(0.01)
        calls = json.loads(path.read_text("utf-8"))
        path.unlink()
        return [(module, name) for module, name in calls]

    def beat(number: int) -> None:
        nonlocal token
        token = api.beat("registry", token)["token"]

    def create(number: int) -> None:
        api.create(f"registry-{number}", _TIMEOUT)

    return {"heartbeat": recorded(beat), "create": recorded(create)}


def _figures(what: str, calls: _Calls) -> list[Figure]:
    modules = [module for module, _ in calls]
    # Calls by timers are not part of it.
    ofEach = [module for module, count in Counter(modules).items() if count >= _COUNT / 2]
    changes = sum(one != other for one, other in pairwise(modules))
    return [
        Figure(f"{what}, calls", len(calls) / _COUNT, ""),
        Figure(f"{what}, modules", len(ofEach), ""),
        Figure(f"{what}, module changes", changes / _COUNT, ""),
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the calls of one heartbeat and of one create too")
    options = parser.parse_args()
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory()), "calls.json")
        record = f"from benchmarks.callpath import recordOnSignals; recordOnSignals({str(path)!r})"
        server = stack.enter_context(registry(before=record))
        with closing(Api(server.home)) as api:
            client, own = (api.create(id, _TIMEOUT)["token"] for id in ("client", "registry"))
            atTheRegistry = _atTheRegistry(server, api, own, path)
        atTheClient = _atTheClient(server, client)
    for place, found in (("client", atTheClient), ("registry", atTheRegistry)):
        for what, calls in found.items():
            print(*_figures(f"{what} at the {place}", calls), sep="\n")
            if options.list:
                each = len(calls) // _COUNT
                print(*(f"    {module}: {name}" for module, name in calls[each : 2 * each]), sep="\n")


if __name__ == "__main__":
    main()
