"""
A test case for a directory, over a registry in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery.directory import Directory
from txserviceregistry.testing import FakeRegistry


class DirectoryTestCase(SynchronousTestCase):
    """
    One directory, and a client that changes services.

    :ivar changes: the changes that the directory has reported.
    """

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client(cache=None)
        self.changes: list[tuple[str, str]] = []

    def directory(self, tag: str | None = None, client: Any = None, **options: Any) -> Directory:
        directory = Directory(client or self.client, tag, random=lambda: 0.5, **options)
        directory.onChange(lambda kind, service: self.changes.append((kind, service["id"])))
        directory.startService()
        self.addCleanup(self.end, directory)
        self.fake.flush()
        return directory

    def end(self, directory: Directory) -> None:
        self.successResultOf(directory.stopService())

    def create(self, id: str, timeout: int = 120, **payload: Any) -> str:
        body, _ = self.successResultOf(self.other.services.create(id, timeout, payload))
        token: str = body["token"]
        return token

    def remove(self, id: str) -> None:
        self.successResultOf(self.other.services.remove(id))

    def ids(self, directory: Directory) -> list[str]:
        return [service["id"] for service in directory.services()]
