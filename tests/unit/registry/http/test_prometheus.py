"""Tests for :mod:`txserviceregistry.registry.http.handlers`."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ..wire import Api, Connection, requestBytes


class TargetsTests(SynchronousTestCase):
    """What ``GET /prometheus`` answers."""

    def setUp(self) -> None:
        self.api = Api()

    def register(self, id: str, tags: list[str] | None = None, **metadata: str) -> None:
        """Register a service; ``_`` in a key stands for a dot."""
        metadata = {key.replace("_", "."): value for key, value in metadata.items()}
        body = {"id": id, "heartbeat_timeout": 30, "tags": tags or [], "metadata": metadata}
        self.assertEqual(self.api.ask("POST", "/services", body).code, 201)

    def targets(self, query: str = "") -> Any:
        """The response."""
        reply = self.api.ask("GET", f"/prometheus{query}")
        self.assertEqual((reply.code, reply.header("Content-Type")), (200, "application/json; charset=UTF-8"))
        return reply.json

    def test_target(self) -> None:
        """A service is a target group with its address, id, tags, state and metadata."""
        self.register("web1", ["www", "eu"], host="10.0.0.1", port="8000", data_center="fra")
        self.assertEqual(
            self.targets(),
            [
                {
                    "targets": ["10.0.0.1:8000"],
                    "labels": {
                        "__meta_service_registry_id": "web1",
                        "__meta_service_registry_tags": ",www,eu,",
                        "__meta_service_registry_state": "up",
                        "__meta_service_registry_metadata_data_center": "fra",
                        "__meta_service_registry_metadata_host": "10.0.0.1",
                        "__meta_service_registry_metadata_port": "8000",
                    },
                }
            ],
        )

    def test_none(self) -> None:
        """Without services the list is empty."""
        self.assertEqual(self.targets(), [])

    def test_addresses(self) -> None:
        """An IPv6 address is in brackets; services without a valid address and disabled ones are left out."""
        self.register("six", host="2001:db8::1", port="80")
        self.register("named", service_host="web.example", service_port="81")
        self.register("none")
        self.register("bad", host="a b", port="80")
        self.register("off", host="10.0.0.2", port="80", status="disabled")
        self.assertEqual([group["targets"] for group in self.targets()], [["web.example:81"], ["[2001:db8::1]:80"]])

    def test_states(self) -> None:
        """A service that is drained stays a target, and its state is a label; one that is out is not a target."""
        for id, state in (("web1", "drain"), ("web2", "out"), ("web3", "up")):
            self.register(id, host=id, port="80")
            self.assertEqual(self.api.ask("PUT", f"/services/{id}/state", {"state": state}).code, 204)
        found = {group["targets"][0]: group["labels"]["__meta_service_registry_state"] for group in self.targets()}
        self.assertEqual(found, {"web1:80": "drain", "web3:80": "up"})

    def test_labels(self) -> None:
        """If two keys make the same name, the first by code point counts; without tags their label is empty."""
        self.register("web1", **{"a.b": "2", "a-b": "1", "é": "3", "host": "h", "port": "1"})
        (labels,) = [group["labels"] for group in self.targets()]
        self.assertEqual(labels["__meta_service_registry_metadata_a_b"], "1")
        self.assertEqual(labels["__meta_service_registry_metadata__"], "3")
        self.assertEqual(labels["__meta_service_registry_tags"], "")

    def test_tag(self) -> None:
        """With a tag there are the targets with this tag; a tag that can't be one is refused."""
        self.register("web1", ["www"], host="h", port="1")
        self.register("db1", ["db"], host="h", port="2")
        self.assertEqual([group["targets"] for group in self.targets("?tag=db")], [["h:2"]])
        self.assertEqual(self.targets("?tag=other"), [])
        self.assertEqual(self.api.ask("GET", "/prometheus?tag=a%20b").code, 400)

    def test_noPages(self) -> None:
        """All targets come at once; limit and marker are ignored."""
        for number in range(150):
            self.register(f"web{number}", host="h", port=str(1 + number))
        self.assertEqual(len(self.targets("?limit=1&marker=web9")), 150)

    def test_many(self) -> None:
        """Many targets are put together in several turns of the reactor; other requests come in between."""
        for number in range(450):
            self.register(f"web{number}", host="h", port=str(1 + number))
        connection = Connection(self.api)
        connection.send(requestBytes("GET", "/v1.0/1234/prometheus", headers={"X-Auth-Token": self.api.token}))
        self.assertEqual(connection.replies(), [])
        self.assertEqual(self.api.ask("GET", "/limits").code, 200)
        self.api.advance(0.1)
        (reply,) = connection.replies()
        self.assertEqual(len(reply.json), 450)

    def test_expired(self) -> None:
        """A service that has expired is not a target."""
        self.register("web1", host="h", port="1")
        self.api.advance(30.0)
        self.assertEqual(self.targets(), [])
