"""
An application's use of a registry, by the public names only: any client since 1.0 passes it against any registry
since 1.0. ``release/compatibility.py`` runs it; ``RAXSR_API_URL``, ``RAXSR_USERNAME`` and ``RAXSR_API_KEY`` say which
registry it meets.
"""

from __future__ import annotations

import uuid

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.trial.unittest import TestCase

from txserviceregistry import Client, RegisteredService
from txserviceregistry.discovery import ConfigurationWatcher, Directory, EventsFeed
from txserviceregistry.errors import AuthenticationFailed, BadRequest, NotFound, ServiceExists


class ClientSuite(TestCase):
    """A client and a registry of two releases."""

    timeout = 60

    def setUp(self):
        self.client = Client.fromSettings(reactor)
        self.addCleanup(self.client.close)
        self.namespace = uuid.uuid4().hex
        self.tag = f"tag-{self.namespace}"

    def own(self, name: str) -> str:
        """An id that no other test has."""
        return f"{name}-{self.namespace}"

    def running(self, service):
        service.startService()
        self.addCleanup(service.stopService)
        return service

    async def test_services(self):
        """Create, read, list by page and by tag, send heartbeats, update, remove."""
        ids = [self.own(name) for name in ("api", "db", "web")]
        services = self.client.services
        for id in ids:
            body, heartBeater = await services.create(id, 30, {"tags": [self.tag], "metadata": {"port": "8000"}})
        self.assertEqual(heartBeater.nextToken, body["token"])
        token = (await services.heartbeat(ids[2], body["token"]))["token"]
        self.assertNotEqual(token, body["token"])
        page = await services.listForTag(self.tag, limit=2)
        self.assertEqual([one["id"] for one in page["values"]], ids[:2])
        page = await services.listForTag(self.tag, marker=page["metadata"]["next_marker"])
        self.assertEqual([one["id"] for one in page["values"]], ids[2:])
        self.assertTrue(await services.update(ids[0], {"metadata": {"port": "9000"}}))
        found = await services.get(ids[0])
        self.assertEqual((found["tags"], found["metadata"]), ([self.tag], {"port": "9000"}))
        self.assertEqual([one["id"] async for one in services.iterate(tag=self.tag)], ids)
        for id in ids:
            self.assertTrue(await services.remove(id))
        await self.assertFailure(services.get(ids[0]), NotFound)
        await self.assertFailure(services.heartbeat(ids[2], token), NotFound)

    async def test_refusals(self):
        """The error names the wrong part of a request."""
        services = self.client.services
        await services.create(self.own("web"), 30)
        await self.assertFailure(services.create(self.own("web"), 30), ServiceExists)
        error = await self.assertFailure(services.create(self.own("new"), 30, {"tags": "www"}), BadRequest)
        self.assertIn("tags", str(error))
        await services.remove(self.own("web"))
        unknown = Client("unknown", "0" * 40, reactor=reactor)
        self.addCleanup(unknown.close)
        await self.assertFailure(unknown.services.list(), AuthenticationFailed)

    async def test_registration(self):
        """Many applications stay registered, also after one of them is removed; a Directory sees each change."""
        directory = self.running(Directory(self.client, self.tag))
        await directory.whenReady()
        names = [self.own(f"web{number}") for number in range(20)]
        services = [RegisteredService(self.client, name, 3, tags=[self.tag]) for name in names]
        for service in services:
            service.startService()
        await self.seen(directory, lambda: len(directory.forTag(self.tag)) == 20)
        returned: Deferred[None] = Deferred()
        directory.onChange(lambda change, service: change == "join" and not returned.called and returned.callback(None))
        await self.client.services.remove(names[0])
        await returned
        await DeferredList([service.stopService() for service in services])
        await self.seen(directory, lambda: not directory.forTag(self.tag))

    async def seen(self, directory, isSo):
        """Wait until a Directory has what is expected."""
        done: Deferred[None] = Deferred()
        directory.onChange(lambda *_: isSo() and not done.called and done.callback(None))
        if isSo() and not done.called:
            done.callback(None)
        await done

    async def test_expiration(self):
        """A service without heartbeats expires: an event says so, and its token is no longer accepted."""
        feed = self.running(EventsFeed(self.client))
        id, expired = self.own("web"), Deferred()
        feed.onEvent(
            lambda event: (
                event["type"] == "service.timeout" and event["payload"]["id"] == id and expired.callback(event)
            )
        )
        body, _ = await self.client.services.create(id, 3)
        event = await expired
        self.assertEqual(event["payload"]["heartbeat_timeout"], 3)
        await self.assertFailure(self.client.services.heartbeat(id, body["token"]), NotFound)

    async def test_configuration(self):
        """Set, read, list, watch and remove values."""
        namespace = f"/{self.namespace}"
        configuration = self.client.configuration
        watcher = self.running(ConfigurationWatcher(self.client, namespace))
        await watcher.whenReady()
        changes: list[str | None] = []
        done: Deferred[None] = Deferred()

        def changed(value: str | None) -> None:
            changes.append(value)
            if value is None:
                done.callback(None)

        watcher.onKey(f"{namespace}/size", changed)
        await configuration.set(f"{namespace}/size", "1")
        await configuration.set(f"{namespace}/other", "€")
        self.assertEqual((await configuration.get(f"{namespace}/other"))["value"], "€")
        values = {one["id"]: one["value"] async for one in configuration.iterate(namespace)}
        self.assertEqual(values, {f"{namespace}/size": "1", f"{namespace}/other": "€"})
        for key in values:
            await configuration.remove(key)
        await done
        self.assertIsNone(changes[-1])
        await self.assertFailure(configuration.get(f"{namespace}/other"), NotFound)

    async def test_events(self):
        """The feed is read by pages, from a marker on."""
        await self.client.configuration.set(f"/{self.namespace}/size", "1")
        await self.client.configuration.set(f"/{self.namespace}/size", "2")
        own = [
            event["payload"]["new_value"]
            async for event in self.client.events.iterate()
            if event["type"] == "configuration_value.update"
            and event["payload"]["configuration_value_id"] == f"/{self.namespace}/size"
        ]
        self.assertEqual(own, ["1", "2"])
        await self.client.configuration.remove(f"/{self.namespace}/size")

    async def test_limits(self):
        """The account's limits."""
        limits = await self.client.account.getLimits()
        self.assertLessEqual({"resource", "rate"}, set(limits))
