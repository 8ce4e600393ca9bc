"""Row 41: histories of what clients were answered, while nodes and etcd are killed, paused and cut off."""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.needs import fakeTime
from tests.system.etcd.relay import Relay
from tests.system.ports import freePorts
from tests.system.processes import reactor

from .clustercase import ClusterCase
from .history import UNKNOWN, LockOperation, Operation, Registration, isLinearizable, wrongOf

#: Seconds for which faults follow each other at full length, unless the environment says otherwise.
_SECONDS = float(os.environ.get("HISTORY_SECONDS", "600"))
#: Seconds after which a client takes its request for lost.
_LOST = 2.0
#: Operations on one object, after which another one is used: the search grows with the unknown outcomes of one.
_EACH = 40
#: The heartbeat timeout of the services, in seconds.
_TIMEOUT = 4
_LEASE = 5


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


class HistoryTests(ClusterCase):
    """Clients that send each request to another node, as behind a proxy that deals them."""

    row = 41
    fault = (
        "Nodes are killed, paused for longer than their lease or cut off from etcd (not from clients); etcd's leader "
        "is killed; a clock is stepped. Each request goes to another node, and histories are checked"
    )

    def setUp(self) -> None:
        super().setUp()
        self.random = Random(41)
        self.operations: dict[str, list[Operation]] = defaultdict(list)
        self.registrations: dict[str, Registration] = {}
        # Those that are to expire, with the time of their last heartbeat.
        self.silent: dict[str, float] = {}
        self.turns = itertools.count()
        self.names = itertools.count()
        self.isOver = False

    # -- the cluster

    async def start(self) -> None:
        """The first node reaches etcd through a relay, and the last one has a clock of its own."""
        await self.startMembers()
        self.relay = Relay(reactor, int(self.members[0].url.rpartition(":")[2]))
        self.relay.start()
        self.addCleanup(self.relay.stop)
        self.wallClock = Path(self.home, "faketime")
        etcd = ",".join(member.url for member in self.members)
        places: list[tuple[str, Any]] = [(self.relay.url, None), (etcd, None), (etcd, fakeTime(self.wallClock))]
        for number, (port, (url, environment)) in enumerate(zip(freePorts(3), places, strict=True)):
            self.addNode(number, port, url, environment=environment)
        await self.startAll()
        credentials = self.credentials()
        body = {
            "auth": {
                "RAX-KSKEY:apiKeyCredentials": {
                    "username": credentials["username"],
                    "apiKey": credentials["api_key"],
                }
            }
        }
        response = await treq.post(f"{self.nodes[0].url}/v2.0/tokens", json=body, persistent=False)
        access = (await response.json())["access"]
        self.token, self.tenant = access["token"]["id"], access["token"]["tenant"]["id"]

    async def request(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any], str | None]:
        """Ask the next node; the status (0 for no response), the body and the tag."""
        node = self.nodes[next(self.turns) % len(self.nodes)]
        given = {"X-Auth-Token": self.token, **{name.replace("_", "-"): text for name, text in headers.items()}}
        content = {} if body is None else {"json": body}
        try:
            response = await treq.request(
                method,
                f"{node.url}/v1.0/{self.tenant}{path}",
                headers=given,
                timeout=_LOST,
                persistent=False,
                **content,
            )
            data = await response.json().addTimeout(_LOST, reactor) if response.code != 204 else {}
        except Exception:
            return 0, {}, None
        return response.code, data, response.headers.getRawHeaders("ETag", [None])[0]

    # -- clients

    async def done(self, name: str, kind: str, ask: Awaitable[Any], **more: str | None) -> Any:
        """Keep an operation and its outcome; returns the response."""
        begin = time.monotonic()
        response = code, data, _ = await ask
        outcome: object = UNKNOWN
        if kind == "get" and code in (200, 404):
            outcome = data["value"] if code == 200 else None
        elif kind != "get" and code in (200, 201, 204):
            outcome = True
        elif kind != "get" and (code in (404, 412) or data.get("type") == "serviceWithThisIdExists"):
            outcome = False
        elif code not in (0, 503):
            raise AssertionError(f"{kind} {name}: {response}")
        self.operations[name].append(Operation(kind, outcome, begin, time.monotonic(), **more))
        return response

    async def values(self, worker: int) -> None:
        """Read and write configuration values, some of them with a condition, which other clients change as well."""
        tag = seen = None
        name = ""
        while not self.isOver:
            number = sum(map(len, self.operations.values())) // (3 * _EACH)
            if name != f"/history/key{number}":
                name, tag = f"/history/key{number}", None
            value, kind = f"{worker}-{next(self.names)}", self.random.random()
            if kind < 0.4:
                code, data, tag = await self.done(name, "get", self.request("GET", f"/configuration{name}"))
                seen = data.get("value") if code == 200 else None
            elif kind < 0.7 and tag is not None:
                ask = self.request("PUT", f"/configuration{name}", {"value": value}, If_Match=tag)
                await self.done(name, "swap", ask, value=value, expected=seen)
            elif kind < 0.95:
                ask = self.request("PUT", f"/configuration{name}", {"value": value})
                await self.done(name, "set", ask, value=value)
            else:
                await self.done(name, "remove", self.request("DELETE", f"/configuration{name}"))
            await pause(self.random.uniform(0.01, 0.1))

    async def creates(self, worker: int) -> None:
        """Create and remove services that other clients create and remove as well."""
        while not self.isOver:
            name = f"made-{sum(map(len, self.operations.values())) // (3 * _EACH)}"
            if self.random.random() < 0.6:
                ask = self.request("POST", "/services", {"id": name, "heartbeat_timeout": 120})
                await self.done(name, "create", ask, value="x")
            else:
                await self.done(name, "remove", self.request("DELETE", f"/services/{name}"))
            await pause(self.random.uniform(0.01, 0.1))

    async def locks(self, worker: int) -> None:
        """Acquire and release locks that other clients acquire as well, and end some by force."""
        name, nonce, token = "", None, None
        while not self.isOver:
            number = sum(map(len, self.operations.values())) // (3 * _EACH)
            if name != f"/history/lock{number}":
                name, nonce, token = f"/history/lock{number}", None, None
            kind, begin, value = self.random.random(), time.monotonic(), None
            if kind < 0.2:
                what, body = "get", None
                code, data, _ = await self.request("GET", f"/locks?name={name}")
            elif kind < 0.25:
                what, body = "force", {"name": name, "force": True, "now": True}
            elif kind < 0.7 and token is not None:
                what, body, value = "release", {"name": name, "token": token}, nonce
            else:
                # Until its outcome is known, it is repeated.
                nonce = value = nonce or str(UUID(int=self.random.getrandbits(128), version=4))
                what, body = "acquire", {"name": name, "timeout": 120, "holder": nonce, "nonce": nonce}
            if body is not None:
                code, data, _ = await self.request("POST", f"/locks{'/release' if what != 'acquire' else ''}", body)
            outcome: object = UNKNOWN
            if what == "get" and code == 200:
                outcome = next((lock["holder"] for lock in data["values"]), None)
            elif code == 201:
                outcome, token = data["fence"], data["token"]
            elif code in (204, 404, 409):
                outcome = code == 204
                if what != "force":
                    nonce = token = None
            elif code not in (0, 503):
                raise AssertionError(f"{what} {name}: {code} {data}")
            self.operations[name].append(LockOperation(what, outcome, begin, time.monotonic(), value))
            await pause(self.random.uniform(0.01, 0.1))

    async def heartbeats(self, worker: int) -> None:
        """Register services one after the other, send their heartbeats, and let each fall silent."""
        while not self.isOver:
            made = Registration(f"alive-{worker}-{next(self.names)}", _TIMEOUT)
            sent = time.monotonic()
            body = {"id": made.id, "heartbeat_timeout": _TIMEOUT}
            code, data, _ = await self.request("POST", "/services", body)
            if code != 201:
                await pause(0.1)
                continue
            made.heartbeats.append(sent)
            self.registrations[made.id] = made
            ends = time.monotonic() + self.random.choice([0, 6, 30])
            while not self.isOver and time.monotonic() < ends and made.missing is None:
                await pause(self.random.uniform(0.3, 0.6) * _TIMEOUT)
                await self.heartbeat(made, data)
            self.silent[made.id] = time.monotonic()

    async def heartbeat(self, made: Registration, last: dict[str, Any]) -> None:
        """Send a heartbeat until a node decides about it; *last* holds the token."""
        while not self.isOver:
            sent = time.monotonic()
            code, data, _ = await self.request("POST", f"/services/{made.id}/heartbeat", {"token": last["token"]})
            if code == 200:
                last["token"] = data["token"]
                made.heartbeats.append(sent)
                return
            if code == 404:
                made.missing = sent
                return
            await pause(0.1)

    # -- faults

    async def cutOff(self) -> None:
        """A node that its clients reach loses etcd."""
        self.relay.hang()
        await pause(self.random.uniform(1, 7) if self.isFull else 4)
        self.relay.heal()

    async def killNode(self) -> None:
        await self.nodes[1].kill()
        await self.nodes[1].start()

    async def pauseNode(self) -> None:
        """A node stands still for longer than its lease, with another time when it goes on."""
        self.nodes[2].running.kill("STOP")
        await pause(self.random.uniform(0.5, 9) if self.isFull else _LEASE + 1.5)
        self.wallClock.write_text(f"{self.random.choice(['+3600', '-3600', '+0'])}\n")
        self.nodes[2].running.kill("CONT")

    async def killLeader(self) -> None:
        member, id = await self.leader()
        await member.kill()
        await self.leader(besides=id)
        await member.start()

    async def troubles(self) -> int:
        """One fault after the other, two of them together where there is little time; returns how many."""
        kinds: list[Callable[[], Awaitable[None]]] = [self.cutOff, self.pauseNode, self.killNode, self.killLeader]
        if not self.isFull:
            await gatherResults([Deferred.fromCoroutine(kind()) for kind in (self.cutOff, self.pauseNode)])
            await self.killNode()
            await self.killLeader()
            return len(kinds)
        end = time.monotonic() + _SECONDS
        for count in itertools.count(1):
            await kinds[count % len(kinds)]()
            await pause(self.random.uniform(0, 8))
            if time.monotonic() > end:
                break
        return count

    async def test_histories(self) -> None:
        """Values, creates and locks are linearizable; no service expires early, twice or not at all."""
        await self.start()
        followers = await self.followAll()
        workers = [work for each in (self.values, self.creates, self.locks) for work in map(each, range(3))]
        running = [Deferred.fromCoroutine(each) for each in (*workers, *map(self.heartbeats, range(6)))]
        await pause(1)
        count = await self.troubles()
        self.isOver = True
        await gatherResults(running)
        ended = time.monotonic()
        await self.until(lambda: self.areTold(followers[1].heard))
        latest = time.monotonic()
        for at, event in followers[1].heard:
            made = self.registrations.get(event["payload"].get("id", ""))
            if event["type"] == "service.timeout" and made is not None:
                made.expired.append(at)
        registrations = list(self.registrations.values())
        self.assertEqual(wrongOf(registrations), [])
        self.assertEqual({len(each.expired) for each in registrations}, {1})
        wrong = [name for name, operations in self.operations.items() if not isLinearizable(operations)]
        self.assertEqual([(name, self.operations[name]) for name in wrong], [])
        if self.isPunctual:
            self.assertLess(latest - ended, _LEASE + 1 + _TIMEOUT + 2)
        operations = [each for of in self.operations.values() for each in of]
        self.tell("faults", count)
        self.tell("operations on values, services and locks, all linearizable", len(operations))
        self.tell("of these with an unknown outcome", sum(each.outcome == UNKNOWN for each in operations))
        self.tell("acknowledged heartbeats", sum(len(each.heartbeats) for each in registrations))
        self.tell("registrations without heartbeats, each reported once, none within its timeout", len(registrations))

    async def areTold(self, heard: list[tuple[float, Any]]) -> bool:
        """Whether all registrations have been reported."""
        told = {event["payload"].get("id") for _, event in heard if event["type"] == "service.timeout"}
        return told >= set(self.registrations)
