"""
Tests for :mod:`txserviceregistry.registry.service` and :mod:`txserviceregistry.registry.datadir`.
"""

from __future__ import annotations

import base64
import configparser
import errno
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import CHEAP
from txserviceregistry._version import __version__
from txserviceregistry.registry import datadir
from txserviceregistry.registry import service as registryService
from txserviceregistry.registry.datadir import DataDirectory, DataDirectoryError
from txserviceregistry.registry.http import pages
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.service import RegistryService, StartFailed
from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.registry.stores.memory import MemoryStore

from .sharedmemory import SharedMemory
from .wire import Reply, parseReplies, requestBytes

PORT_ADVICE = ". Stop the process that has the port, or choose another port"
DIRECTORY_ADVICE = "; stop it, or choose another --data-dir"
ANY_PORT = "tcp:0:interface=127.0.0.1"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class DataDirectoryTests(SynchronousTestCase):
    """
    The data directory.
    """

    def setUp(self) -> None:
        self.directory = DataDirectory(Path(self.mktemp()) / "state" / "registry")

    def write(self, text: str | bytes) -> None:
        self.directory.raxrcPath.write_bytes(text if isinstance(text, bytes) else text.encode())

    def refusal(self, operation: Any, *args: str) -> str:
        text = str(self.assertRaises(DataDirectoryError, operation, *args))
        self.assertNotIn("\n", text)
        return text

    def test_isMadeForItsOwner(self) -> None:
        """
        The directory, and what is written to it, is for its owner's eyes only.
        """
        self.directory.open()
        self.directory.keepCredentials("joe", "key")
        self.assertEqual([mode(self.directory.path), mode(self.directory.raxrcPath)], [0o700, 0o600])
        self.assertEqual(sorted(os.listdir(self.directory.path)), ["raxrc", "registry.lock"])
        self.directory.close()

    def test_canNotBeMade(self) -> None:
        """
        A place where nothing can be made is named, with the reason, in one line.
        """
        parent = self.directory.path.parent
        parent.parent.mkdir()
        parent.write_text("a file")
        self.assertEqual(
            self.refusal(self.directory.open),
            f"can't write to the data directory {self.directory.path}: Not a directory",
        )

    def test_oneRegistryAtATime(self) -> None:
        """
        A registry locks its directory, and releases it at the end.
        """
        other = DataDirectory(self.directory.path)
        self.assertFalse(other.isTaken())
        self.directory.open()
        self.assertTrue(other.isTaken())
        self.assertEqual(
            self.refusal(other.open),
            f"another registry uses the data directory {self.directory.path}{DIRECTORY_ADVICE}",
        )
        self.directory.close()
        self.directory.close()
        self.assertFalse(other.isTaken())
        other.open()
        other.close()

    def test_aFileSystemWithoutLocks(self) -> None:
        """
        A lock that the file system does not have is not taken for that of another registry.
        """

        def fail(*arguments: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        self.patch(datadir, "flock", fail)
        path = self.directory.path / "registry.lock"
        self.assertEqual(
            self.refusal(self.directory.open), f"can't lock {path}: No locks available; use a local file system"
        )
        self.assertFalse(self.directory.isTaken())

    def test_aLockFileThatIsRemoved(self) -> None:
        """
        The lock is taken again under the same name, so that others stay out.
        """
        other = DataDirectory(self.directory.path)
        self.directory.open()
        self.directory.hold()
        os.unlink(self.directory.path / "registry.lock")
        self.assertFalse(other.isTaken())
        self.directory.hold()
        self.assertTrue(other.isTaken())
        self.assertIn("another registry uses", self.refusal(other.open))
        self.directory.close()
        other.open()
        other.close()

    def test_aLockFileThatIsReplaced(self) -> None:
        """
        Another registry that has taken the directory is noticed, also when it has ended; a new start is needed then.
        """
        other = DataDirectory(self.directory.path)
        self.directory.open()
        os.unlink(self.directory.path / "registry.lock")
        other.open()
        for _ in range(2):
            self.assertIn("another registry has taken the data directory", self.refusal(self.directory.hold))
            other.close()
        self.directory.close()
        self.directory.open()
        self.directory.hold()
        self.directory.close()

    def test_raxrc(self) -> None:
        """
        The file is the INI file that the tools read; what is changed leaves the rest alone.
        """
        self.directory.open()
        self.addCleanup(self.directory.close)
        self.assertEqual(self.directory.credentials(), None)
        self.directory.keepCredentials("joe", "50%(key)s")
        self.directory.keepUrls("http://a/v1.0", "http://a/v2.0")
        self.write(self.directory.raxrcPath.read_text() + "[ssl]\nverify = no\n")
        self.directory.keepUrls("http://b/v1.0", "http://b/v2.0")
        self.assertEqual(self.directory.credentials(), ("joe", "50%(key)s"))
        raxrc = configparser.ConfigParser(interpolation=None)
        raxrc.read(self.directory.raxrcPath)
        self.assertEqual(
            {name: dict(raxrc[name]) for name in raxrc.sections()},
            {
                "credentials": {"username": "joe", "api_key": "50%(key)s"},
                "api": {"url": "http://b/v1.0"},
                "auth_api": {"url": "http://b/v2.0"},
                "ssl": {"verify": "no"},
            },
        )
        self.assertEqual(mode(self.directory.raxrcPath), 0o600)

    def test_isNotWrittenForNothing(self) -> None:
        """
        A file that says what it should is left as it is.
        """
        self.directory.open()
        self.addCleanup(self.directory.close)
        self.directory.keepCredentials("joe", "key")
        before = self.directory.raxrcPath.stat().st_ino
        self.directory.keepCredentials("joe", "key")
        self.assertEqual(self.directory.raxrcPath.stat().st_ino, before)

    def test_isBroken(self) -> None:
        """
        A file that can't be read is named in one line, without its content.
        """
        self.directory.open()
        self.addCleanup(self.directory.close)
        for text in ("s3cret", "[credentials\napi_key = s3cret", "[a]\ns3cret", b"[a]\nb = \xff", "[a]\nb=1\nb=2"):
            self.write(text)
            for operation, args in (
                (self.directory.credentials, ()),
                (self.directory.keepCredentials, ("joe", "k")),
                (self.directory.keepUrls, ("u", "a")),
            ):
                self.assertEqual(
                    self.refusal(operation, *args),
                    f"{self.directory.raxrcPath} is not a valid INI file; correct it, or move it away",
                )
            self.assertEqual(self.directory.raxrcPath.read_bytes(), text if isinstance(text, bytes) else text.encode())

    def test_isHalf(self) -> None:
        """
        A name without a key is not enough.
        """
        self.directory.open()
        self.addCleanup(self.directory.close)
        self.write("[credentials]\nusername = joe\napi_key =\n")
        self.assertEqual(self.directory.credentials(), None)

    def test_canNotBeReadOrWritten(self) -> None:
        """
        The system's error for a read or a write is one line, and leaves no file behind.
        """
        self.directory.open()
        self.addCleanup(self.directory.close)
        self.directory.raxrcPath.mkdir()
        self.assertIn("Is a directory", self.refusal(self.directory.credentials))
        self.directory.raxrcPath.rmdir()
        self.patch(os, "replace", self._fail)
        text = self.refusal(self.directory.keepCredentials, "joe", "s3cret")
        self.assertEqual(text, f"can't write {self.directory.raxrcPath}: No space left on device")
        self.assertEqual(os.listdir(self.directory.path), ["registry.lock"])

    @staticmethod
    def _fail(*args: object) -> None:
        raise OSError(28, "No space left on device")


class _Client(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


class _Ports:
    """An endpoint that listens nowhere, at an address of one's choice."""

    def __init__(self, address: Any, error: Exception | None = None) -> None:
        self.address = address
        self.error = error

    def listen(self, factory: object) -> Deferred[Any]:
        return succeed(self) if self.error is None else fail(self.error)

    def getHost(self) -> Any:
        return self.address

    def stopListening(self) -> None:
        pass


class _Early:
    """An endpoint on a free port, which is *made* known before the registry has started."""

    def __init__(self) -> None:
        self.made: Deferred[Any] = Deferred()

    async def _listen(self, factory: Any) -> Any:
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.made.callback(port)
        return port

    def listen(self, factory: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._listen(factory))


class RegistryServiceTests(TestCase):
    """
    A registry from start to stop.
    """

    def setUp(self) -> None:
        self.dataDir = Path(self.mktemp())
        self.secrets: list[str] = []
        self.log: list[str] = []
        observer = lambda event: self.log.append(repr(event))  # noqa: E731 (one and the same to add and remove)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def newService(self, **options: Any) -> RegistryService:
        options = {"dataDir": self.dataDir, "store": "memory", "endpoints": [ANY_PORT], "keyCost": CHEAP, **options}
        service = RegistryService(reactor, **options)

        def stop() -> Any:
            return service.stopService() if service.running else None

        self.addCleanup(stop)
        return service

    async def started(self, **options: Any) -> RegistryService:
        service = self.newService(**options)
        service.startService()
        await service.whenListening()
        return service

    async def refusal(self, **options: Any) -> str:
        service = self.newService(**options)
        service.startService()
        with self.assertRaises(StartFailed) as caught:
            await service.whenListening()
        with self.assertRaises(StartFailed):
            await service.whenListening()
        text = str(caught.exception)
        self.assertNotIn("\n", text)
        return text

    def raxrc(self) -> dict[str, str]:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.dataDir / "raxrc")
        return {f"{section}.{name}": value for section in parser.sections() for name, value in parser[section].items()}

    async def connected(self, url: str) -> _Client:
        host, _, port = url.removeprefix("http://").partition("/")[0].rpartition(":")
        client: _Client = await connectProtocol(TCP4ClientEndpoint(reactor, host, int(port)), _Client())
        return client

    async def responses(self, url: str, *requests: bytes) -> list[Reply]:
        client = await self.connected(url)
        client.transport.write(b"".join(requests))
        await client.ended
        return parseReplies(client.data)

    async def ask(self, service: RegistryService, method: str, path: str, body: Any = None) -> Reply:
        settings = self.raxrc()
        name, key = settings["credentials.username"], settings["credentials.api_key"]
        credentials = json.dumps({"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": name, "apiKey": key}}})
        close = {"Connection": "close"}
        (reply,) = await self.responses(
            settings["auth_api.url"], requestBytes("POST", "/v2.0/tokens", credentials.encode(), close)
        )
        token = reply.json["access"]["token"]
        self.secrets += [key, token["id"]]
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Auth-Token": token["id"], **close}
        (reply,) = await self.responses(
            service.urls[0], requestBytes(method, f"/v1.0/{token['tenant']['id']}{path}", data, headers)
        )
        return reply

    async def test_worksWithItsRaxrc(self) -> None:
        """
        The raxrc of a new registry's data directory is all that a client needs.
        """
        service = await self.started(store="sqlite")
        self.assertEqual(service.raxrcPath, str(self.dataDir / "raxrc"))
        settings = self.raxrc()
        self.assertEqual([settings["api.url"]], service.urls)
        self.assertEqual(settings["auth_api.url"], settings["api.url"].replace("/v1.0", "/v2.0"))
        self.assertEqual(mode(self.dataDir / "raxrc"), 0o600)
        reply = await self.ask(service, "POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        self.assertEqual(reply.code, 201)
        await service.stopService()
        self.assertEqual(service.urls, [])

    async def test_restart(self) -> None:
        """
        A registry that starts again over its directory has its services, its user, and its new port in the raxrc.
        """
        service = await self.started(store="sqlite")
        before = self.raxrc()
        await self.ask(service, "POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        await service.stopService()
        service = await self.started(store="sqlite")
        after = self.raxrc()
        self.assertEqual([after["api.url"]], service.urls)
        self.assertEqual(after["credentials.api_key"], before["credentials.api_key"])
        reply = await self.ask(service, "GET", "/services/web1")
        self.assertEqual(reply.code, 200)

    async def test_sameServiceTwice(self) -> None:
        """
        A service that was stopped can be started again.
        """
        service = await self.started()
        await service.stopService()
        service.startService()
        await service.whenListening()
        self.assertEqual((await self.ask(service, "GET", "/limits")).code, 200)

    async def test_memoryKeepsItsCredentials(self) -> None:
        """
        A registry with an empty store accepts the credentials in its directory.
        """
        await (await self.started()).stopService()
        before = self.raxrc()
        service = await self.started()
        self.assertEqual(self.raxrc()["credentials.api_key"], before["credentials.api_key"])
        self.assertEqual((await self.ask(service, "GET", "/limits")).code, 200)

    async def test_tellsAnOperatorWhatHappens(self) -> None:
        """
        The log says who the first user is, what the registry starts with, where it listens, and that it has stopped.
        """
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event.get("log_namespace", "").endswith("RegistryService"):
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        service = await self.started(store="sqlite")
        await self.ask(service, "POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        (url,) = service.urls
        await service.stopService()
        store = self.dataDir / "registry.sqlite"
        start = f"The registry (txserviceregistry {__version__}) starts with its sqlite store {store}: "
        self.assertEqual(
            lines,
            [
                f"Created user local; the API key is in {self.dataDir / 'raxrc'}",
                start + "0 services of 0 tenants",
                f"The registry listens on {url}",
                "The registry stops",
                "The registry has stopped",
            ],
        )
        lines.clear()
        await self.started(store="sqlite")
        self.assertEqual(lines[0], start + "1 services of 1 tenants")

    async def test_pagesAndAccessLog(self) -> None:
        """
        Over real connections: health and metrics are there, and every request has its line in the access log, which
        holds neither tokens nor values.
        """
        path = self.dataDir.with_suffix(".log")
        audit = self.dataDir.with_suffix(".audit")
        service = await self.started(store="sqlite", accessLog=path, auditLog=audit)
        close = {"Connection": "close"}
        (health,) = await self.responses(service.urls[0], requestBytes("GET", "/health", headers=close))
        self.assertEqual((health.code, health.json["store"]), (200, {"name": "sqlite", "state": "ok"}))
        await self.ask(service, "PUT", "/configuration/key", {"value": "s3cret"})
        (metrics,) = await self.responses(service.urls[0], requestBytes("GET", "/metrics", headers=close))
        self.assertIn(b'service_registry_info{store="sqlite"', metrics.raw)
        self.assertIn(b"service_registry_store_commit_operations_count", metrics.raw)
        await service.stopService()
        text = path.read_text()
        entries = [json.loads(line) for line in text.splitlines()]
        self.assertEqual(
            [(each["method"], each["path"], each["code"], each["tenant"], each["user"]) for each in entries],
            [
                ("GET", "/health", 200, None, None),
                ("POST", "/v2.0/tokens", 200, None, None),
                ("PUT", "/v1.0/1/configuration/key", 204, "1", "local"),
                ("GET", "/metrics", 200, None, None),
            ],
        )
        change = json.loads(audit.read_text())
        self.assertEqual((change["user"], change["operation"], change["object"]), ("local", "setValue", "key"))
        text += audit.read_text()
        for secret in ("s3cret", *self.secrets):
            self.assertNotIn(secret, text)

    async def test_metricsCanBeOff(self) -> None:
        """Without metrics, the page does not exist."""
        service = await self.started(metrics="off")
        request = requestBytes("GET", "/metrics", headers={"Connection": "close"})
        (reply,) = await self.responses(service.urls[0], request)
        self.assertEqual(reply.code, 404)

    async def test_anAccessLogThatCantBeWritten(self) -> None:
        """
        An access log that fails stops neither the start nor requests; it is logged once.
        """
        service = await self.started(accessLog=self.dataDir / "missing" / "access.log")
        self.assertEqual((await self.ask(service, "GET", "/limits")).code, 200)
        await service.stopService()
        self.assertEqual(len([event for event in self.log if "No such file or directory" in event]), 1)

    async def test_limits(self) -> None:
        """
        The operator's limits are the registry's.
        """
        service = await self.started(limits=ResourceLimits(service=5), rateLimit=7)
        limits = (await self.ask(service, "GET", "/limits")).json
        self.assertEqual((limits["resource"]["service"], limits["rate"]["/.*"]["limit"]), (5, 7))

    def test_anUnknownStore(self) -> None:
        """A name that is not a store's is an error: no other store is used instead."""
        for name in ("etcd", "SQLite", ""):
            error = self.assertRaises(ValueError, self.newService, store=name)
            self.assertIn(f"store is {name!r}, but it has to be 'sqlite', 'memory' or a function", str(error))

    async def test_nothingBeforeTheStart(self) -> None:
        """
        A service that was only made has touched nothing.
        """
        service = self.newService(store="sqlite")
        self.assertNoResult(service.whenListening())
        self.assertFalse(self.dataDir.exists())
        await service.stopService()

    def assertNoResult(self, deferred: Deferred[Any]) -> None:
        self.assertFalse(deferred.called)

    async def test_noSecretIsLogged(self) -> None:
        """
        From start to stop no key and no token is in any log event.
        """
        service = await self.started(store="sqlite")
        self.assertEqual((await self.ask(service, "GET", "/limits")).code, 200)
        close = {"Connection": "close"}
        wrong = {"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": "local", "apiKey": "wr0ngkey"}}}
        await self.responses(service.urls[0], requestBytes("POST", "/v2.0/tokens", json.dumps(wrong).encode(), close))
        await self.responses(
            service.urls[0],
            requestBytes("GET", "/v1.0/1/services", headers={"X-Auth-Token": "wr0ngtoken", **close}),
        )
        await service.stopService()
        log = "".join(self.log) + repr(service)
        self.assertIn("The registry listens on", log)
        for secret in (*self.secrets, "wr0ngkey", "wr0ngtoken"):
            self.assertNotIn(secret, log)

    # -- starts that fail

    async def test_portInUse(self) -> None:
        """
        A port that is taken is named in one line, and everything that was opened is closed again.
        """
        service = await self.started()
        port = int(service.urls[0].split(":")[2].split("/")[0])
        for endpoints in (
            [f"tcp:{port}:interface=127.0.0.1"],
            [ANY_PORT, f"tcp:{port}:interface=127.0.0.1"],
        ):
            text = await self.refusal(dataDir=self.dataDir / "other", endpoints=endpoints)
            self.assertEqual(
                text,
                f"can't listen on 127.0.0.1:{port}: Address already in use{PORT_ADVICE}",
            )
        self.assertFalse(RegistryService.runsOver(self.dataDir / "other"))

    async def test_connectionsWaitForTheStart(self) -> None:
        """Requests that come before the registry has started receive their response then, or the connection ends."""
        for isStopped in (False, True):
            store, reading = MemoryStore(wallClock=time.time), Deferred[Any]()
            self.patch(store, "allServices", lambda reading=reading: reading)
            endpoint = _Early()
            where = self.dataDir / str(isStopped)
            service = self.newService(dataDir=where, store=lambda store=store: store, endpoints=[endpoint])
            service.startService()
            client = await self.connected(f"http://127.0.0.1:{(await endpoint.made).getHost().port}/")
            client.transport.write(requestBytes("GET", "/health", None, {"Connection": "close"}))
            for _ in range(50):
                await deferLater(reactor, 0)
            self.assertNoResult(client.ended)
            if isStopped:
                await service.stopService()
            else:
                reading.callback([])
            await client.ended
            self.assertEqual([reply.code for reply in parseReplies(client.data)], [] if isStopped else [200])

    async def test_aNodeThatCanNotJoin(self) -> None:
        """Requests do not wait for a node that can't join: they receive 503, as does a proxy that checks the health."""
        self.patch(registryService, "JOINING", 0)
        self.patch(pages, "BELIEF", 0)
        shared, endpoint = SharedMemory(Clock(), time.time), _Early()
        await shared.memory.open()
        service = self.newService(store=shared.store, endpoints=[endpoint])
        service.startService()
        url = f"http://127.0.0.1:{(await endpoint.made).getHost().port}/"
        shared.stores[0].cutOff()

        async def codes() -> list[int]:
            raxrc = self.raxrc()
            pair = f"{raxrc['credentials.username']}:{raxrc['credentials.api_key']}".encode()
            shown = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
            requests = [
                requestBytes("GET", path, None, shown) for path in ("/health/live", "/health", "/v1.0/1/limits")
            ]
            last = requestBytes("GET", "/v1.0/1/services/web1", None, {**shown, "Connection": "close"})
            return [reply.code for reply in await self.responses(url, *requests, last)]

        self.assertEqual(await codes(), [200, 503, 503, 503])
        shared.stores[0].reconnect()
        shared.clock.advance(1)
        await service.whenListening()
        self.assertEqual((await codes())[1:], [200, 200, 404])

    async def test_portInUseOnANode(self) -> None:
        """A node that can't listen does not join: others give each service a full timeout when it leaves."""
        service = await self.started()
        port = service.urls[0].split(":")[2].split("/")[0]
        shared = SharedMemory(Clock(), time.time)
        await shared.memory.open()
        endpoints = [f"tcp:{port}:interface=127.0.0.1"]
        await self.refusal(dataDir=self.dataDir / "other", endpoints=endpoints, store=shared.store)
        self.assertEqual((shared.joins, len(shared.stores)), (0, 1))

    async def test_portInUseOnAllInterfaces(self) -> None:
        """
        Also without an interface to name.
        """
        service = await self.started(endpoints=["tcp:0"])
        self.assertTrue(service.urls[0].startswith("http://127.0.0.1:"))
        port = int(service.urls[0].split(":")[2].split("/")[0])
        text = await self.refusal(dataDir=self.dataDir / "other", endpoints=[f"tcp:{port}"])
        self.assertEqual(
            text,
            f"can't listen on port {port}: Address already in use{PORT_ADVICE}",
        )

    async def test_localSocketInUse(self) -> None:
        """
        A local socket that is taken, or can't be, is named as its path.
        """
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        await self.started(endpoints=[f"unix:{folder}/socket"])
        text = await self.refusal(dataDir=self.dataDir / "other", endpoints=[f"unix:{folder}/socket"])
        advice = PORT_ADVICE.replace("port", "socket")
        self.assertEqual(text, f"can't listen on socket {folder}/socket: Cannot acquire lock{advice}")
        error = CannotListenError(None, b"/x", OSError("AF_UNIX path too long"))
        text = await self.refusal(dataDir=self.dataDir / "other", endpoints=[_Ports(None, error)])
        self.assertEqual(text, "can't listen on socket /x: AF_UNIX path too long")

    async def test_badEndpoint(self) -> None:
        """
        An invalid endpoint string is named before anything is made.
        """
        for endpoint in ("nothing:1", "tcp", "tcp:x", "tcp:1\\"):
            text = await self.refusal(endpoints=[endpoint])
            self.assertTrue(text.startswith(f"can't listen on {endpoint}: "), text)
        text = await self.refusal(endpoints=[_Ports(None, OSError("no\nway"))])
        self.assertEqual(text, "can't listen: no way")
        self.assertFalse(RegistryService.runsOver(self.dataDir))

    async def test_oneRegistryAtATime(self) -> None:
        """
        A second registry over the same directory does not start, and does not disturb the first.
        """
        service = await self.started()
        self.assertTrue(RegistryService.runsOver(self.dataDir))
        text = await self.refusal()
        self.assertEqual(text, f"another registry uses the data directory {self.dataDir}{DIRECTORY_ADVICE}")
        self.assertEqual((await self.ask(service, "GET", "/limits")).code, 200)
        await service.stopService()
        self.assertFalse(RegistryService.runsOver(self.dataDir))

    async def test_aLinkToTheStoreOfAnotherRegistry(self) -> None:
        """
        Two data directories can't share a store: each registry would expire services that are alive at the other one.
        """
        await self.started(store="sqlite")
        other = self.dataDir.with_name("other")
        other.mkdir()
        os.symlink((self.dataDir / "registry.sqlite").absolute(), other / "registry.sqlite")
        self.assertIn("another registry uses the file", await self.refusal(dataDir=other, store="sqlite"))

    async def test_badDirectory(self) -> None:
        """
        A data directory that can't be made, and a raxrc that can't be read, are one line.
        """
        file = Path(self.mktemp())
        file.write_text("")
        self.assertIn("can't write to the data directory", await self.refusal(dataDir=file / "below"))
        self.assertEqual(await self.refusal(dataDir=file), f"the data directory {file} is a file; choose a directory")
        self.dataDir.mkdir()
        (self.dataDir / "raxrc").write_text("no INI")
        self.assertIn("is not a valid INI file", await self.refusal())
        (self.dataDir / "raxrc").write_text("[credentials]\nusername = a b\napi_key = k\n")
        self.assertIn("invalid user name", await self.refusal())

    async def test_badStore(self) -> None:
        """
        A store that can't be opened says why; an internal error is logged and named.
        """

        class Broken(MemoryStore):
            def __init__(self, error: Exception) -> None:
                super().__init__()
                self.error = error

            def open(self) -> Deferred[None]:
                return fail(self.error)

        text = await self.refusal(store=lambda: Broken(StoreUnavailable("the file\nis broken")))
        self.assertEqual(text, "the file is broken")
        text = await self.refusal(store=lambda: Broken(ZeroDivisionError("x")))
        self.assertEqual(text, "internal error (ZeroDivisionError); see the log")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_noClientWaits(self) -> None:
        """
        A start that fails is logged if its outcome was not asked for.
        """
        for asked in (True, False):
            service = self.newService(endpoints=["nothing:1"])
            service.startService()
            if asked:
                with self.assertRaises(StartFailed):
                    await service.whenListening()
            await deferLater(reactor, 0)
            logged = [event for event in self.log if "The registry can't start" in event]
            self.assertEqual(len(logged), 0 if asked else 1)

    async def test_stoppedWhileItStarts(self) -> None:
        """
        A start that is broken off undoes itself.
        """

        class Slow(MemoryStore):
            def open(self) -> Deferred[None]:
                return Deferred()

        service = self.newService(store=Slow)
        service.startService()
        waiting = service.whenListening()
        await service.stopService()
        with self.assertRaises(StartFailed) as caught:
            await waiting
        self.assertEqual(str(caught.exception), "stopped before it was listening")
        self.assertFalse(RegistryService.runsOver(self.dataDir))

    async def test_endingsThatFail(self) -> None:
        """
        One part that can't be ended doesn't keep the others from being ended.
        """

        class Broken(MemoryStore):
            def close(self) -> Deferred[None]:
                return fail(ZeroDivisionError())

        service = await self.started(store=Broken)
        await service.stopService()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(RegistryService.runsOver(self.dataDir))

    async def test_endingsThatAreLate(self) -> None:
        """
        One part that does not end in time is left alone, whatever its cancellation fails with: a line, no traceback.
        """

        class Slow(MemoryStore):
            def close(self) -> Deferred[None]:
                return Deferred(lambda it: it.errback(ZeroDivisionError()))

        self.patch(registryService, "END_SECONDS", 0.1)
        service = await self.started(store=Slow)
        await service.stopService()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(len([event for event in self.log if "Did not close" in event and "the store" in event]), 1)
        self.assertFalse(RegistryService.runsOver(self.dataDir))

    async def test_stopEndsConnections(self) -> None:
        """
        A connection that a client keeps open does not outlive the registry, nor hold it up.
        """
        service = await self.started()
        port = int(service.urls[0].split(":")[2].split("/")[0])
        client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), _Client())
        await self.ask(service, "GET", "/limits")
        await service.stopService()
        await client.ended

    async def test_urls(self) -> None:
        """
        The URLs say how the registry is reached from its own machine.
        """
        for address, url in [
            (IPv4Address("TCP", "0.0.0.0", 81), "http://127.0.0.1:81/v1.0"),
            (IPv6Address("TCP", "::", 81), "http://[::1]:81/v1.0"),
            (IPv6Address("TCP", "::1", 81), "http://[::1]:81/v1.0"),
            (IPv4Address("TCP", "192.0.2.7", 81), "http://192.0.2.7:81/v1.0"),
        ]:
            service = await self.started(endpoints=[_Ports(address), _Ports(UNIXAddress(b"/tmp/x"))])
            self.assertEqual(service.urls, [url])
            self.assertEqual(self.raxrc()["api.url"], url)
            await service.stopService()
        service = await self.started(endpoints=[_Ports(UNIXAddress(b"/tmp/x"))])
        self.assertEqual((service.urls, self.raxrc()["api.url"]), ([], url))
        await service.stopService()

    async def test_tls(self) -> None:
        """
        Over TLS the URL is https.
        """
        endpoint = SSL4ServerEndpoint(reactor, 0, CertificateOptions(), interface="127.0.0.1")
        service = await self.started(endpoints=[endpoint])
        self.assertTrue(service.urls[0].startswith("https://127.0.0.1:"), service.urls)
