"""
The files with the data of releases. ``python -m tests.upgrades.files VERSION`` writes those of this release.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react

from tests.system.etcd.etcds import sharedEtcd
from txserviceregistry.registry.stores.etcd.keyvalues import endOf
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.sqlite.store import SqliteStore

from .content import NOW, fill, shown

_HERE = Path(__file__).parent
_PREFIX = "/upgrade/"
VERSIONS = sorted({path.name.removesuffix(".sqlite.gz") for path in _HERE.glob("*.sqlite.gz")})


def expected(version: str, store: str) -> Any:
    """The content of a release's data."""
    return json.loads((_HERE / f"{version}.{store}.expected.json").read_text(encoding="utf-8"))


def sqlite(version: str) -> bytes:
    """The database of a release."""
    return gzip.decompress((_HERE / f"{version}.sqlite.gz").read_bytes())


def etcd(version: str) -> dict[str, bytes]:
    """The keys of a release in etcd, without their prefix."""
    packed = json.loads(gzip.decompress((_HERE / f"{version}.etcd.json.gz").read_bytes()))
    return {key: base64.b64decode(value) for key, value in packed.items()}


class _Clock:
    """A wall clock, which :meth:`tick` moves by a second."""

    now = NOW

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1


async def _write(store: Any, name: str, clock: _Clock) -> None:
    await store.open()
    await fill(store, clock.tick)
    (_HERE / f"{name}.expected.json").write_text(
        json.dumps(await shown(store), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def _keys(url: str) -> Iterator[tuple[str, str]]:
    """The keys below the prefix, and their values as etcd's gateway has them."""
    ends = [base64.b64encode(each.encode()).decode() for each in (_PREFIX, endOf(_PREFIX))]
    asked = json.dumps({"key": ends[0], "range_end": ends[1]}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v3/kv/range", asked)) as response:
        for each in json.load(response)["kvs"]:
            yield base64.b64decode(each["key"]).decode(), each.get("value", "")


async def _make(version: str) -> None:
    clock = _Clock()
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "registry.sqlite")
        store = SqliteStore(str(path), reactor=reactor, wallClock=clock)
        await _write(store, f"{version}.sqlite", clock)
        await store.close()
        (_HERE / f"{version}.sqlite.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    clock = _Clock()
    cluster = EtcdStore(reactor, [sharedEtcd()], prefix=_PREFIX, wallClock=clock)
    await _write(cluster, f"{version}.etcd", clock)
    await cluster.close()
    packed = {key.removeprefix(_PREFIX): value for key, value in _keys(sharedEtcd())}
    (_HERE / f"{version}.etcd.json.gz").write_bytes(gzip.compress(json.dumps(packed).encode(), mtime=0))


if __name__ == "__main__":
    react(lambda _: ensureDeferred(_make(sys.argv[1])))
