"""Any node takes any request at any time: three nodes are one registry."""

from __future__ import annotations

import re

from twisted.internet.task import deferLater

from tests.system.processes import PATIENCE, Child, reactor
from txserviceregistry import Client
from txserviceregistry.errors import AuthenticationFailed, NotFound
from txserviceregistry.settings import readSettings

from .clustercase import ClusterCase, Node, ask


class OneClusterTests(ClusterCase):
    """A cluster in which hardly anything is killed."""

    async def test_threeNodesAreOneRegistry(self) -> None:
        """A change at one node shows at once at all of them, and all accept each other's tokens."""
        await self.startCluster()
        # The first one, over an empty key space, has made the user.
        self.assertEqual([bool(self.credentials(number)) for number in range(3)], [True, False, False])
        a, b, c = (self.client(node) for node in self.nodes)
        follower = await self.follow(self.nodes[1])
        for number, (one, other, third) in enumerate(((a, b, c), (b, c, a), (c, a, b))):
            id = f"web{number}"
            body, _ = await one.services.create(id, 30, {"tags": ["www"]})
            self.assertEqual((await other.services.get(id))["tags"], ["www"])
            token = (await other.services.heartbeat(id, body["token"]))["token"]
            token = (await third.services.heartbeat(id, token))["token"]
            await third.services.update(id, {"metadata": {"by": "third"}})
            self.assertEqual((await one.services.get(id))["metadata"], {"by": "third"})
            # An older token of the same life counts as well.
            await one.services.heartbeat(id, body["token"])
            await one.configuration.set(f"/web/{id}", "1")
            self.assertEqual((await third.configuration.get(f"/web/{id}"))["value"], "1")
            await other.services.remove(id)
            for each in (one, other, third):
                with self.assertRaises(NotFound):
                    await each.services.get(id)
                with self.assertRaises(NotFound):
                    await each.services.heartbeat(id, token)
        audits = [self.audit(), *(self.auditOf(client) for client in (a, b, c))]
        for audit in audits:
            self.assertKept(await audit.look())
            self.assertEqual(audit.events, audits[0].events)
        await self.followed(follower, audits[0])
        # A place in the feed that one node has named is one for all.
        for event in audits[0].events[::4]:
            pages = [await client.events.list(marker=event["id"], limit=5) for client in (a, b, c)]
            self.assertEqual([page["values"] for page in pages], [pages[0]["values"]] * 3)
        await self.authTokensCount()
        self.assertNoTraceback()

    async def authTokensCount(self) -> None:
        """An auth token of any node opens all of them."""
        credentials = self.credentials()
        body = {"auth": {"RAX-KSKEY:apiKeyCredentials": {**credentials, "apiKey": credentials["api_key"]}}}
        for node in self.nodes:
            status, answer = await ask("POST", f"{node.url}/v2.0/tokens", body, patience=PATIENCE)
            self.assertEqual(status, 200, answer)
            token = answer["access"]["token"]
            for other in self.nodes:
                url = f"{other.url}/v1.0/{token['tenant']['id']}/limits"
                status, _ = await ask("GET", url, headers={"X-Auth-Token": token["id"]}, patience=PATIENCE)
                self.assertEqual(status, 200)

    async def test_anExpirationIsOneEventOfTheLastNode(self) -> None:
        """With one node left, an expiration is one event, which the other has too when it is back."""
        await self.startMembers(1)
        await self.startNodes(2)
        first, last = self.nodes
        expiring = await self.application("--services=10", "--timeout=3")
        await self.registered(expiring, 10)
        await first.kill()
        follower = await self.follow(last)
        await self.begin(follower)
        expiring.kill("KILL")

        async def allTold() -> bool:
            return len(follower.ids("service.timeout")) >= 10

        await self.until(allTold)
        await first.start()
        # A second event would be there by now.
        await deferLater(reactor, 3.5, lambda: None)
        for node in self.nodes:
            audit = self.auditOf(self.client(node))
            self.assertKept(await audit.look(mayTimeOut=expiring.states, ended=expiring.states))
            self.assertExpiredOnce(audit, expiring)

    async def test_users(self) -> None:
        """``service-registry-users --store etcd`` works on the users of all nodes, while they run."""
        await self.startMembers(1)
        await self.startNodes(2)
        self.assertIn(self.credentials()["username"], (await self.users("list")).output.split())
        key = self.keyIn(await self.users("add", "joe"))
        clients = [self.clientAs(node, "joe", key) for node in self.nodes]
        for client in clients:
            await client.account.getLimits()
        newKey = self.keyIn(await self.users("rotate", "joe"))
        self.assertNotEqual(newKey, key)
        for client in clients:
            await self.until(lambda client=client: self.isShutOut(client))
        clients = [self.clientAs(node, "joe", newKey) for node in self.nodes]
        for client in clients:
            await client.account.getLimits()
        await self.users("remove", "joe")
        for client in clients:
            await self.until(lambda client=client: self.isShutOut(client))

    async def isShutOut(self, client: Client) -> bool:
        """Whether a client's user is not let in any more."""
        try:
            await client.account.getLimits()
        except AuthenticationFailed:
            return True
        return False

    async def users(self, *arguments: str) -> Child:
        """Run the program to its end, over the cluster's etcd."""
        etcd = ",".join(member.url for member in self.members)
        child = self.spawn(
            *("service-registry-users", "--store", "etcd", "--etcd", etcd, "--etcd-prefix", self.prefix, *arguments)
        )
        await child.ended
        self.assertEqual(child.exitCode, 0, child.output + child.errors)
        return child

    def keyIn(self, child: Child) -> str:
        """The key that the program has printed."""
        found = re.search(r"^RAXSR_API_KEY=(\S+)$", child.output, re.MULTILINE)
        assert found is not None, child.output
        return found[1]

    def clientAs(self, node: Node, name: str, key: str) -> Client:
        """A client of one node, with these credentials."""
        environ = {"HOME": self.home, "RAXSR_API_URL": f"{node.url}/v1.0"}
        client = Client(reactor=reactor, settings=readSettings(username=name, apiKey=key, environ=environ), cache=None)
        self.addCleanup(client.close)
        return client
