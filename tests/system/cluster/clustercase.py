"""
The common parts of the rows that run a cluster: members of etcd, nodes of the registry, and subscribers to their feeds.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SkipTest

from tests.needs import SENTENCE
from tests.system.etcd.etcds import etcdCommand
from tests.system.faults.audit import Audit
from tests.system.faults.faultcase import FaultCase
from tests.system.faults.journal import STALL, Application, Operation, Outcome
from tests.system.ports import freePorts
from tests.system.processes import PATIENCE, Child, isCrowded, reactor
from txserviceregistry import Client
from txserviceregistry.discovery import EventsFeed
from txserviceregistry.discovery.feed import FeedEvent
from txserviceregistry.settings import readSettings
from txserviceregistry.util.deferred import returnsDeferred

__all__ = ["ClusterCase", "Follower", "Member", "Node", "ask", "expirations", "started"]

# As many as the largest row has, with room for those that come and go.
_MOST_SERVICES = 2000
# Seconds that a question to etcd or to a node's own pages may take.
_SOON = 1.0


@cache
def findEtcd() -> str | None:
    """
    An etcd that survives being killed. The one that the extra ``test`` brings does not: 3.5.0 to 3.5.2 may
    lose then what they have acknowledged (etcd's issue 13766).
    """
    for folder in [*os.get_exec_path(), "/usr/bin"]:
        program = shutil.which("etcd", path=folder)
        if program is None:
            continue
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        if re.search(r"Version: 3\.(?!5\.[012]\b)", version):
            return program
    return None


async def ask(
    method: str,
    url: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    patience: float = _SOON,
) -> tuple[int, Any]:
    """The status and the JSON of an answer; 0 if there is none within so many seconds."""
    try:
        content = {} if body is None else {"json": body}
        response = await treq.request(method, url, **content, headers=headers, timeout=patience, persistent=False)
        return response.code, await response.json().addTimeout(patience, reactor)
    except Exception:
        return 0, None


@attrs.define
class _Process:
    """
    A process that can be killed, and started again as it was.

    :ivar start: starts it, and waits until it is there.
    """

    name: str
    url: str
    start_: Callable[[], Deferred[Child]]
    child: Child | None = None

    async def start(self) -> None:
        self.child = await self.start_()

    @property
    def running(self) -> Child:
        assert self.child is not None
        return self.child

    async def kill(self) -> None:
        """By SIGKILL."""
        self.running.kill("KILL")
        await self.running.ended


class Member(_Process):
    """A member of etcd."""

    async def status(self) -> Any:
        """Its report of itself and its leader; ``None`` if it says nothing."""
        code, status = await ask("POST", f"{self.url}/v3/maintenance/status", {})
        return status if code == 200 else None


class Node(_Process):
    """A registry."""

    async def health(self) -> int:
        """The status of its ``/health``; 0 if there is no answer."""
        code, _ = await ask("GET", f"{self.url}/health")
        return code


@returnsDeferred
async def started(node: Node) -> None:
    """Start a node beside others."""
    await node.start()


def expirations(events: Iterable[Any], application: Application) -> list[str]:
    """The ids of the events of an application's services that expired."""
    ended = [event for event in events if event["type"] == "service.timeout"]
    return [event["id"] for event in ended if event["payload"]["id"] in application.states]


class Follower:
    """
    Follows the feed of one node.

    :ivar heard: the events, with the times at which they came.
    :ivar gaps: how often the feed lost its place.
    """

    def __init__(self, client: Client) -> None:
        self.heard: list[tuple[float, FeedEvent]] = []
        self.gaps = 0
        self._feed = EventsFeed(client)
        self._feed.onEvent(self._hear)
        self._feed.onGap(self._gap)

    def _hear(self, event: FeedEvent) -> None:
        self.heard.append((time.monotonic(), event))

    def _gap(self) -> None:
        self.gaps += 1

    async def start(self) -> None:
        """Follow, from now on."""
        self._feed.startService()

    def stop(self) -> Deferred[None]:
        """Follow no more."""
        return self._feed.stopService()

    def ids(self, type: str) -> list[str]:
        """Those of the events of a type, in the order in which they came."""
        return [event["id"] for _, event in self.heard if event["type"] == type]

    def expirations(self, application: Application) -> list[str]:
        """The ids of the events of an application's services that expired."""
        return expirations((event for _, event in self.heard), application)


class ClusterCase(FaultCase):
    """
    A row that runs three members of etcd and three registries over them.

    :ivar members: those of etcd.
    :ivar nodes: the registries.
    """

    def setUp(self) -> None:
        super().setUp()
        if findEtcd() is None:
            raise SkipTest(SENTENCE)
        self.members: list[Member] = []
        self.nodes: list[Node] = []
        self.prefix = "/test/"

    # -- etcd

    async def startMembers(self, count: int = 3) -> None:
        """Start etcd, and wait until it has a leader."""
        ports = freePorts(2 * count)
        self.addMembers(ports[:count], ports[count:], [f"http://127.0.0.1:{port}" for port in ports[count:]])
        for member in self.members:
            await member.start()
        await self.until(self.areHealthy)

    def addMembers(self, clients: Sequence[int], peers: Sequence[int], urls: Sequence[str]) -> None:
        """
        Members of etcd, which are not started yet.

        :param clients: their ports for clients,
        :param peers: those for each other,
        :param urls: and where they reach each other.
        """
        program = findEtcd()
        assert program is not None
        cluster = ",".join(f"etcd{number}={url}" for number, url in enumerate(urls))
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            name, at = f"etcd{number}", f"http://127.0.0.1:{client}"
            folder = os.path.join(self.home, name)
            listen = f"--listen-peer-urls=http://127.0.0.1:{peer}"
            command = etcdCommand(
                folder, at, urls[number], listen, "--logger=zap", program=program, name=name, cluster=cluster
            )
            self.members.append(Member(name, at, lambda command=command: self._startMember(command)))

    async def _startMember(self, command: Sequence[str]) -> Child:
        clean = {name: "" for name in os.environ if name.startswith("ETCD_")}
        return self.spawn(*command, environment=clean)

    async def areHealthy(self) -> bool:
        """Whether all members are there, and have one leader."""
        statuses = [await member.status() for member in self.members]
        leaders = {status and status.get("leader") for status in statuses}
        return len(leaders) == 1 and leaders.isdisjoint({None, "0"})

    async def leader(self, besides: object = None) -> tuple[Member, str]:
        """
        The member that leads, and its id there.

        :param besides: the id of one that does so no more.
        """

        async def found() -> tuple[Member, str] | None:
            for member in self.members:
                status = await member.status()
                id = status and status["header"]["member_id"]
                if status and status.get("leader") == id != besides:
                    return member, id
            return None

        leader: tuple[Member, str] = await self.until(found)
        return leader

    # -- registries

    async def startNodes(self, count: int = 3, *options: str) -> None:
        """Start registries."""
        etcd = ",".join(member.url for member in self.members)
        for number, port in enumerate(freePorts(count)):
            self.addNode(number, port, etcd, *options)
        await self.startAll()

    async def startAll(self) -> None:
        """Start all nodes: the first one alone, as it makes the user, and then the others together."""
        await self.nodes[0].start()
        await gatherResults([started(node) for node in self.nodes[1:]])

    def addNode(
        self, number: int, port: int, etcd: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """One more registry, which is not started yet."""
        command = [
            "service-registry",
            *("--listen", f"tcp:{port}:interface=127.0.0.1", "--data-dir", self.dataDirOf(number)),
            *("--store", "etcd", "--etcd", etcd, "--etcd-prefix", self.prefix),
            *("--max-services", str(_MOST_SERVICES), *options),
        ]
        self.nodes.append(
            Node(f"node{number}", f"http://127.0.0.1:{port}", lambda: self._startNode(command, environment))
        )

    async def _startNode(self, command: Sequence[str], environment: Mapping[str, str] | None) -> Child:
        node = self.twistd(*command, environment=environment)
        await node.says("The registry listens on")
        return node

    def dataDirOf(self, number: int) -> str:
        """The data directory of a node."""
        return os.path.join(self.home, f"node{number}")

    def credentials(self, number: int = 0) -> dict[str, str]:
        """Those that a node has written for its machine; nothing if it has written none."""
        raxrc = configparser.ConfigParser(interpolation=None)
        raxrc.read(Path(self.dataDirOf(number), "raxrc"))
        return dict(raxrc["credentials"]) if raxrc.has_section("credentials") else {}

    async def startCluster(self, *options: str) -> None:
        """Start all of it."""
        await self.startMembers()
        await self.startNodes(3, *options)

    # -- applications and clients

    def environmentOf(self, *nodes: Node) -> dict[str, str]:
        """What, in a program's environment, sends it to these nodes; to all if none is named."""
        credentials = self.credentials()
        return {
            "RAXSR_API_URL": ",".join(f"{node.url}/v1.0" for node in nodes or self.nodes),
            "RAXSR_USERNAME": credentials["username"],
            "RAXSR_API_KEY": credentials["api_key"],
        }

    def client(self, *nodes: Node, **options: Any) -> Client:
        """A client of these nodes, of all if none is named; closed with the test."""
        settings = readSettings(environ={"HOME": self.home, **self.environmentOf(*nodes)}, home=Path(self.home))
        client = Client(reactor=reactor, settings=settings, **{"cache": None, **options})
        self.addCleanup(client.close)
        return client

    async def application(
        self,
        *arguments: object,
        by: object = None,
        environment: Mapping[str, str] | None = None,
    ) -> Application:
        """See :meth:`FaultCase.application`; it knows all nodes, unless its *environment* says otherwise."""
        return await super().application(*arguments, environment={**self.environmentOf(), **(environment or {})})

    async def registered(self, application: Application, count: int) -> None:
        """See :meth:`FaultCase.registered`; only what the application meets from then on counts."""
        await super().registered(application, count)
        application.forget()

    async def pause(self, *applications: Application) -> list[Operation]:
        """
        Let applications write nothing more; their services stay registered.

        :return: all that they have asked for since the last time.
        """
        for application in applications:
            paused = application.says("paused")
            application.tell("pause")
            await paused
        return [operation for application in applications for operation in application.take()]

    def audit(self) -> Audit:
        """An audit that asks whichever node is there."""
        return self.auditOf(self.client(timeout=PATIENCE))

    def auditOf(self, client: Client) -> Audit:
        """An audit that asks what this client asks."""
        return Audit(client, isSeveral=True)

    async def follow(self, *nodes: Node) -> Follower:
        """Follow the feed, by way of these nodes (of all if none is named), until the test is over."""
        follower = Follower(self.client(*nodes))
        await follower.start()
        self.addCleanup(follower.stop)
        return follower

    async def followAll(self) -> list[Follower]:
        """Follow the feeds of all nodes, and wait until each has heard of an event."""
        followers = [await self.follow(node) for node in self.nodes]
        await self.begin(*followers)
        return followers

    async def begin(self, *followers: Follower) -> None:
        """Wait until all of them follow: each has heard of a value that is set again and again."""
        client, number = self.client(), 0

        async def allHear() -> bool:
            nonlocal number
            number += 1
            await client.configuration.set("/followers/call", str(number))
            return all(follower.heard for follower in followers)

        await self.until(allHear, 0.2)

    # -- what is to hold

    @property
    def isPunctual(self) -> bool:
        """Whether what takes long may be blamed on the cluster: at full length, on a machine that is not crowded."""
        return self.isFull and not isCrowded()

    @property
    def isCalm(self) -> bool:
        """Whether the machine is not crowded, and no node has stood still; the applications say so themselves."""
        return not isCrowded() and not any("Registry stalled" in child.output for child in self.children)

    def stalled(self, *applications: Application) -> set[str]:
        """
        The services that may time out: those of applications whose journal says that their reactor stood still. Nothing
        here blocks one, but a machine that has too much else to do, and then their heartbeats were late indeed.
        """
        late = [each for each in applications if not self.isSteady(each)]
        return {id for each in late for id in (*each.states, *each.everKeptAlive)}

    def isSteady(self, application: Application) -> bool:
        """Whether nothing has kept an application from its heartbeats."""
        return not any(STALL in line for line in application.log)

    def assertNoneExpired(self, audit: Audit, *applications: Application) -> None:
        """
        None of the services of these applications has expired, and what each application takes for its
        registration was the last one. (One before that had no answer may have been undone.)
        """
        late = self.stalled(*applications)
        for id in [id for each in applications for id in each.states if id not in late]:
            joins, removals, expirations = (
                audit.count(f"service.{what}", id) for what in ("join", "remove", "timeout")
            )
            self.assertEqual((expirations, joins - removals), (0, 1), id)

    def assertExpiredOnce(self, audit: Audit, application: Application) -> None:
        """Each service of an application that was killed has expired, once."""
        counts = {id: audit.count("service.timeout", id) for id in application.states}
        if self.isSteady(application):
            self.assertEqual(counts, dict.fromkeys(counts, 1))

    def assertUnnoticed(self, *applications: Application) -> None:
        """
        Applications have met no error at all: no service was anything but registered after it had been so once, and
        there is not a line in the log.
        """
        for application in filter(self.isSteady, applications):
            self.assertEqual(application.log, [])
            self.assertEqual((application.troubles, application.lost), ([], set()))
            changes = {id: tuple(state for _, state in states) for id, states in application.states.items()}
            self.assertEqual(set(changes.values()), {("registering", "registered")})

    def assertAnswered(self, done: Iterable[Operation]) -> None:
        """
        Each of these was done; but of what was sent again the first try may have been done: then a removal may be
        refused, and of a set with a condition, which does not hold any more, the outcome is unknown.
        """
        allowed = {"create": {Outcome.acknowledged}, "set": {Outcome.acknowledged}}
        both = {Outcome.acknowledged, Outcome.refused}
        failed = [each for each in done if each.outcome not in allowed.get(each.what, both)]
        self.assertEqual([each for each in failed if (each.what, each.error) != ("set", "OutcomeUnknown")], [])

    async def followed(self, follower: Follower, audit: Audit) -> None:
        """A follower has heard of all that an audit has found since it began, each once and in order."""
        found = [event["id"] for event in audit.events]
        heard: list[str] = []

        async def last() -> bool:
            heard[:] = [event["id"] for _, event in follower.heard]
            return found[-1] in heard

        await self.until(last)
        # There may be later ones: of a service that no application knows.
        del heard[heard.index(found[-1]) + 1 :]
        self.assertEqual((heard, follower.gaps), (found[-len(heard) :], 0))

    def tellOfWrites(self, done: Sequence[Operation]) -> None:
        """Keep figures of what applications asked for."""
        acknowledged = [each for each in done if each.outcome is Outcome.acknowledged]
        self.tell("writes meanwhile, none lost", len(acknowledged))
        slowest = max(each.ended - each.begun for each in acknowledged if each.ended is not None)
        self.tell("longest write, s", round(slowest, 2))
