"""The options that name an etcd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from tests.certificates import selfSigned
from txserviceregistry.commands.stores import ETCD_OPTIONS, etcdStore
from txserviceregistry.registry.stores.etcd.store import EtcdStore


class EtcdOptionsTests(SynchronousTestCase):
    """The store made of them."""

    def made(self, **given: str) -> EtcdStore:
        values: dict[str, Any] = {}
        for option in ETCD_OPTIONS:
            text = given.get(option.name.removeprefix("etcd-"), option.default)
            values[option.name] = None if text is None else option.parse(text)
        return etcdStore(values, Clock())()

    def refused(self, **given: str) -> str:
        return str(self.assertRaises((UsageError, ValueError), self.made, **given))

    def file(self, content: bytes) -> str:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path)

    def test_defaultsMakeAStore(self) -> None:
        """With nothing given it is the etcd of this machine; nothing is asked of it yet."""
        self.assertEqual(self.made().name, "etcd")

    def test_everythingTogether(self) -> None:
        """Several members, a prefix, a user and certificates: the files are read at once."""
        certificate, key = selfSigned("registry")
        self.made(
            etcd="https://h1:2379, https://h2:2379",
            prefix="/registry",
            user="joe",
            **{
                "password-file": self.file(b"secret\n"),
                "ca-file": self.file(certificate),
                "cert-file": self.file(certificate),
                "key-file": self.file(key),
            },
        )

    def test_halvesAreRefused(self) -> None:
        """A user without a password, or a certificate without its key, is told."""
        self.assertIn("--etcd-password-file", self.refused(user="joe"))
        self.assertIn("--etcd-key-file", self.refused(**{"cert-file": "x"}))

    def test_filesThatAreNone(self) -> None:
        """A file that can't be read, or is empty, is named; a password never is."""
        said = self.refused(user="joe", **{"password-file": "/nowhere"})
        self.assertIn("--etcd-password-file: /nowhere can't be read", said)
        for content in (b"", b"\n", b"\xff\xfe"):
            path = self.file(content)
            self.assertIn(path, self.refused(user="joe", **{"password-file": path}))
        certificate, key = (self.file(text) for text in selfSigned("registry"))
        other = self.file(selfSigned("another")[1])
        for given in (
            {"ca-file": "/nowhere"},
            {"cert-file": certificate, "key-file": "/nowhere"},
            {"cert-file": certificate, "key-file": certificate},
            {"cert-file": certificate, "key-file": other},
            {"cert-file": key, "key-file": key},
        ):
            said = self.refused(**given)
            self.assertTrue(any(path in said for path in given.values()), said)

    def test_thePasswordIsReadAgain(self) -> None:
        """The file is looked at again; one that can't be used keeps the password that there was."""
        path = self.file(b"old\n")
        values: dict[str, Any] = {option.name: option.default for option in ETCD_OPTIONS}
        values.update({"etcd": ["http://h1:2379"], "etcd-user": "joe", "etcd-password-file": path})
        password = etcdStore(values, Clock()).password
        assert password is not None
        self.assertEqual(password.current(), "old")
        for content, current in (
            (b"newer\nrest", "newer"),
            (b"\n", "newer"),
            (b"\xff\xfe", "newer"),
            (b"last", "last"),
        ):
            Path(path).write_bytes(content)
            self.assertEqual(password.current(), current)

    def test_valuesThatAreNone(self) -> None:
        """A URL or a prefix that can't be one is repeated, with what is wrong with it."""
        self.assertTrue(self.refused(etcd="nonsense").startswith("invalid URL 'nonsense'"))
        self.assertIn("'registry'", self.refused(prefix="registry"))
