"""
Options that say which store, for the commands that work on one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.python import usage

from ..errors import InvalidSettings
from ..http.tls import TLSPolicy, tlsPolicy
from ..registry.stores.etcd.store import DEFAULT_PREFIX, EtcdStore
from ..settings import parseUrls
from ..util.files import absolutePath
from ..util.reloading import Reloaded
from .options import Option

#: What ``--store`` calls it.
ETCD = "etcd"
_DEFAULT_URL = "http://127.0.0.1:2379"


def _urls(text: str) -> list[str]:
    try:
        return list(parseUrls(text, repr(text)))
    except InvalidSettings as error:
        raise ValueError(str(error).removeprefix(f"{text!r}: ")) from None


def _prefix(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} does not begin with a slash")
    return text.rstrip("/") + "/"


#: How an etcd is named. The password and the keys come from files: a command line is for everybody to see.
ETCD_OPTIONS = (
    Option("etcd", None, _DEFAULT_URL, "With --store etcd: URLs of its members, separated by commas.", _urls),
    Option("etcd-prefix", None, DEFAULT_PREFIX, "What all keys in etcd begin with.", _prefix),
    Option("etcd-user", None, None, "Name of a user of etcd's, where it asks for one."),
    Option("etcd-password-file", None, None, "File with that user's password in its first line."),
    Option("etcd-ca-file", None, None, "File with the certificates to trust behind https:// URLs."),
    Option("etcd-cert-file", None, None, "File with the certificate to show to etcd."),
    Option("etcd-key-file", None, None, "File with the private key of that certificate."),
)


def checkStore(store: str, given: Collection[str]) -> None:
    """
    Whoever names an etcd means it, and must not get another store without a word.

    :param store: what ``--store`` says.
    :param given: the names of the options that were given.
    :raises twisted.python.usage.UsageError: if options that name an etcd are among them, and the store is another one.
    """
    names = [option.name for option in ETCD_OPTIONS if option.name in given]
    if names and store != ETCD:
        raise usage.UsageError(f"--{names[0]} goes with --store {ETCD}, and the store is {store}")


@attrs.frozen
class EtcdFactory:
    """
    Makes a store.

    :ivar make: makes it.
    :ivar policy: how its connections use TLS.
    :ivar password: the file with the password of its user, if it has one.
    """

    make: Callable[[], EtcdStore]
    policy: TLSPolicy
    password: Reloaded[str, str] | None = None

    def __call__(self) -> EtcdStore:
        return self.make()

    def reload(self) -> None:
        """Read the files with certificates, key and password again."""
        self.policy.reload()
        if self.password is not None:
            self.password.reload()


def etcdStore(values: Mapping[str, Any], reactor: Any) -> EtcdFactory:
    """
    What makes the store that the options of :data:`ETCD_OPTIONS` name.

    :param values: by option. Files are read here, and nothing is asked of etcd yet.
    :raises twisted.python.usage.UsageError: if the options don't go together, or a file can't be used.
    """
    user, passwordFile = values["etcd-user"], values["etcd-password-file"]
    if (user is None) is not (passwordFile is None):
        raise usage.UsageError("--etcd-user and --etcd-password-file go together")
    if (values["etcd-cert-file"] is None) is not (values["etcd-key-file"] is None):
        raise usage.UsageError("--etcd-cert-file and --etcd-key-file go together")
    password = None if user is None else _passwordIn(passwordFile)
    try:
        policy = tlsPolicy(
            caFile=values["etcd-ca-file"], certFile=values["etcd-cert-file"], keyFile=values["etcd-key-file"]
        )
    except InvalidSettings as error:
        raise usage.UsageError(str(error)) from None
    make = partial(
        EtcdStore,
        reactor,
        values["etcd"],
        prefix=values["etcd-prefix"],
        credentials=None if password is None else (user, password),
        policy=policy,
    )
    return EtcdFactory(make, policy, password)


def _passwordIn(path: str) -> Reloaded[str, str]:
    # Where the person who typed it is, and not where a process in the background will be.
    absolute = absolutePath(path)

    def read() -> str:
        try:
            lines = Path(absolute).read_text("utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(f"can't be read: {reason}") from None
        if not lines or not lines[0]:
            raise ValueError("has no password in its first line")
        return lines[0]

    try:
        return Reloaded(f"Password file {path}", [absolute], read, lambda password: password)
    except ValueError as error:
        raise usage.UsageError(f"--etcd-password-file {path} {error}") from None
