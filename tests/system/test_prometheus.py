"""Debian's Prometheus, whose targets come from a registry."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import which
from typing import Any

import treq
import yaml
from twisted.internet import reactor as globalReactor
from twisted.internet.task import deferLater

from tests.needs import needs
from tests.system.ports import freePorts
from tests.system.processes import ProcessTestCase
from txserviceregistry import Client

reactor: Any = globalReactor
# Of the service discovery. Prometheus asks again after each.
INTERVAL = 0.5


class PrometheusTests(ProcessTestCase):
    """A registry over sqlite, a user that may read, and a Prometheus."""

    async def startRegistry(self) -> None:
        """Start the registry, perhaps once more."""
        self.registry = self.twistd("service-registry", f"--listen=tcp:{self.registryPort}:interface=127.0.0.1")
        await self.registry.says("Credentials")

    async def users(self, *words: str) -> None:
        """Change the user, and keep its new key where Prometheus has it from."""
        child = await self.spawn("service-registry-users", *words, f"--data-dir={self.dataDir}").ended
        key = child.output.partition("RAXSR_API_KEY=")[2].strip()
        self.assertTrue(key, child.errors)
        Path(self.home, "key").write_text(key)

    def startPrometheus(self) -> None:
        """Start it."""
        discovery = {
            "url": f"http://127.0.0.1:{self.registryPort}/v1.0/prometheus",
            "refresh_interval": f"{int(1000 * INTERVAL)}ms",
            "basic_auth": {"username": "prometheus", "password_file": "key"},
        }
        config = {"scrape_configs": [{"job_name": "services", "http_sd_configs": [discovery]}]}
        Path(self.home, "prometheus.yml").write_text(yaml.safe_dump(config))
        words = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")
        self.spawn(str(which("prometheus")), *words, f"--web.listen-address=127.0.0.1:{self.port}")

    async def targets(self) -> dict[str, dict[str, str]]:
        """The labels of the targets that it has, by id."""
        try:
            response = await treq.get(f"http://127.0.0.1:{self.port}/api/v1/targets", persistent=False)
            found = json.loads(await response.text())["data"]["activeTargets"]
        except Exception:
            # It has not started yet.
            return {"none": {}}
        labels = [target["discoveredLabels"] for target in found]
        return {each["__meta_service_registry_id"]: each for each in labels}

    async def has(self, *ids: str) -> None:
        """Wait until it has these targets."""

        async def isSo() -> bool:
            return (await self.targets()).keys() == set(ids)

        await self.until(isSo)

    async def register(self, client: Client, id: str, **metadata: str) -> None:
        """Register a service."""
        payload = {"tags": ["www", "eu"], "metadata": {"host": "127.0.0.1", "port": "9", **metadata}}
        await client.services.create(id, 120, payload)

    async def test_targets(self) -> None:
        """Targets appear with labels, survive outages and a new key, and disappear when services expire or are out."""
        needs("prometheus")
        self.registryPort, self.port = freePorts(2)
        await self.startRegistry()
        await self.users("add", "prometheus", "--tenant=1", "--role=read")
        client = self.client()
        await self.register(client, "web-1", zone="a")
        await self.register(client, "web-2", host="::1")
        await self.register(client, "web-3", port="10")
        await client.services.setState("web-2", "drain")
        self.startPrometheus()
        await self.has("web-1", "web-2", "web-3")
        labels = (await self.targets())["web-1"]
        self.assertEqual(labels["__address__"], "127.0.0.1:9")
        self.assertEqual(labels["__meta_service_registry_tags"], ",www,eu,")
        self.assertEqual(labels["__meta_service_registry_metadata_zone"], "a")
        drained = (await self.targets())["web-2"]
        self.assertEqual((drained["__address__"], drained["__meta_service_registry_state"]), ("[::1]:9", "drain"))
        self.registry.kill("KILL")
        await self.registry.ended
        for _ in range(6):
            await deferLater(reactor, INTERVAL, lambda: None)
            self.assertEqual((await self.targets()).keys(), {"web-1", "web-2", "web-3"})
        await self.startRegistry()
        await self.register(client, "web-4", port="11")
        # It expires.
        await client.services.update("web-3", {"heartbeat_timeout": 3})
        await self.has("web-1", "web-2", "web-4")
        # With the old key it would see no change any more.
        await self.users("rotate", "prometheus")
        await client.services.setState("web-2", "out")
        await client.services.remove("web-1")
        await self.has("web-4")
