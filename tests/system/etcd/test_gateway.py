"""
etcd as a JSON API, over etcd itself: behind networks that lose its answers, with users, and over TLS.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread
from twisted.web.client import Agent

from tests.certificates import Holder, selfSigned
from tests.system.etcd.etcds import newPrefix, sharedEtcd, startEtcd
from tests.system.faults.proxy import Proxy
from tests.unit.registry.stores.etcd.test_gateway import CLOCK, EtcdCase
from txserviceregistry.commands.stores import ETCD_OPTIONS, etcdStore
from txserviceregistry.http.jsontransport import JSONTransport
from txserviceregistry.http.pool import QueueingAgent
from txserviceregistry.http.tls import tlsPolicy
from txserviceregistry.registry.stores.etcd.gateway import Etcd, EtcdError, User
from txserviceregistry.registry.stores.etcd.keyvalues import deletion, put, reading, unchanged
from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.util.files import Reloaded


class GatewayTests(EtcdCase):
    """An etcd of one member."""

    async def test_contactIsWithAMajority(self) -> None:
        """It is called for transactions, with the time when they were sent; what a leader responds alone shows none."""
        contacts: list[float] = []
        etcd = self.etcd(sharedEtcd(), onContact=contacts.append)
        await etcd.keepAlive(1)
        self.assertEqual(contacts, [])
        before = CLOCK.seconds()
        await etcd.get("/nothing")
        self.assertEqual(len(contacts), 1)
        self.assertTrue(before <= contacts[0] <= CLOCK.seconds())

    async def test_largeValuesAreReadInSmallParts(self) -> None:
        """All keys are read, however large together, and etcd counts as readable meanwhile."""
        etcd, prefix = self.etcd(sharedEtcd()), newPrefix()
        for number in range(20):
            await etcd.txn((), [put(f"{prefix}{number:02}", b"x" * 1_000_000)])
        self.assertEqual([len(each.value) for each in await etcd.all(prefix)], [1_000_000] * 20)
        self.assertTrue(etcd.statistics.isReadable)

    async def test_leases(self) -> None:
        """Of many that are kept alive at once, some of them gone, each has its own result."""
        etcd = self.etcd(sharedEtcd())
        granted = await gatherResults([etcd.grant(60) for _ in range(7)])
        leases = [each for lease, _ in granted for each in (lease, lease ^ 2)]
        kept = await gatherResults([etcd.keepAlive(lease) for lease in leases])
        self.assertEqual(kept, [True, False] * 7)

    async def test_users(self) -> None:
        """With name and password all works, also when the token has ended, in the middle of many requests."""
        url, end = await deferToThread(startEtcd)
        self.addCleanup(end)
        password = secrets.token_hex(8)
        open_ = JSONTransport(QueueingAgent(Agent(reactor), 1), CLOCK, [url])
        for path, body in (
            ("user/add", {"name": "root", "password": password}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            self.assertEqual((await open_.request("POST", f"/v3/auth/{path}", body=body)).status, 200)
        etcd = self.etcd(url, credentials=("root", password))
        await gatherResults([etcd.txn((), [put(f"/{n}", b"")]) for n in range(20)])
        # A change of etcd's users makes all tokens old.
        answer = await open_.request("POST", "/v3/auth/authenticate", body={"name": "root", "password": password})
        root = User("root", password, answer.json["token"]).header
        added = await open_.request("POST", "/v3/auth/role/add", body={"name": "new"}, header=root)
        self.assertEqual(added.status, 200)
        found, _ = await etcd.range("/", "0")
        self.assertEqual(len(found), 20)
        wrong = await self.refuses(StoreUnavailable, self.etcd(url, credentials=("root", "wrong-pass")).get("/1"))
        self.assertIn("check the user name and the password", wrong)
        self.assertNotIn("wrong-pass", wrong)
        await self.refuses(EtcdError, self.etcd(url).get("/1"))
        # A new password ends all tokens too.
        path = Path(self.mktemp())
        path.write_text(password)
        file = Reloaded("Password file", [str(path)], path.read_text, lambda text: text)
        etcd = self.etcd(url, credentials=("root", file))
        await etcd.get("/1")
        changed = {"name": "root", "password": "new-" + password}
        done = await open_.request("POST", "/v3/auth/user/changepw", body=changed, header=root)
        self.assertEqual(done.status, 200)
        path.write_text("new-" + password)
        self.assertEqual(len((await etcd.range("/", "0"))[0]), 20)

    async def test_authenticationIsSwitched(self) -> None:
        """Before it is enabled, and after it is disabled, a user with a password has access like others."""
        url, end = await deferToThread(startEtcd)
        self.addCleanup(end)
        etcd, open_ = self.etcd(url, credentials=("root", "secret")), self.etcd(url)
        await etcd.txn((), [put("/1", b"")])
        agent = JSONTransport(QueueingAgent(Agent(reactor), 1), CLOCK, [url])
        for path, body in (
            ("user/add", {"name": "root", "password": "secret"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
        ):
            self.assertEqual((await agent.request("POST", f"/v3/auth/{path}", body=body)).status, 200)
        for _ in range(2):
            await etcd.get("/1")
            self.assertEqual((await agent.request("POST", "/v3/auth/enable", body={})).status, 200)
            await self.refuses(EtcdError, open_.get("/1"))
            await etcd.get("/1")
            asked = {"name": "root", "password": "secret"}
            token = (await agent.request("POST", "/v3/auth/authenticate", body=asked)).json["token"]
            root = User("root", "", token).header
            self.assertEqual((await agent.request("POST", "/v3/auth/disable", body={}, header=root)).status, 200)
            await etcd.get("/1")


class LostAnswerTests(EtcdCase):
    """A network that loses every second answer, after etcd has done what it was asked."""

    def lossy(self) -> Etcd:
        proxy = Proxy(reactor, int(sharedEtcd().rpartition(":")[2]))
        proxy.start()
        self.addCleanup(proxy.stop)
        proxy.lose(2)
        return self.etcd(proxy.url.removesuffix("/v1.0"))

    async def test_aTransactionIsDoneOnceAndReadBack(self) -> None:
        """With a guard, the second time fails, and shows what the first one did."""
        etcd, key = self.lossy(), f"{newPrefix()}a"
        seen = set()
        modified = 0
        for number in range(6):
            value = str(number).encode()
            done = await etcd.txn([unchanged(key, modified)], [put(key, value), reading(key)], [reading(key)])
            seen.add(done.succeeded)
            (kept,) = next(found for found in done.found if found)
            self.assertEqual(kept.value, value)
            modified = kept.modified
        self.assertEqual(seen, {True, False})

    async def test_leasesAndCompactions(self) -> None:
        """A key that is there already, or is gone already, is the first try's work."""
        etcd = self.lossy()
        for _ in range(4):
            lease, seconds = await etcd.grant(60)
            self.assertEqual(seconds, 60)
            self.assertTrue(await self.kept(etcd, lease))
            await etcd.revoke(lease)
            self.assertFalse(await self.kept(etcd, lease))
            _, revision = await etcd.range("/nothing")
            await etcd.compact(revision)

    async def kept(self, etcd: Etcd, lease: int) -> bool:
        """The response to a keep-alive. It is tried once: a node counts from the sending of the answered one."""
        for _ in range(2):
            try:
                return await etcd.keepAlive(lease)
            except StoreUnavailable:
                pass
        raise AssertionError("two keep-alives in a row have no answer")


class TLSTests(EtcdCase):
    """An etcd that speaks TLS, and wants to see a certificate."""

    async def test_withACertificate(self) -> None:
        """A client that has one is let in, and reads and writes; one without gets an error."""
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = Holder("authority")
        files: dict[str, str] = {"ca": str(folder / "ca.pem")}
        (folder / "ca.pem").write_bytes(authority.certificate)
        for owner in ("server", "client"):
            holder = Holder(owner, issuer=authority, ca=False)
            for kind, content in (("cert", holder.certificate), ("key", holder.key)):
                files[f"{owner}-{kind}"] = str(folder / f"{owner}-{kind}.pem")
                (folder / f"{owner}-{kind}.pem").write_bytes(content)
        url, end = await deferToThread(
            startEtcd,
            f"--cert-file={files['server-cert']}",
            f"--key-file={files['server-key']}",
            f"--trusted-ca-file={files['ca']}",
            "--client-cert-auth",
            files=(files["ca"], files["client-cert"], files["client-key"]),
        )
        self.addCleanup(end)
        policy = tlsPolicy(caFile=files["ca"], certFile=files["client-cert"], keyFile=files["client-key"])
        etcd = self.etcd(url, policy=policy)
        await etcd.txn((), [put("/a", b"1")])
        found = await etcd.get("/a")
        self.assertEqual(found and found.value, b"1")
        foreign = self.etcd(url, policy=tlsPolicy(caFile=files["ca"]))
        await self.refuses(StoreUnavailable, foreign.txn((), [deletion("/a")], patience=0))

    async def test_anAuthorityThatIsNotTrusted(self) -> None:
        """The error names the option that makes a registry trust it."""
        certificate, key = (Path(self.mktemp()) for _ in range(2))
        for path, content in zip((certificate, key), selfSigned("etcd"), strict=True):
            path.write_bytes(content)
        files = str(certificate), str(certificate), str(key)
        url, end = await deferToThread(startEtcd, f"--cert-file={certificate}", f"--key-file={key}", files=files)
        self.addCleanup(end)
        values = {**{option.name: option.default for option in ETCD_OPTIONS}, "etcd": [url]}
        etcd = self.etcd(url, policy=etcdStore(values, reactor).policy)
        with self.assertRaises(StoreUnavailable) as refused:
            await etcd.txn((), [], patience=0)
        self.assertIn("set --etcd-ca-file to a file with its certificate", str(refused.exception))

    async def test_renewed(self) -> None:
        """Certificates that are all renewed, by another authority, are used by the next connection."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        old, new = Holder("old"), Holder("new")
        names = ("server-cert", "server-key", "client-cert", "client-key", "ca", "both")
        files = {name: folder / f"{name}.pem" for name in names}
        files["both"].write_bytes(old.certificate + new.certificate)

        def renew(authority: Holder) -> None:
            files["ca"].write_bytes(authority.certificate)
            for owner in ("server", "client"):
                holder = Holder(owner, issuer=authority, ca=False)
                files[f"{owner}-cert"].write_bytes(holder.certificate)
                files[f"{owner}-key"].write_bytes(holder.key)

        renew(old)
        url, end = await deferToThread(
            startEtcd,
            f"--cert-file={files['server-cert']}",
            f"--key-file={files['server-key']}",
            f"--trusted-ca-file={files['both']}",
            "--client-cert-auth",
            files=(str(files["ca"]), str(files["client-cert"]), str(files["client-key"])),
        )
        self.addCleanup(end)
        policy = tlsPolicy(
            caFile=str(files["ca"]), certFile=str(files["client-cert"]), keyFile=str(files["client-key"])
        )
        await self.etcd(url, policy=policy).txn((), [put("/a", b"1")])
        renew(new)
        found = await self.etcd(url, policy=policy).get("/a")
        self.assertEqual(found and found.value, b"1")
